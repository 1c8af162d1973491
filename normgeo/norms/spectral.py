"""Norms of matrices that see only the singular values: a symmetric gauge f(σ) is a norm, its dual gauge the dual norm."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.linalg import TIGHT, Polar, exponent, l2, shift, svd, svdvals
from normgeo.norms.base import Norm, trailing
from normgeo.norms.gauges import ky_fan_cap, power_cap, simplex_cap
from normgeo.norms.vectors import unit

__all__ = ["Frobenius", "KyFan", "Nuclear", "Schatten", "Spectral", "capped", "decomposed", "singular_values"]


def decomposed(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (*b, m, n) -> (*b, m, k), (*b, k), (*b, k, n)
    """U, σ, Vᵀ of matrices of any scale; σ is infinite where it leaves the range of the dtype."""
    w = trailing(w, 2)
    e = exponent(w, 2)
    u, s, vt = svd(shift(w, -e))
    return u, shift(s, e.squeeze(-1)), vt


def capped(w: Tensor, cap: float) -> Tensor:  # (*b, m, n) -> (*b, m, n)
    """w with its singular values at most `cap`: w itself, bit for bit, where they are."""
    u, s, vt = decomposed(w)
    inside = (s.amax(-1) <= cap)[..., None, None]
    return torch.where(inside, trailing(w, 2), (u * s.clamp_max(cap).unsqueeze(-2)) @ vt).to(w.dtype)


def singular_values(w: Tensor) -> Tensor:  # (*b, m, n) -> (*b, k)
    """σ in descending order, of matrices of any scale."""
    w = trailing(w, 2)
    e = exponent(w, 2)
    return shift(svdvals(shift(w, -e)), e.squeeze(-1))


class _Gauge(Norm):
    """‖W‖ = f(σ(W)), ‖G‖* = f*(σ(G)); dualize and project act on σ and keep the singular vectors (von Neumann)."""

    ndim = 2

    @abstractmethod
    def gauge(self, s: Tensor) -> Tensor:  # (*b, k) -> (*b,)
        """f of σ ≥ 0 in descending order."""

    @abstractmethod
    def polar_gauge(self, s: Tensor) -> Tensor:  # (*b, k) -> (*b,)
        """f*."""

    @abstractmethod
    def best(self, s: Tensor) -> Tensor:  # (*b, k) -> (*b, k)
        """argmax ⟨s, t⟩ over f(t) ≤ 1, for s with largest entry in [1/2, √(mn)) or 0."""

    @abstractmethod
    def cap(self, s: Tensor) -> Tensor:  # (*b, k) -> (*b, k)
        """The nearest t with f(t) ≤ 1."""

    def norm(self, w: Tensor) -> Tensor:
        return self.gauge(singular_values(w))

    def dual_norm(self, g: Tensor) -> Tensor:
        return self.polar_gauge(singular_values(g))

    def dualize(self, g: Tensor) -> Tensor:
        x = trailing(g, 2)
        u, s, vt = svd(shift(x, -exponent(x, 2)))
        return ((u * self.best(s).unsqueeze(-2)) @ vt).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        u, s, vt = decomposed(w)
        return ((u * self.cap(s).unsqueeze(-2)) @ vt).to(w.dtype)


@dataclass(frozen=True)
class Spectral(Norm):
    """‖W‖ = σ_max(W);  ‖G‖* = Σ σᵢ(G);  dualize(G) = U Vᵀ, from `polar`.

    >>> Spectral().norm(torch.diag(torch.tensor([3.0, 1.0])))
    tensor(3.)
    """

    polar: Polar = TIGHT
    ndim = 2

    def norm(self, w: Tensor) -> Tensor:
        return singular_values(w).amax(-1)

    def dual_norm(self, g: Tensor) -> Tensor:
        return singular_values(g).sum(-1)

    def dualize(self, g: Tensor) -> Tensor:
        return self.polar(trailing(g, 2)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        return capped(w, 1)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return f(w)


@dataclass(frozen=True)
class Frobenius(Norm):
    """‖W‖ = √Σ wᵢⱼ², its own dual;  dualize(G) = G/‖G‖_F.

    >>> Frobenius().norm(torch.tensor([[3.0, 4.0]]))
    tensor(5.)
    """

    ndim = 2
    euclidean = True

    def norm(self, w: Tensor) -> Tensor:
        return l2(trailing(w, 2), 2).squeeze((-2, -1))

    def dual_norm(self, g: Tensor) -> Tensor:
        return self.norm(g)

    def dualize(self, g: Tensor) -> Tensor:
        return unit(trailing(g, 2), 2).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        x = trailing(w, 2)
        return (x / l2(x, 2).clamp_min(1)).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return f(w.flatten(-2).unsqueeze(-1)).reshape(w.shape)


@dataclass(frozen=True)
class Nuclear(_Gauge):
    """‖W‖ = Σ σᵢ(W);  ‖G‖* = σ_max(G);  dualize(G) = u₁v₁ᵀ, averaged over singular values that tie with the first.

    >>> Nuclear().dualize(torch.diag(torch.tensor([3.0, 1.0])))
    tensor([[1., 0.],
            [0., 0.]])
    """

    def gauge(self, s: Tensor) -> Tensor:
        return s.sum(-1)

    def polar_gauge(self, s: Tensor) -> Tensor:
        return s[..., 0]

    def best(self, s: Tensor) -> Tensor:
        first = (s >= s[..., :1] * (1 - _noise(s))) & (s > 0)
        return first / first.sum(-1, keepdim=True).clamp_min(1).to(s)

    def cap(self, s: Tensor) -> Tensor:
        return simplex_cap(s)


@dataclass(frozen=True)
class Schatten(_Gauge):
    """‖W‖ = (Σ σᵢᵖ)^(1/p), 1 < p < ∞;  dual 1/p + 1/q = 1;  dualize(G) = U diag((σ/‖σ‖_q)^(q-1)) Vᵀ.

    p = 1 is `Nuclear`, 2 `Frobenius`, ∞ `Spectral`. The projection has no closed form and is found numerically.

    >>> round(Schatten(3.0).norm(torch.eye(8)).item(), 4)
    2.0
    """

    p: float

    def __post_init__(self) -> None:
        if not (1 < self.p < math.inf):
            raise ValueError(f"Schatten needs 1 < p < ∞, got {self.p}; p = 1 is Nuclear(), p = ∞ is Spectral()")

    @property
    def q(self) -> float:
        """The dual exponent p/(p - 1)."""
        return self.p / (self.p - 1)

    def gauge(self, s: Tensor) -> Tensor:
        return _power_norm(s, self.p)

    def polar_gauge(self, s: Tensor) -> Tensor:
        return _power_norm(s, self.q)

    def best(self, s: Tensor) -> Tensor:
        largest = s[..., :1].clamp_min(0.25)
        t = (s / largest) ** (self.q - 1)
        return t / ((t**self.p).sum(-1, keepdim=True) ** (1 / self.p)).clamp_min(0.25)

    def cap(self, s: Tensor) -> Tensor:
        return power_cap(s, self.p)


@dataclass(frozen=True)
class KyFan(_Gauge):
    """‖W‖ = σ₁ + ... + σ_k;  ‖G‖* = max(σ₁(G), Σσᵢ(G)/k);  dualize(G) = u₁v₁ᵀ if the first is larger, else U Vᵀ/k.

    k = 1 is `Spectral`, k = min(m, n) is `Nuclear`. The projection is found numerically.

    >>> KyFan(2).norm(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    tensor(5.)
    """

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"KyFan needs k ≥ 1, got {self.k}")

    def gauge(self, s: Tensor) -> Tensor:
        return s[..., : self.k].sum(-1)

    def polar_gauge(self, s: Tensor) -> Tensor:
        return torch.maximum(s[..., 0], s.sum(-1) / self.k)

    def best(self, s: Tensor) -> Tensor:
        spread = s.sum(-1, keepdim=True) > self.k * s[..., :1]
        flat = (s > 4 * s.shape[-1] * torch.finfo(s.dtype).eps * s[..., :1]).to(s) / self.k
        return torch.where(spread, flat, Nuclear().best(s))

    def cap(self, s: Tensor) -> Tensor:
        return ky_fan_cap(s, self.k)


def _power_norm(s: Tensor, p: float) -> Tensor:  # (*b, k) -> (*b,)
    largest = s.amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, 1)
    return (scale * ((s / scale) ** p).sum(-1, keepdim=True) ** (1 / p)).squeeze(-1)


def _noise(s: Tensor) -> float:
    return 8 * s.shape[-1] * torch.finfo(s.dtype).eps
