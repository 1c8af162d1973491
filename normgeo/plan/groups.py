"""From a plan to an optimizer: parameter groups by pattern, and the precision of polar factors."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from normgeo.linalg import FAST, SVD, TIGHT, Polar, in_dtype
from normgeo.norms import with_polar
from normgeo.optim import Filter, Optimizer
from normgeo.optim.options import ELSEWHERE
from normgeo.plan.patterns import overrides
from normgeo.rules import Plain

if TYPE_CHECKING:
    from normgeo.plan.plan import Plan

__all__ = ["Precision", "Target", "groups_of", "optimizer_of"]

Precision = Literal["tight", "fast", "exact"] | torch.dtype
PRECISIONS: dict[str, Polar] = {"tight": TIGHT, "fast": FAST, "exact": SVD()}
Target = nn.Module | Sequence[dict[str, Any]]
"""what an optimizer is made for: a model, or groups of a plan"""


def optimizer_of(plan: Plan, model: Target, precision: Precision | Polar, options: dict[str, Any]) -> Optimizer:
    polar = PRECISIONS.get(precision) if isinstance(precision, str) else precision
    if isinstance(polar, torch.dtype):
        polar = in_dtype(polar, model.parameters() if isinstance(model, nn.Module) else ())
    if not isinstance(polar, Polar):
        raise ValueError(
            f"precision must be one of {sorted(PRECISIONS)}, a torch.dtype or a normgeo.linalg.Polar, got {precision!r}"
        )
    known = [name for name in inspect.signature(Optimizer).parameters if name != "params"]
    if unknown := sorted(set(options) - {*known, "params"}):
        if unknown[0] in ELSEWHERE:
            raise TypeError(f"{unknown[0]} is no option here: {ELSEWHERE[unknown[0]]}")
        raise TypeError(
            f"unknown option {unknown[0]!r}; options are {', '.join(known)}, and plan.groups takes them by pattern"
        )
    by_pattern = options.get("constraint")
    if isinstance(by_pattern, Mapping):
        if not isinstance(model, nn.Module):
            raise TypeError('constraints by pattern go with the model; in groups write {"head": dict(constraint=...)}')
        options = {**options, "constraint": by_pattern.get("*")}
        own = {pattern: {"constraint": one} for pattern, one in by_pattern.items() if pattern != "*"}
        groups = plan.groups(own, model=model)
    else:
        groups = plan.groups(model=model) if isinstance(model, nn.Module) else list(model)
    if not all(isinstance(group, dict) and "leaves" in group for group in groups):
        raise TypeError("plan.optimizer takes the model, plan.optimizer(model), or groups made by plan.groups(...)")
    precise = [
        [[dataclasses.replace(leaf, norm=with_polar(leaf.norm, polar)) for leaf in its] for its in group["leaves"]]
        for group in groups
    ]
    return Optimizer([{**group, "leaves": its} for group, its in zip(groups, precise, strict=True)], **options)


def groups_of(
    plan: Plan,
    options: Mapping[str, Mapping[str, Any]] | None,
    model: nn.Module | None,
    only: Sequence[str] | None,
) -> list[dict[str, Any]]:
    found = plan.find(model)
    wanted = list(found) if only is None else list(overrides("only", dict.fromkeys(only, True), list(found)))
    own = overrides("groups", options, wanted)
    groups: dict[tuple[int, int], dict[str, Any]] = {}
    for name in wanted:
        one: dict[str, Any] = dict(own.get(name, {}))
        if name in plan.directions:
            one.setdefault("direction", plan.directions[name])
            if isinstance(plan.directions[name], Filter):  # a memory of its own
                one.setdefault("rule", Plain())
        key = (id(own[name]) if name in own else 0, id(plan.directions.get(name)))
        group = groups.setdefault(key, {"params": [], "leaves": [], **one})
        group["params"].append(found[name])
        group["leaves"].append([leaf for leaf in plan.leaves if leaf.parameter == name])
    return sorted(groups.values(), key=lambda group: len(group) > 2)
