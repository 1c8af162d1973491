"""The maximizer of a set that is known by its constraints: path following."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normgeo.budgets.bisection import bisect
from normgeo.budgets.shapes import FREE, TOLERANCE, basis, spread
from normgeo.linalg import eigh, eigvalsh

if TYPE_CHECKING:
    from normgeo.budgets.base import Budget

__all__ = ["Constraint", "barrier_maximizer"]

Constraint = Callable[[Tensor], Tensor]
"""Q ↦ a slack, concave in Q and ≥ 0 within the budget: a number, a vector (each entry) or a symmetric matrix (≽ 0)"""


def barrier_maximizer(budget: Budget, m: Tensor) -> Tensor:  # (n, *d) -> (n, *d)
    """max t·⟨Q, M⟩ + Σ log slack + log det Q for growing t; at its solution the power is within ν/t of the best."""
    scale = m.flatten(1).abs().amax(1)
    goal = m / spread(torch.where(scale > 0, scale, 1), m)
    slacks = list(budget.constraints())
    directions = basis(budget.kind, m[0])  # (k, *d)
    middle = _inside(budget, slacks, m[0])
    _bounded(budget, m)
    x = m.new_zeros(len(m), len(directions)) + torch.tensordot(directions, middle, dims=middle.ndim)
    unit = float(middle.abs().max())
    nu = sum(_order(slack(middle)) for slack in slacks) + (m.shape[-1] if budget.kind not in FREE else 0)

    def operator(y: Tensor) -> Tensor:  # (k,) -> (*d)
        return torch.tensordot(y, directions, dims=1)

    def barrier(y: Tensor, target: Tensor, t: Tensor) -> Tensor:
        q = operator(y)
        walls = [slack(q) for slack in slacks]
        if budget.kind not in FREE:
            walls.append(q / unit)
        return -t * (q * target).sum() / unit - sum(_log(w) for w in walls)

    value = torch.vmap(barrier, in_dims=(0, 0, None))
    slope = torch.func.grad(barrier)
    # Reverse over reverse: forward mode goes through Python for many operations and took five times as long.
    curve = torch.func.jacrev(slope)
    derivatives = torch.vmap(lambda *at: (slope(*at), curve(*at)), in_dims=(0, 0, None))
    t = m.new_ones(())
    for _ in range(9):
        x, short = _newton(value, derivatives, x, goal, t)
        if not short <= 1:  # of what a Newton step still promises, in units of the barrier
            raise ValueError(
                f"{type(budget).__name__}: no convergence, because a constraint has kinks or is not concave. Write one on "
                f"eigenvalues as a matrix, lambda q: cap * torch.eye(len(q)) - q, or define gauge(self, q), which may "
                f"have kinks"
            )
        q = torch.tensordot(x, directions, dims=1)
        power = (q * goal).flatten(1).sum(1) / unit
        if bool((power > 1e12).any()):
            raise ValueError(
                f"{type(budget).__name__} is unbounded: a power of {float(power.max()):.3g}·|M| is within it"
            )
        # Moments without positive power would never meet a relative tolerance; theirs is relative to the identity's.
        if bool((nu / t <= 0.1 * TOLERANCE * power.clamp_min(1e-3)).all()):
            break
        t = t * 50
    size = budget.gauge(q)
    useful = power > 2 * nu / t
    return torch.where(spread(useful, q), q / spread(torch.where(useful, size, 1), q), 0)


def _bounded(budget: Budget, m: Tensor) -> None:
    """Refuse a set that holds the whole ray of an eigenvector of a moment (or of a coordinate)."""
    if budget.kind == "matrix":
        v = eigh(m)[1].mT.reshape(-1, m.shape[-1])
        bisect(budget, v.unsqueeze(-1) * v.unsqueeze(-2))
    else:
        bisect(budget, basis(budget.kind, m[0]))


def _newton(
    value: Callable[..., Tensor], derivatives: Callable[..., tuple[Tensor, Tensor]], x: Tensor, goal: Tensor, t: Tensor
) -> tuple[Tensor, float]:
    """Damped Newton steps for all moments in step, each with its own length; and what is left of the largest."""
    f, decrement = value(x, goal, t), x.new_full((len(x),), torch.inf)
    for _ in range(40):
        slope, curve = derivatives(x, goal, t)
        if not bool(curve.isfinite().all()):
            return x, torch.inf
        step = -torch.linalg.lstsq(curve, slope.unsqueeze(-1)).solution.squeeze(-1)
        decrement = -(slope * step).sum(1)
        if bool((decrement <= 1e-4).all()):  # the power is then within 1e-4/t of that at the barrier's solution
            break
        length = 1 / (1 + decrement.clamp_min(0).sqrt())
        length = torch.where(decrement < 0.1, 1.0, length)
        moving = torch.ones_like(length, dtype=torch.bool)
        for _ in range(50):
            ahead = x + torch.where(moving, length, 0).unsqueeze(1) * step
            there = value(ahead, goal, t).nan_to_num(torch.inf)
            bad = moving & ~(there <= f + 1e-9 * (1 + f.abs()) - 1e-4 * length * decrement)
            if not bool(bad.any()):
                break
            length = torch.where(bad, length / 2, length)
        good = ~bad
        x, f = torch.where(good.unsqueeze(1), ahead, x), torch.where(good, there, f)
        if not bool(good.any()):
            break
    return x, float(decrement.max())


def _log(slack: Tensor) -> Tensor:
    """log of a number, Σ log of a vector, log det of a matrix; NaN where it is not positive."""
    if slack.ndim < 2:
        return torch.where(slack > 0, slack, torch.nan).log().sum()
    factor, info = torch.linalg.cholesky_ex(slack)
    return torch.where(info == 0, 2 * factor.diagonal().log().sum(), torch.nan)


def _order(slack: Tensor) -> int:
    return slack.shape[0] if slack.ndim else 1


def _inside(budget: Budget, slacks: Sequence[Constraint], like: Tensor) -> Tensor:  # -> (*d)
    """ε·I (or 0, for steps) strictly inside, ε half of the largest power of two for which it is."""
    zero = torch.zeros_like(like)
    for number, slack in enumerate(slacks):
        least = _least(slack(zero))
        if not least >= 0:
            raise ValueError(
                f"{type(budget).__name__}: 0 is not in the set, constraint {number} has slack {least:.3g} there; "
                f"write it as a slack that is ≥ 0 inside"
            )
    one = torch.eye(like.shape[-1]).to(like) if budget.kind == "matrix" else torch.ones_like(like)
    for e in range(100, -100, -1):
        if all(_least(slack(2.0**e * one)) > 0 for slack in slacks):
            if e == 100:  # not even a multiple of the identity ends
                raise ValueError(f"{type(budget).__name__} is unbounded: {2.0**e:.3g}·I is within all its constraints")
            return zero if budget.kind in FREE else 2.0 ** (e - 1) * one
    worst = min((_least(slack(2.0**-99 * one)), number) for number, slack in enumerate(slacks))
    raise ValueError(
        f"{type(budget).__name__}: no ε·I is strictly inside; constraint {worst[1]} has slack {worst[0]:.3g} at "
        f"{2.0**-99:.3g}·I. A set inside a subspace needs a closed form or a projection"
    )


def _least(slack: Tensor) -> float:
    return float(eigvalsh(slack)[0]) if slack.ndim == 2 else float(slack.min())
