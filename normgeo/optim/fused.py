"""Momentum, and the way from a direction to the weights, in few passes over memory: for parts that are entrywise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from normgeo.constraints import Constraint, Rate
from normgeo.norms import Norm
from normgeo.optim.iterate import Iterate
from normgeo.rules import Rule
from normgeo.rules.base import State

__all__ = ["Fused", "descend", "would_move"]


class Fused:
    """The two functions, compiled with `torch.compile` if asked for: True for its default backend, or the name of one.

    Leaves come in as (n, k), whatever their shape, with sizes left open, and lr as a tensor: so a new shape or lr compiles
    nothing. What does is a stack of one leaf beside stacks of more, leaves of one entry, tables (n, rows, columns) whose
    rows age, and other parts or dtypes.
    """

    def __init__(self, compile: bool | str = False) -> None:
        self.compile = compile
        self.smooth = self._compiled(_smooth)
        self.write = self._compiled(_write)
        self._steps: dict[Norm, Callable[..., Tensor]] = {}

    def _compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if not self.compile:
            return function
        # A copy with code of its own: torch counts recompilations by code, over all optimizers of the program.
        own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        options: dict[str, Any] = {} if self.compile is True else {"backend": self.compile}
        return torch.compile(own, dynamic=True, **options)

    def step(self, norm: Norm) -> Callable[..., Tensor]:
        """All of a step of leaves of that norm, in one function."""
        if norm not in self._steps:
            self._steps[norm] = self._compiled(_step)
        return self._steps[norm]

    def update(
        self, rule: Rule, G: Tensor, state: State, living: Tensor | None
    ) -> Tensor:  # (n, *shape) -> (n, *shape)
        """`rule.update`, in the tensors of the state; that of leaves which are not `living` (n,) stays."""
        if "age" in state or not self.compile:
            return self.smooth(rule, G, dict(state), living)
        flat = {name: x.reshape(len(x), -1) for name, x in state.items()}
        return self.smooth(rule, G.reshape(len(G), -1), flat, living).reshape(G.shape)

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


def descend(W: Sequence[Tensor], D: Sequence[Tensor], eta: float, d: float) -> None:
    """W ← W - η·D - d·W in place and in one pass, η > 0, by torch's kernel of SGD; all contiguous and of one size."""
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


def would_move(W: Tensor, D: Tensor, eta: float, d: float) -> bool:
    """Whether W + η·D + d·W differs from W anywhere."""
    return not torch.equal(W, torch.add(torch.add(W, W, alpha=d), D, alpha=eta))


def _smooth(rule: Rule, G: Tensor, state: State, living: Tensor | None) -> Tensor:
    kept = dict(state)
    before = {} if living is None else {name: x.clone() for name, x in state.items()}
    M = rule.update(G, state)
    for name, x in kept.items():
        if living is not None:
            torch.where(_along(living, x), state[name], before[name], out=x)
        elif state[name] is not x:
            x.copy_(state[name])
    return M


def _write(
    iterate: Iterate, constraint: Constraint, W: Tensor, D: Tensor, eta: Tensor, rate: Rate, moving: Tensor | None
) -> Tensor:
    new = constraint.retract(iterate.write(W, D, eta, {}), W, rate, {})
    return new if moving is None else torch.where(moving, new, W)


def _step(
    norm: Norm,
    rule: Rule,
    iterate: Iterate,
    constraint: Constraint,
    G: Tensor,
    W: Tensor,
    state: State,
    rate: Rate,
    moving: Tensor,
    living: Tensor | None,
) -> Tensor:  # -> (n,) bool, which leaves have another entry now
    """All of a step, in place: the state of leaves that are `living`, the weights of those that are `moving`."""
    G, old = G.to(rate.eta.dtype), W.to(rate.eta.dtype)
    M = _smooth(rule, G if living is None else torch.where(_along(living, G), G, 0), state, living)
    new = _write(iterate, constraint, old, norm.dualize(M), rate.radius * rate.eta, rate, moving).to(W.dtype)
    moved = (new != W).reshape(len(W), -1).to(torch.float32).sum(1) > 0  # on CPU any() is not vectorized
    W.copy_(new)
    return moved


def _along(living: Tensor, x: Tensor) -> Tensor:  # (n,), (n, ...) -> (n, 1, ..., 1)
    return living.reshape((-1,) + (1,) * (x.ndim - 1))
