"""The Euclidean norm of a metric A, singular or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.norms.base import Norm, trailing
from normgeo.norms.gauges import root

__all__ = ["Weighted"]


@dataclass(frozen=True, eq=False)
class Weighted(Norm):
    """‖w‖ = √(wᵀA w), A ≽ 0 (d, d);  ‖g‖* = √(gᵀA⁺g) if g is in the range of A, else +∞;  dualize(g) = A⁺g/‖g‖*.

    For a singular A this is a seminorm: moves in its null space cost nothing, so against a gradient off the range the
    best is unbounded; `dualize` then gives the best within the range. Two Weighted are equal if they are one object.

    >>> metric = Weighted(torch.diag(torch.tensor([4.0, 1.0, 0.0])))
    >>> metric.norm(torch.tensor([1.0, 0.0, 7.0])), metric.dual_norm(torch.tensor([2.0, 0.0, 1.0]))
    (tensor(2.), tensor(inf))
    """

    matrix: Tensor
    ndim = 1

    def __post_init__(self) -> None:
        a = self.matrix
        if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.isfinite().all():
            raise ValueError(f"Weighted needs a finite square matrix, got shape {tuple(a.shape)}")
        values = torch.linalg.eigvalsh(a.double())
        if not torch.allclose(a, a.mT) or values[0] < -1e-6 * values[-1].abs():
            raise ValueError(f"Weighted needs a symmetric matrix ≽ 0; its smallest eigenvalue is {values[0]:.3g}")

    def norm(self, w: Tensor) -> Tensor:
        return ((trailing(w, 1) @ self._factor(w, 0.5)).square().sum(-1)).sqrt()

    def dual_norm(self, g: Tensor) -> Tensor:
        x = trailing(g, 1)
        size = (x @ self._factor(g, -0.5)).square().sum(-1).sqrt()
        outside = (x - x @ self._factor(g, 0.0)).abs().amax(-1) > self._cut(x.dtype) * x.abs().amax(-1)
        return torch.where(outside, torch.inf, size)

    def dualize(self, g: Tensor) -> Tensor:
        root = self._factor(g, -0.5)
        x = trailing(g, 1)
        x = x / x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        white = x @ root
        size = torch.linalg.vector_norm(white, dim=-1, keepdim=True)
        return (white / torch.where(size == 0, 1, size) @ root).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        """(I + λA)⁻¹w with the λ ≥ 0 that brings it to norm 1, by bisection in the eigenbasis."""
        values, vectors = torch.linalg.eigh(self.matrix.to(trailing(w, 1)))
        values = values.clamp_min(0)
        y = trailing(w, 1) @ vectors

        def size(lam: Tensor) -> Tensor:
            return (values * (y / (1 + lam * values)).square()).sum(-1, keepdim=True)

        zero = torch.zeros_like(y[..., :1])
        least = values[values > self._cut(values.dtype) * values[-1]].min() if values[-1] > 0 else values.new_ones(())
        lam = root(lambda lam: 1 - size(lam), zero, size(zero).sqrt() / least)
        lam = torch.where(size(zero) > 1, lam, 0)
        return (y / (1 + lam * values) @ vectors.mT).to(w.dtype)

    def _factor(self, like: Tensor, power: float) -> Tensor:
        """A^power on the range of A and 0 off it, symmetric."""
        values, vectors = torch.linalg.eigh(self.matrix.to(trailing(like, 1)))
        live = values > self._cut(values.dtype) * values[-1]
        powered = torch.where(live, torch.where(live, values, 1) ** power, 0)
        return (vectors * powered) @ vectors.mT

    def _cut(self, dtype: torch.dtype) -> float:
        return 16 * self.matrix.shape[0] * torch.finfo(dtype).eps
