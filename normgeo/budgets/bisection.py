"""The gauge of a set that is known by its members, and the maximizer of one that is known by its projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normgeo.budgets.shapes import TOLERANCE, negative, own, spread
from normgeo.linalg import eigvalsh

if TYPE_CHECKING:
    from normgeo.budgets.base import Budget

__all__ = ["bisect", "push"]


def bisect(budget: Budget, q: Tensor) -> Tensor:  # (n, *d) -> (n,)
    """inf {t : Q/t within}, from above: Q/t is within at the t that is returned."""
    flat = q.flatten(1)
    size = torch.linalg.vector_norm(flat, dim=1)
    unit = q / spread(torch.where(size > 0, size, 1), q)
    low, high = (torch.full_like(size, x) for x in (-200.0, 200.0))  # log2 t, for |Q| = 1
    bounded = within(budget, unit * 2.0**-200) & (size > 0)
    for _ in range(62):
        middle = (low + high) / 2
        inside = within(budget, unit * spread(torch.exp2(-middle), q))
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    out = torch.where(bounded, size * torch.exp2(high), torch.inf)
    if bool(((high < -150) & bounded).any()):
        raise ValueError(
            f"{type(budget).__name__} is unbounded: {2.0**150:.3g} times an operator of size 1 is within it"
        )
    return torch.where(size == 0, 0, out)


def within(budget: Budget, q: Tensor) -> Tensor:  # (n, *d) -> (n,)
    """Whether Q is in the budget, to rounding."""
    ok = ~negative(q, budget.kind)
    if own(budget, "constraints"):
        for slack in budget.constraints():
            s = torch.vmap(slack)(q)
            s = eigvalsh(s) if s.ndim == 3 else s.reshape(len(q), -1)
            ok = ok & (s.amin(1) >= -1e-13 * s.abs().amax(1))
        return ok
    gap = torch.linalg.vector_norm((budget.project(q) - q).flatten(1), dim=1)
    return ok & (gap <= 1e-10 * torch.linalg.vector_norm(q.flatten(1), dim=1))


def push(budget: Budget, m: Tensor) -> Tensor:  # (n, *d) -> (n, *d)
    """X = project(α·M): ⟨X, M⟩ ≥ P*(M) - ‖Q*‖²/2α, because X is the nearest point to α·M."""
    size = torch.linalg.vector_norm(m.flatten(1), dim=1)
    unit = m / spread(torch.where(size > 0, size, 1), m)
    alpha = torch.ones_like(size)
    for _ in range(60):
        x = budget.project(unit * spread(alpha, m))
        power = (x * unit).flatten(1).sum(1)
        reach = x.flatten(1).square().sum(1)
        short = alpha * power * 0.1 * TOLERANCE < reach
        if bool((~short | (alpha > 1e13)).all()):
            break
        alpha = torch.where(short, alpha * 8, alpha)
    useful = power > 1e-9 * reach.sqrt()
    x = torch.where(spread(useful, m), x, 0)
    size = budget.gauge(x)
    # On the boundary, for a support that is exactly the power of a point of gauge 1.
    return torch.where(spread(useful, m), x / spread(torch.where(useful, size, 1), m), 0)
