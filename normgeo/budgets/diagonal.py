"""The diagonal budget: coordinate-wise operators with a cost for each coordinate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.barrier import Constraint
from normgeo.budgets.base import Budget, checked, floating
from normgeo.budgets.checks import costs, positive
from normgeo.budgets.shapes import below_zero
from normgeo.linalg import l2
from normgeo.norms.vectors import unit

__all__ = ["Diagonal"]


@dataclass(frozen=True, eq=False)
class Diagonal(Budget):
    """{q ≥ 0 : Σ cⱼ·qⱼ² ≤ B};  qⱼ* = √B·(rⱼ/cⱼ)/√(Σ r²/c),  P* = √(B·Σ rⱼ²/cⱼ),  rⱼ = max(Mⱼⱼ, 0).

    Moments and operators are given by their diagonals. With costs c = √v and Mⱼⱼ = v this is q ∝ √v, not Adam (X0-5):
    1/√v is optimal for c = v^{3/2}, which is `DataMetric(power=1.5)`. Cor. 2(iv) of the budget theory.

    >>> Diagonal(costs=torch.tensor([1.0, 4.0])).maximizer(torch.tensor([3.0, 16.0]))
    tensor([0.3511, 0.4682])
    """

    costs: Tensor | float = 1.0
    B: float = 1.0
    kind = "diagonal"

    def __post_init__(self) -> None:
        positive("Diagonal", B=self.B)
        costs("Diagonal", self.costs)

    def gauge(self, q: Tensor) -> Tensor:
        q = floating(q, self)
        size = l2(q * self._root(q), 1).squeeze(-1) / self.B**0.5
        return torch.where(below_zero(q), torch.inf, size)

    def maximizer(self, m: Tensor) -> Tensor:
        r = checked(m, self).clamp_min(0)
        return (self.B**0.5 * unit(r / self._root(r), 1) / self._root(r)).to(m.dtype)

    def constraints(self) -> Sequence[Constraint]:
        return [lambda q: 1 - (q * self._root(q)).square().sum() / self.B]

    def _root(self, like: Tensor) -> Tensor | float:
        """√c; a number stays one, for which a device does not wait."""
        if not isinstance(self.costs, Tensor):
            return math.sqrt(self.costs)
        if self.costs.ndim and self.costs.shape[-1] != like.shape[-1]:
            raise ValueError(f"Diagonal has {self.costs.shape[-1]} costs, but was given {like.shape[-1]} coordinates")
        return self.costs.to(like).sqrt()
