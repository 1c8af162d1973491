"""What a checkpoint must have in common with the optimizer that continues from it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.geometry import Leaf
from normgeo.linalg import SVD
from normgeo.norms import with_polar
from normgeo.optim.stack import Parts, state_key

__all__ = ["compare", "keep_dtypes", "structure", "tell_numbers"]


def structure(parts: Parts, leaves: Sequence[Leaf]) -> dict[str, dict[str, str]]:
    """A group in words. How a polar factor is computed is not part of the structure, so precision may change."""
    return {
        "parts": {field.name: _words(getattr(parts, field.name)) for field in fields(parts)},
        "leaves": {
            leaf.name: f"{leaf.role}, {_words(with_polar(leaf.norm, SVD()))}, view {leaf.view or 'none'}, {leaf.shape}"
            for leaf in leaves
        },
    }


def _words(value: object) -> str:
    """A value as text, without the address that a class with no repr of its own would show."""
    if is_dataclass(value) or value is None:
        words = re.sub(r"<(?:[^<> ]*\.)?(\w+) object at 0x[0-9a-f]+>", r"\1(...)", repr(value))
        return re.sub(r" at 0x[0-9a-f]+", "", words)  # of a function
    return f"{type(value).__qualname__}(...)"


def compare(mine: Sequence[dict[str, Any]], saved: Sequence[dict[str, Any] | None]) -> None:
    """Refuse a checkpoint of another structure and say what differs; warn about parts whose numbers differ."""
    if len(mine) != len(saved):
        raise ValueError(f"the checkpoint has {len(saved)} parameter groups, this optimizer has {len(mine)}")
    for number, (ours, theirs) in enumerate(zip(mine, saved, strict=True)):
        if theirs is None:
            raise ValueError(f"parameter group {number} of the checkpoint was not saved by a normgeo optimizer")
        if different := _differences(ours["leaves"], theirs["leaves"]):
            more = f" (and {len(different) - 5} more)" if len(different) > 5 else ""
            raise ValueError("the checkpoint is of another network: " + "; ".join(different[:5]) + more)
        for name, here in ours["parts"].items():
            there = theirs["parts"][name]
            if _kind(here) != _kind(there):
                raise ValueError(f"the checkpoint was made with {name}={there}, this optimizer has {name}={here}")
            if here != there:
                warnings.warn(f"the checkpoint had {name}={there}; continuing with {name}={here}", stacklevel=4)


def _kind(words: str) -> str:
    """The names of a part without what is in parentheses: "Warmup(steps=9) * Constant()" -> "Warmup * Constant"."""
    while words != (shorter := re.sub(r"\([^()]*\)", "", words)):
        words = shorter
    return words


def keep_dtypes(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Undo torch's cast of loaded state to the dtype of its parameter: momenta of 16-bit weights are 32-bit."""
    ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for key, p in zip(ids, params, strict=True):
        for name, saved in state_dict["state"].get(key, {}).items():
            if isinstance(saved, Tensor):
                device = optimizer.state[p][name].device
                optimizer.state[p][name] = saved.detach().to(device, copy=True)


def tell_numbers(state: Mapping[Any, Mapping[str, Tensor]], leaves: Mapping[Parameter, Sequence[Leaf]]) -> None:
    """One line if the masses or radii of the checkpoint are not those of the plan."""
    different = [
        leaf.name
        for p, its in leaves.items()
        for leaf in its
        for name, number in (("mass", leaf.mass), ("reach", leaf.reach))
        if (key := state_key(leaf, "", name)) in state.get(p, {}) and float(state[p][key]) != number
    ]
    if different:
        names = sorted(set(different))
        warnings.warn(
            f"masses or radii of {len(names)} leaves ({names[0]}, ...) differ from the plan's; the checkpoint's are used",
            stacklevel=3,
        )


def _differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    out = [f"{name} is not in the checkpoint" for name in ours if name not in theirs]
    out += [f"{name} is only in the checkpoint" for name in theirs if name not in ours]
    out += [f"{n} is {ours[n]} here and {theirs[n]} there" for n in ours if n in theirs and ours[n] != theirs[n]]
    if not out and list(ours) != list(theirs):
        out = ["its parameters are in another order"]
    return out
