"""Filters in a metric that is a power of the moment at lag 0: Adam's scale with a memory for each coordinate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.checks import positive
from normgeo.budgets.dynamic.diagonal import DynamicDiagonal

__all__ = ["DynamicDataMetric"]


@dataclass(frozen=True)
class DynamicDataMetric:
    """`DynamicDiagonal` with the costs cⱼ = vⱼᵖ, v = R[0] on the diagonal:  qⱼ[k] ∝ vⱼ^{1-p}·ρⱼ[k], ρⱼ[k] =
    Rⱼⱼ[k]/Rⱼⱼ[0].

    p = 1 keeps to the autocorrelation of each coordinate, p = 3/2 divides by √v as RMSProp does, p = 2 by v: the
    coordinate's scale and its memory, both from its own gradients. The set moves with R, so this is a family of
    budgets, `at(R)` one of them, and its power is no support function. damping: this share of the mean of v is added to
    all.

    >>> DynamicDataMetric(power=2.0, B=5.25).maximizer(torch.tensor([[1.0, 4.0], [0.5, 0.0]]))
    tensor([[1.5275, 0.3819],
            [0.7638, 0.0000]])
    """

    power: float = 1.5
    B: float = 1.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        positive("DynamicDataMetric", power=self.power, B=self.B)
        if not 0 <= self.damping < float("inf"):
            raise ValueError(f"DynamicDataMetric: damping must be a finite number ≥ 0, got {self.damping}")

    def at(self, r: Tensor) -> DynamicDiagonal:  # (lags, d)
        """The budget whose costs come from R; every Rⱼⱼ[0] must be > 0."""
        return DynamicDiagonal(self._scale(r).squeeze(-2) ** self.power, self.B)

    def maximizer(self, r: Tensor) -> Tensor:  # (*b, lags, d) -> (*b, lags, d)
        """The best filters; 0 for coordinates that have had no gradient."""
        v = self._scale(r)
        top = v.amax(-1, keepdim=True)
        # Only ratios matter to the direction; powers of them do not overflow.
        live = v > torch.finfo(v.dtype).tiny
        ratio = torch.where(live, v, 1) / torch.where(top > 0, top, 1)
        rho = torch.where(live, r / torch.where(live, v, 1), 0)
        q = rho * torch.where(live, ratio ** (1 - self.power), 0)
        cost = (q.square() * torch.where(live, ratio, 0) ** self.power).sum((-2, -1), keepdim=True) * top**self.power
        return q * (self.B / torch.where(cost > 0, cost, 1)).sqrt()

    def _scale(self, r: Tensor) -> Tensor:  # (*b, lags, d) -> (*b, 1, d)
        v = r[..., :1, :].clamp_min(0)
        return v + self.damping * v.mean(-1, keepdim=True)
