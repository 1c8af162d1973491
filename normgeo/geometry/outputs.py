"""Which of the tensors that a model gives counts as its output."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from normgeo.geometry.declare import GeometryError

__all__ = ["Wanted", "choose", "fields", "together"]

Wanted = str | int | tuple[str | int, ...] | Callable[[Any], Any] | None
"""which tensor counts: by name, position or function; several names for several at once"""

CACHES = {"loss", "aux_loss", "hidden_states", "attentions", "past_key_values", "router_logits", "cache_params"}


def choose(given: Any, wanted: Wanted = None) -> Tensor:
    """What `wanted` names or picks; by default the tensor itself, .logits, .last_hidden_state or the only floating tensor.
    Losses, caches and hidden states do not count.

    >>> import torch
    >>> choose({"loss": torch.zeros(()), "logits": torch.ones(2)})
    tensor([1., 1.])
    """
    found = fields(given)
    if callable(wanted):
        out = wanted(given)
        if not isinstance(out, Tensor):
            raise GeometryError(f"output= must pick a tensor of what the model gives, it picked {type(out).__name__}")
        return out
    if isinstance(wanted, tuple):
        return together([choose(given, each) for each in wanted])
    if wanted is not None:
        if str(wanted) not in found:
            raise GeometryError(f"the model gives no tensor called {wanted!r}; {_choices(found)}")
        return found[str(wanted)]
    if isinstance(given, Tensor):
        return given
    for name in ("logits", "last_hidden_state"):
        if name in found:
            return found[name]
    floating = {
        name: x
        for name, x in found.items()
        if x.is_floating_point() and name not in CACHES and not name.startswith(("encoder_", "decoder_", "cross_"))
    }
    if len(floating) != 1:
        raise GeometryError(f"the model gives {len(floating)} tensors that could be its output; {_choices(found)}")
    return next(iter(floating.values()))


def together(outputs: Sequence[Tensor]) -> Tensor:
    """Rows of the features of several outputs, (rows, features): its size, the largest RMS of a row, is the largest of
    theirs. Shorter rows end in zeros and are √(features/theirs) as large.

    >>> rows = together([torch.ones(2, 5, 8), 3 * torch.ones(2, 2)])
    >>> rows.shape, rows.square().mean(-1).sqrt().amax()
    (torch.Size([12, 8]), tensor(3.))
    """
    most = max(x.shape[-1] for x in outputs)
    rows = [x.reshape(-1, x.shape[-1]) * math.sqrt(most / x.shape[-1]) for x in outputs]
    return torch.cat([functional.pad(x, (0, most - x.shape[-1])) for x in rows])


def fields(given: Any) -> dict[str, Tensor]:
    """Name or position -> tensor, for the tensors at the top of a dict, a tuple or a dataclass."""
    if isinstance(given, Mapping):
        items = dict(given)
    elif isinstance(given, tuple | list) and not hasattr(given, "_fields"):
        items = dict(enumerate(given))
    else:
        names = getattr(given, "_fields", None) or list(getattr(given, "__dict__", {}))
        items = {name: getattr(given, name) for name in names}
    return {str(name): x for name, x in items.items() if isinstance(x, Tensor)}


def _choices(found: Mapping[str, Tensor]) -> str:
    if not found:
        return "write output=lambda given: ... to pick a tensor"
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in found.items())
    return (
        f"write output={next(iter(found))!r}, a tuple of names for several at once, or output=lambda given: ...; there are "
        f"{shapes}"
    )
