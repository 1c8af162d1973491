"""A stack's passage through a step: from gradients to a unit direction, and from there to the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.constraints import Pull, Rate
from normgeo.optim.closure import Grads, hessian_vector_product
from normgeo.optim.exchange import Task
from normgeo.optim.fused import like
from normgeo.optim.guard import Verdict
from normgeo.optim.stack import Stack
from normgeo.steps import Stats
from normgeo.steps.base import Move

__all__ = ["alive", "averaged", "direct", "rate", "write"]


def alive(stack: Stack, verdict: Verdict) -> Tensor | None:  # -> (n,) bool, None for all
    """Which leaves take part: those with a gradient that is finite."""
    present, good = stack.present(), verdict.good(stack.params)
    if all(present):
        return good
    has = stack.flags(present)
    return has if good is None else has & good.to(stack.device)


def direct(
    stack: Stack, living: Tensor | None, stats: Stats, graph: Grads | None, validation: Mapping[Parameter, Tensor]
) -> Task[Move | None]:
    """From gradients to the unit direction; a task, because other ranks may have to help. None for a stack whose whole way
    is one function."""
    if stack.at_once is not None:
        return None

    def of_the_living(G: Tensor) -> Tensor:
        return G if living is None else torch.where(like(living, G), G, 0)

    (G, W), state = stack.borrow(), stack.state
    if not (stack.fused and stack.unseen):
        G = of_the_living(G)
    G = stack.constraint.tangent(W, G, state["constraint"])
    rule = state["rule"]
    M = stack.fused.update(stack.rule, G, rule, living) if stack.fused else stack.rule.update(G, rule)
    seen = stats
    if graph is not None:
        product = hessian_vector_product([stack], graph)
        seen = replace(seen, hvp=lambda V: product([V])[0])
    if validation:
        seen = replace(seen, validation=of_the_living(stack.from_parameters(validation)))
    stack.direction.observe(G, state["direction"], seen)
    D = stack.constraint.direct(M, W, state["constraint"])
    if D is None:
        D = yield from stack.turn(M, W)
    return Move(G, M, D.expand_as(G), W, stack.radius, stack.leaves)  # what writes weights in place asks for no shapes


def write(stack: Stack, move: Move | None, rate: Rate, living: Tensor | None, keep_update: bool) -> None:
    """From the unit direction to the weights; at η = 0 nothing moves, whatever the constraint would do."""
    if move is None:
        stack.go(rate, _moving(stack, rate, living), living)
        return
    if stack.descends and rate.eta.numel() in (1, len(stack)):
        _descend(stack, move, rate, living)
        return
    old, radius, iterate, constraint = move.W, move.radius, stack.iterate, stack.state["constraint"]
    moving = _moving(stack, rate, living)
    some_stay = not (stack.looks and bool(moving.all()))
    if stack.fused and rate.eta.numel() in (1, len(stack)):
        flags, dtype = moving if some_stay else None, stack.params[0].dtype
        new, moved = stack.fused.written(iterate, stack.constraint, old, move.D, radius * rate.eta, rate, flags, dtype)
        stack.count_moves(new, old, moved)
        stack.write(new, stack.present())
        return
    before = {name: x.clone() for name, x in constraint.items()} if some_stay else {}
    D, eta = (move.D, radius * rate.eta) if iterate.joint else (radius * move.D, rate.eta)
    step = iterate.write(old, D, eta, stack.state["iterate"])
    new = stack.constraint.retract(step, old, rate, constraint)
    if some_stay:
        # What stays has not been constrained: neither the iterate nor the constraint may believe so.
        iterate.follow(torch.where(moving, new, step), step, stack.state["iterate"])
        new = torch.where(moving, new, old)
        moves = moving.expand_as(old).reshape(len(stack), -1).any(1)
        constraint.update({name: torch.where(like(moves, x), constraint[name], x) for name, x in before.items()})
    else:
        iterate.follow(new, step, stack.state["iterate"])
    stack.count_moves(new, old)
    if keep_update:
        move.update, move.eta = new - old, rate.eta
    stack.write(new, stack.present())  # last: `old` may be the parameter itself


def _moving(stack: Stack, rate: Rate, living: Tensor | None) -> Tensor:  # () or (n, 1, ..., 1)
    moving = rate.eta != 0
    if not stack.all_may_move:
        moving = moving & (stack.radius > 0)  # a leaf of mass 0 is not moved by its constraint either
    return moving if living is None else moving & like(living, stack.radius)


def _descend(stack: Stack, move: Move, rate: Rate, living: Tensor | None) -> None:
    """W ← W - η·r·D - d·W with numbers that the host knows, in one pass."""
    n = len(stack)
    d = cast(Pull, stack.constraint).pull(rate)
    go = [True] * n if living is None else living.tolist()
    steps = [
        (eta * r, pull) if yes and r and eta * r else None
        for eta, r, pull, yes in zip(_numbers(rate.eta, n), stack.lengths, _numbers(d, n), go, strict=True)
    ]
    stack.descend(move.W, move.D, steps)


def _numbers(x: Tensor | None, n: int) -> list[float]:
    if x is None:
        return [0.0] * n
    return [float(x)] * n if x.ndim == 0 else x.flatten().tolist()


def averaged(stack: Stack, W: Tensor) -> Tensor:
    """The weights to evaluate with: the iterate's average, constrained as after a step of size 0, which moves a weight
    only to where it has to be. What is not averaged, or is where it was, stays."""
    mean, state = stack.iterate.average(W, stack.state["iterate"]), stack.state["constraint"]
    zero = torch.zeros((), dtype=W.dtype, device=W.device)
    kept = {name: x.clone() for name, x in state.items()}
    inside = stack.constraint.retract(mean, mean, Rate(zero, zero, stack.radius), kept)
    same = (mean == W).reshape(len(stack), -1).all(1)
    return torch.where(like(same, W), mean, inside)


def rate(group: dict[str, Any], factor: Tensor, radius: Tensor) -> Rate:  # radius (n, 1, ..., 1)
    """η = lr·factor, and the same over the lr that the group was made with."""
    factor = factor.to(radius)
    if factor.ndim == 1:
        factor = factor.reshape(radius.shape)
    lr = group["lr"]
    eta = (lr.to(factor) if isinstance(lr, Tensor) else lr) * factor
    return Rate(eta, eta / group["base_lr"] if group["base_lr"] else torch.zeros_like(eta), radius)
