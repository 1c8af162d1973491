"""Momentum, and the way from a direction to the weights, in few passes over memory: for parts that are entrywise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor

from normgeo.constraints import Constraint, Rate
from normgeo.norms import Norm
from normgeo.optim.iterate import Iterate
from normgeo.rules import Rule
from normgeo.rules.base import State

__all__ = ["Fused", "apart", "like", "settle"]

T = TypeVar("T")


class Fused:
    """`update` and `written`, or `step` for both and what is between them; compiled with `torch.compile` if asked for: True
    for its default backend, or the name of one.

    The first two see leaves as (n, k), whatever their shape, with sizes left open, and lr as a tensor: so a new shape or lr
    compiles nothing. What does is a stack of one leaf beside stacks of more, leaves of one entry, tables (n, rows, columns)
    whose rows age, other parts or dtypes, and for `step` another norm.
    """

    def __init__(self, compile: bool | str = False) -> None:
        self.compile = compile
        self.smooth = self._compiled(_smooth)
        self.write = self._compiled(_write)
        self._steps: dict[Norm, Callable[..., Any]] = {}

    def _compiled(self, function: Callable[..., T]) -> Callable[..., T]:
        if not self.compile:
            return function
        # A copy with code of its own: torch counts recompilations by code, over all optimizers of the program.
        own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        options: dict[str, Any] = {} if self.compile is True else {"backend": self.compile}
        return torch.compile(own, dynamic=True, **options)

    def step(self, norm: Norm) -> Callable[..., Any]:
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
        flat = {name: _flat(x) for name, x in state.items()}
        return self.smooth(rule, _flat(G), flat, living).reshape(G.shape)

    def written(
        self,
        iterate: Iterate,
        constraint: Constraint,
        W: Tensor,
        D: Tensor,
        eta: Tensor,
        rate: Rate,
        moving: Tensor | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:  # (n, *shape), (n,) bool
        """`constraint.retract` of what `iterate.write` makes of W, where `moving`; `eta`, `moving` are (n, 1, ..., 1). And
        which leaves are then others in the `dtype` of the parameters, where that takes no pass of its own: compiled."""
        numbers = {name: x.reshape(-1, 1) for name, x in rate._asdict().items() if isinstance(x, Tensor) and x.ndim}
        flags = None if moving is None else moving.reshape(-1, 1)
        flat = _flat(W), _flat(D), eta.reshape(-1, 1)
        told = dtype if self.compile else None
        new, moved = self.write(iterate, constraint, *flat, rate._replace(**numbers), flags, told)
        return new.reshape(W.shape), moved

    def __reduce__(self) -> tuple[Any, ...]:
        return Fused, (self.compile,)


def _flat(x: Tensor) -> Tensor:  # (n, *shape) -> (n, k)
    """In the memory of x, and as nobody's view: of those torch compiles one function for each shape of what they view."""
    return x.reshape(len(x), -1).data


def settle(buffers: State, state: State, living: Tensor | None, before: State) -> None:
    """Bring what a part has assigned into the buffers, and those of leaves that are not `living` (n,) back to what was
    `before`."""
    if not state and not buffers:  # as most parts
        return
    if state.keys() != buffers.keys():
        raise ValueError(
            f"a part has {sorted(state)} in its state, but its init returned {sorted(buffers)}: return all of it from init"
        )
    new = {name: x if x is buffers[name] else apart(x, buffers.values()) for name, x in state.items()}
    for name, x in buffers.items():
        if living is not None:
            torch.where(like(living, x), new[name].to(x.dtype), before[name], out=x)
        elif new[name] is not x:
            x.copy_(new[name])
        state[name] = x


def like(living: Tensor, x: Tensor) -> Tensor:  # (n,), (n, ...) -> (n, 1, ..., 1)
    return living.to(x.device).reshape((-1,) + (1,) * (x.ndim - 1))


def apart(x: Tensor, written: Iterable[Tensor]) -> Tensor:
    """x with memory of its own, where tensors that it may be a part of are about to be written to."""
    if torch.compiler.is_compiling():  # which elides copies that are not needed
        return x.clone()
    memory = x.untyped_storage()._cdata
    return x.clone() if any(memory == y.untyped_storage()._cdata for y in written) else x


def _smooth(rule: Rule, G: Tensor, state: State, living: Tensor | None) -> Tensor:
    if living is not None and (still := rule.still(state)) is not None:
        G, living = torch.where(like(living, G), G, still), None
    buffers = dict(state)
    before = {} if living is None else {name: x.clone() for name, x in state.items()}
    M = rule.update(G if living is None else torch.where(like(living, G), G, 0), state)
    if any(x is not buffers.get(name) for name, x in state.items()):
        M = apart(M, buffers.values())  # it may be what the state was
    settle(buffers, state, living, before)
    return M


def _write(
    iterate: Iterate,
    constraint: Constraint,
    W: Tensor,
    D: Tensor,
    eta: Tensor,
    rate: Rate,
    moving: Tensor | None,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    new = constraint.retract(iterate.write(W, D, eta, {}), W, rate, {})
    if moving is not None:
        new = torch.where(moving, new, W)
    if dtype is None:
        return new, None
    new = new.to(dtype)
    return new, (new != W).reshape(len(W), -1).to(torch.float32).sum(1) > 0  # compiled for CPU, any() is slow


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
) -> Tensor | None:  # (n,) bool, which leaves have another entry now
    """All of a step, in place: the state of leaves that are `living`, the weights of those that are `moving`."""
    work = rate.eta.dtype
    D = norm.dualize(_smooth(rule, G.to(work), state, living))
    new, moved = _write(iterate, constraint, W.to(work), D, rate.radius * rate.eta, rate, moving, W.dtype)
    W.copy_(new)
    return moved
