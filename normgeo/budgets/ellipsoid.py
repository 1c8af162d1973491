"""Ellipsoids: the cost of an operator measured in a metric on gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normgeo.budgets.barrier import Constraint
from normgeo.budgets.base import Budget, checked, floating
from normgeo.budgets.checks import metric, positive
from normgeo.budgets.shapes import below_zero
from normgeo.linalg import eigh, eigvalsh

__all__ = ["Ellipsoid"]


@dataclass(frozen=True, eq=False)
class Ellipsoid(Budget):
    """{Q ≽ 0 : tr(Q W Q) ≤ B, range Q within range W};  W Q + Q W = c·M₊ gives Q* (Lyapunov), c such that tr(Q*WQ*) = B.

    With W a moment of the gradients this is the data-metric budget: metric and objective are then two moments. If M
    commutes with W, Q* ∝ M₊W⁻¹; W = M gives the same gain to every direction (no whitening, X0-4), W = M^{3/2} gives
    M^{-1/2}, W = M² gives M⁻¹. In general, Q ∝ L⁻¹(M + Z) with L(Q) = (WQ + QW)/2 and the Z ≽ 0 that makes Q ≽ 0: Z = 0 for
    M ≽ 0, else found by alternating directions to rounding (one eigendecomposition each, about 50). Off the range of a
    singular W moves would cost nothing, so the set would not be bounded: Q is confined to the range.

    >>> Ellipsoid(torch.diag(torch.tensor([1.0, 4.0]))).maximizer(torch.eye(2)).diagonal()
    tensor([0.8944, 0.2236])
    """

    W: Tensor = field(repr=False)
    B: float = 1.0
    _values: Tensor = field(init=False, repr=False)
    _vectors: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        positive("Ellipsoid", B=self.B)
        metric("Ellipsoid", self.W)
        for name, part in zip(("_values", "_vectors"), eigh(self.W), strict=True):
            object.__setattr__(self, name, part)  # the one decomposition, for all questions

    def gauge(self, q: Tensor) -> Tensor:
        q = floating(q, self)
        w, u = self._eigen(q)
        seen = u.mT @ q @ u
        free = (w <= 0).expand(seen.shape[:-1])
        off = torch.where(free.unsqueeze(-1), seen, 0).flatten(-2).abs().amax(-1)
        outside = off > 64 * w.shape[-1] * torch.finfo(q.dtype).eps * seen.flatten(-2).abs().amax(-1)
        size = (w.unsqueeze(-1) * seen.square()).sum((-2, -1)).sqrt() / self.B**0.5
        return torch.where(below_zero(eigvalsh(q)) | outside, torch.inf, size)

    def maximizer(self, m: Tensor) -> Tensor:
        x = checked(m, self)
        w, u = self._eigen(x)
        seen = u.mT @ x @ u
        scale = seen.abs().amax((-2, -1), keepdim=True)
        q = _solve(w, seen / torch.where(scale > 0, scale, 1))
        cost = (w.unsqueeze(-1) * q.square()).sum((-2, -1), keepdim=True).sqrt()
        return (u @ (q * (self.B**0.5 / torch.where(cost > 0, cost, 1))) @ u.mT).to(m.dtype)

    def constraints(self) -> Sequence[Constraint]:
        return [lambda q: 1 - torch.trace(q @ self.W.to(q) @ q) / self.B]

    def _eigen(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues of W, 0 up to rounding made 0, and eigenvectors."""
        if self.W.shape[-1] != like.shape[-1]:
            raise ValueError(f"Ellipsoid has a metric of {self.W.shape[-1]} rows, but was given {like.shape[-1]}")
        w, u = self._values.to(like), self._vectors.to(like)
        noise = 16 * w.shape[-1] * torch.finfo(w.dtype).eps * w[..., -1:]
        return torch.where(w > noise, w, 0), u


def _solve(w: Tensor, m: Tensor) -> Tensor:  # (*b, d), (*b, d, d) -> (*b, d, d)
    """argmin ½⟨Q, L(Q)⟩ - ⟨Q, M⟩ over Q ≽ 0 within the range, in the eigenbasis of W, where L multiplies entries by
    (wᵢ + wⱼ)/2."""
    mean = (w.unsqueeze(-1) + w.unsqueeze(-2)) / 2
    live = (w > 0).to(m)
    live = live.unsqueeze(-1) * live.unsqueeze(-2)
    q = live * m / torch.where(live > 0, mean, 1)
    noise = 64 * w.shape[-1] * torch.finfo(w.dtype).eps * q.abs().amax((-2, -1), keepdim=True)
    one = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    # A Cholesky factor exists iff q is ≽ 0 up to noise, at a tenth of the cost of eigenvalues.
    if not bool(torch.linalg.cholesky_ex(q + noise.clamp_min(torch.finfo(w.dtype).tiny) * one).info.any()):
        return q
    # Alternating directions: the quadratic part entry by entry, the cone by an eigendecomposition; ρ balances both.
    rho = torch.where(w > 0, w, torch.inf).amin(-1).mul(w.amax(-1)).sqrt()[..., None, None]
    dual, cone = torch.zeros_like(m), torch.zeros_like(m)
    for _ in range(2000):
        q = live * (m + rho * (cone - dual)) / (mean + rho)
        s, v = eigh(q + dual)
        before, cone = cone, (v * s.clamp_min(0).unsqueeze(-2)) @ v.mT
        dual = dual + q - cone
        change = torch.maximum((q - cone).abs().amax(), (cone - before).abs().amax())
        if change <= 20 * torch.finfo(m.dtype).eps * cone.abs().amax().clamp_min(1e-3):
            break
    return live * cone
