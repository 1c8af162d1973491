"""The projection onto a set that is known by its maximizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normgeo.budgets.shapes import TOLERANCE

if TYPE_CHECKING:
    from normgeo.budgets.base import Budget

__all__ = ["frank_wolfe"]


def frank_wolfe(budget: Budget, q: Tensor) -> Tensor:  # (n, *d) -> (n, *d)
    """The nearest point by pairwise Frank-Wolfe steps; the duality gap ⟨Q - X, V - X⟩ bounds ½‖X - X*‖²."""
    return torch.stack([_nearest(budget, each) for each in q])


def _nearest(budget: Budget, q: Tensor, iterations: int = 2000) -> Tensor:
    atoms, weights = [torch.zeros_like(q)], [1.0]
    x = torch.zeros_like(q)
    for _ in range(iterations):
        towards = q - x
        best = budget.maximizer(towards)
        if float((towards * (best - x)).sum()) <= TOLERANCE**2 * float(q.square().sum()):
            break
        gains = [float((towards * atom).sum()) for atom in atoms]
        worst = min(range(len(atoms)), key=gains.__getitem__)
        direction = best - atoms[worst]
        length = float((towards * direction).sum() / direction.square().sum().clamp_min(1e-300))
        length = min(max(length, 0.0), weights[worst])
        x = x + length * direction
        weights[worst] -= length
        atoms.append(best)
        weights.append(length)
        kept = [k for k, w in enumerate(weights) if w > 0]
        atoms, weights = [atoms[k] for k in kept], [weights[k] for k in kept]
    return x
