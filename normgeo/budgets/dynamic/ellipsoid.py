"""Filters whose cost is measured in a metric on gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.checks import metric, positive
from normgeo.budgets.dynamic.base import Dynamic
from normgeo.linalg import eigh

__all__ = ["DynamicEllipsoid"]


@dataclass(frozen=True, eq=False)
class DynamicEllipsoid(Dynamic):
    """{Q : Σ_k tr(Q[k] W Q[k]) ≤ B, range Q[k] within range W};  W Q[k] + Q[k] W = c·sym R[k], one c for all lags.

    This is the data-metric budget of Cor. 9(iii) for W = R[0]. The printed Q* = α·(projection on the support of R) is
    its maximizer only if R[k] = 0 for k > 0 (white noise, X0-4). In the eigenbasis of W, qᵢⱼ ∝ rᵢⱼ/(wᵢ + wⱼ). Off the
    range of a singular W steps would cost nothing, so filters are confined to it.

    >>> lags = torch.stack([torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([0.5, 0.0]))])
    >>> DynamicEllipsoid(lags[0], B=5.25).maximizer(lags).diagonal(dim1=1, dim2=2)
    tensor([[1.0000, 1.0000],
            [0.5000, 0.0000]])
    """

    W: Tensor
    B: float = 1.0
    hilbert = True

    def __post_init__(self) -> None:
        positive("DynamicEllipsoid", B=self.B)
        metric("DynamicEllipsoid", self.W)

    def gauge(self, q: Tensor) -> Tensor:
        q, outside = self.filters(q)
        w, u = self._eigen(q)
        seen = u.mT @ q @ u
        size = seen.abs().amax((-3, -2, -1))
        off = torch.where((w <= 0).unsqueeze(-1), seen, 0).abs().amax((-3, -2, -1))
        outside = outside | (off > 64 * w.shape[-1] * torch.finfo(q.dtype).eps * size)
        cost = (w.unsqueeze(-1) * seen.square()).sum((-3, -2, -1))
        return torch.where(outside, torch.inf, (cost / self.B).sqrt())

    def maximizer(self, m: Tensor) -> Tensor:
        r = self.moments(m)
        w, u = self._eigen(r)
        seen = u.mT @ r @ u
        seen = seen / _or_one(seen.abs().amax((-3, -2, -1), keepdim=True))
        live = (w > 0).unsqueeze(-1) & (w > 0).unsqueeze(-2)
        q = torch.where(live, seen, 0) / torch.where(live, w.unsqueeze(-1) + w.unsqueeze(-2), 1)
        cost = (w.unsqueeze(-1) * q.square()).sum((-3, -2, -1), keepdim=True)
        q = u @ (q * (self.B / _or_one(cost)).sqrt()) @ u.mT
        return ((q + q.mT) / 2).to(m.dtype)

    def _eigen(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues of W, 0 up to rounding made 0, and eigenvectors."""
        w, u = eigh(self.W.to(like))
        return torch.where(w > 16 * w.shape[-1] * torch.finfo(w.dtype).eps * w[..., -1:], w, 0), u


def _or_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1)
