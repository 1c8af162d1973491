"""Momentum, and the way from a direction to the weights, in few passes over memory: for parts that are entrywise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from normgeo.constraints import Constraint, Rate
from normgeo.optim.iterate import Iterate
from normgeo.rules import Rule
from normgeo.rules.base import State

__all__ = ["Fused", "descended"]


class Fused:
    """The two functions, compiled with `torch.compile` if asked for: True for its default backend, or the name of one.

    Leaves come in as (n, k), whatever their shape, with sizes left open, and lr as a tensor: so a new shape or lr compiles
    nothing. What does is a stack of one leaf beside stacks of more, leaves of one entry, tables (n, rows, columns) whose
    rows age, and other parts or dtypes.
    """

    def __init__(self, compile: bool | str = False) -> None:
        self.compile = compile
        self.smooth: Callable[..., Tensor] = _smooth
        self.write: Callable[..., Tensor] = _write
        if compile:
            options: dict[str, Any] = {} if compile is True else {"backend": compile}
            self.smooth = torch.compile(_own(_smooth), dynamic=True, **options)
            self.write = torch.compile(_own(_write), dynamic=True, **options)

    def update(self, rule: Rule, G: Tensor, state: State) -> Tensor:  # (n, *shape) -> (n, *shape)
        """`rule.update`."""
        if "age" in state or not self.compile:
            return self.smooth(rule, G, state)
        views = {name: x.reshape(len(x), -1) for name, x in state.items()}
        flat = dict(views)
        M = self.smooth(rule, G.reshape(len(G), -1), flat).reshape(G.shape)
        state.update({name: x.reshape(state[name].shape) for name, x in flat.items() if x is not views[name]})
        return M

    def written(
        self,
        iterate: Iterate,
        constraint: Constraint,
        W: Tensor,
        D: Tensor,
        eta: Tensor,
        rate: Rate,
        moving: Tensor | None,
    ) -> Tensor:  # (n, *shape) -> (n, *shape)
        """`constraint.retract` of what `iterate.write` makes of W, where `moving`; `eta`, `moving` are (n, 1, ..., 1)."""
        n = len(W)
        radius = rate.radius.reshape(n, 1) if isinstance(rate.radius, Tensor) else rate.radius
        flags = None if moving is None else moving.reshape(-1, 1)
        flat = W.reshape(n, -1), D.reshape(n, -1), eta.reshape(-1, 1)
        return self.write(iterate, constraint, *flat, rate._replace(radius=radius), flags).reshape(W.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return Fused, (self.compile,)


def descended(W: Sequence[Tensor], D: Sequence[Tensor], eta: float, d: float) -> list[bool]:
    """W ← W - η·D - d·W in place and in one pass, η > 0, by torch's kernel of SGD; all contiguous and of one size. And
    which of the W have another entry now. Of 128 entries and more some from all over W tell as a rule; if these stay,
    whether the same step would bring others back, which differs only for steps of half a last digit."""
    some = [w.view(-1)[:: max(1, w.numel() // 64)] for w in W]
    before = [w.clone() for w in some]
    decay = d / eta
    if decay > 2.0**100:  # of a leaf of next to no mass: a quotient that float32 may not have
        torch._foreach_mul_(list(W), 1 - d)
        decay = 0.0
    torch._fused_sgd_(
        list(W),
        list(D),
        [],
        weight_decay=decay,
        momentum=0.0,
        lr=eta,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )
    return [
        not torch.equal(a, b)
        or (a.numel() < w.numel() and not torch.equal(w, torch.add(torch.add(w, w, alpha=d), step, alpha=eta)))
        for a, b, w, step in zip(some, before, W, D, strict=True)
    ]


def _own(function: Any) -> Callable[..., Tensor]:
    """A copy with code of its own: torch counts recompilations by code, over all optimizers of the program."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def _smooth(rule: Rule, G: Tensor, state: State) -> Tensor:
    return rule.update(G, state)


def _write(
    iterate: Iterate, constraint: Constraint, W: Tensor, D: Tensor, eta: Tensor, rate: Rate, moving: Tensor | None
) -> Tensor:
    new = constraint.retract(iterate.write(W, D, eta, {}), W, rate, {})
    return new if moving is None else torch.where(moving, new, W)
