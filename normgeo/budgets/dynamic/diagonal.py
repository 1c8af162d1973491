"""Filters for each coordinate, with a cost for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from normgeo.budgets.checks import costs, positive
from normgeo.budgets.dynamic.base import Dynamic
from normgeo.linalg import l2
from normgeo.norms.vectors import unit

__all__ = ["DynamicDiagonal"]


@dataclass(frozen=True, eq=False)
class DynamicDiagonal(Dynamic):
    """{q : Σⱼ cⱼ·Σ_k qⱼ[k]² ≤ B};  qⱼ* = √B·(rⱼ/cⱼ)/√(Σⱼ ‖rⱼ‖²/cⱼ),  P* = √(B·Σⱼ ‖rⱼ‖²/cⱼ), rⱼ[k] = R[k]ⱼⱼ: filters (K,
    d).

    Cor. 9(iv) of the budget theory; the printed P* = √B·‖R‖ in the metric c itself is not attained (X0-24). One
    coordinate makes it the budget of Q[k] = q[k]·I.

    >>> import torch
    >>> DynamicDiagonal(B=5.0).maximizer(torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([[2., 0.],
            [1., 0.]])
    """

    costs: Tensor | float = 1.0
    B: float = 1.0
    hilbert = True

    def __post_init__(self) -> None:
        positive("DynamicDiagonal", B=self.B)
        costs("DynamicDiagonal", self.costs)

    @property
    def ndim(self) -> int:
        return 2

    def gauge(self, q: Tensor) -> Tensor:
        q, _ = self.filters(q)
        return l2(q * self._root(q), 2).flatten(-2).squeeze(-1) / self.B**0.5

    def maximizer(self, m: Tensor) -> Tensor:
        r = self.moments(m)
        return (self.B**0.5 * unit(r / self._root(r), 2) / self._root(r)).to(m.dtype)

    def _root(self, like: Tensor) -> Tensor | float:
        """√c; a number stays one, for which a device does not wait."""
        return self.costs.to(like).sqrt() if isinstance(self.costs, Tensor) else math.sqrt(self.costs)
