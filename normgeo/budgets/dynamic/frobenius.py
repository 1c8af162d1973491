"""The Frobenius ball of filters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.checks import positive
from normgeo.budgets.dynamic.base import Dynamic
from normgeo.linalg import l2
from normgeo.norms.vectors import unit

__all__ = ["DynamicFrobenius"]


@dataclass(frozen=True)
class DynamicFrobenius(Dynamic):
    """{Q : Σ_k ‖Q[k]‖²_F ≤ B};  Q* = √B·R/‖R‖,  P* = √B·‖R‖ over all lags: memory goes where gradients agree with their
    past.

    Cor. 9(i) of the budget theory. With one lag and R[0] ≽ 0 this is `Frobenius`. For filters of diagonal operators it
    is `DynamicDiagonal` with costs 1.

    >>> lags = torch.stack([torch.eye(2), 0.5 * torch.eye(2)])
    >>> DynamicFrobenius(B=2.5).maximizer(lags)[:, 0, 0]
    tensor([1.0000, 0.5000])
    """

    B: float = 1.0
    hilbert = True

    def __post_init__(self) -> None:
        positive("DynamicFrobenius", B=self.B)

    def gauge(self, q: Tensor) -> Tensor:
        q, outside = self.filters(q)
        return torch.where(outside, torch.inf, l2(q, 3).flatten(-3).squeeze(-1) / self.B**0.5)

    def maximizer(self, m: Tensor) -> Tensor:
        return (self.B**0.5 * unit(self.moments(m), 3)).to(m.dtype)
