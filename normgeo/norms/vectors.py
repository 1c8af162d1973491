"""Norms on vectors: the last axis."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.linalg import exponent, host_sees, l2, shift
from normgeo.norms.base import Norm, trailing
from normgeo.norms.gauges import simplex_cap

__all__ = ["L1", "L2", "RMS", "Absolute", "Linf", "rms", "rms_project", "rms_unit", "sign", "unit"]


def unit(g: Tensor, ndim: int, length: float = 1.0) -> Tensor:  # (*b, *d) -> (*b, *d)
    """length·g/‖g‖₂ over the last `ndim` axes, and 0 for 0, of numbers of any size, denormals included.

    Where the squares of an accumulated ‖g‖₂ may have left the range of the dtype, that slice is measured again in another
    unit, a power of two. On a device all are, since looking would wait; on the host only if there is one.
    """
    if g.dtype == torch.float16:  # too few exponents for its denormals to become squares in any unit
        return unit(g.float(), ndim, length).to(g.dtype)
    axes, most = tuple(range(-ndim, 0)), math.frexp(torch.finfo(g.dtype).max)[1]
    low, high = 2.0 ** (-5 * most // 16), 2.0 ** (15 * most // 32)
    x, size = g, torch.linalg.vector_norm(g, dim=axes, keepdim=True)
    if not (host_sees(size) and low <= float(size.min()) <= float(size.max()) <= high):
        up, down = 2.0 ** (3 * most // 4), 2.0 ** (-3 * most // 4)
        x = g * torch.ones_like(size).masked_fill(size < low, up).masked_fill(size > high, down)
        size = torch.linalg.vector_norm(x, dim=axes, keepdim=True)
    # A nonzero x now has ‖x‖₂ above this bound, so the clamp only meets x = 0.
    return x * (length / size.clamp_min(2.0 ** (-most // 2)))


def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1, and NaN for NaN and Inf, which torch's own sign would hide."""
    return x.sign().add_(x, alpha=0)


def rms_unit(g: Tensor) -> Tensor:  # (*b, d) -> (*b, d)
    """g / RMS(g), and 0 for 0."""
    return unit(g, 1, math.sqrt(g.shape[-1]))


def rms(w: Tensor) -> Tensor:  # (*b, d) -> (*b, 1)
    """RMS(w), without the detour over ‖w‖₂ = √d·RMS(w), which can overflow."""
    e = exponent(w, 1)
    return shift(l2(shift(w, -e), 1) / math.sqrt(w.shape[-1]), e)


def rms_project(w: Tensor) -> Tensor:  # (*b, d) -> (*b, d)
    """w / max(1, RMS(w))."""
    return w / rms(w).clamp_min(1)


@dataclass(frozen=True)
class Absolute(Norm):
    """A scalar: ‖w‖ = |w|, its own dual; dualize(g) = sign(g).

    >>> Absolute().norm(torch.tensor(-3.0))
    tensor(3.)
    """

    ndim = 0
    entrywise = True

    def norm(self, w: Tensor) -> Tensor:
        return trailing(w, 0).abs()

    def dual_norm(self, g: Tensor) -> Tensor:
        return trailing(g, 0).abs()

    def dualize(self, g: Tensor) -> Tensor:
        return sign(trailing(g, 0)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        return trailing(w, 0).clamp(-1, 1).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return f(w[..., None, None])[..., 0, 0]


@dataclass(frozen=True)
class L1(Norm):
    """‖w‖ = Σ|wᵢ|;  ‖g‖* = max|gᵢ|;  dualize(g) = the signs of the largest entries, shared equally among ties.

    >>> L1().dualize(torch.tensor([1.0, -3.0, 3.0]))
    tensor([ 0.0000, -0.5000,  0.5000])
    """

    ndim = 1

    def norm(self, w: Tensor) -> Tensor:
        return trailing(w, 1).abs().sum(-1)

    def dual_norm(self, g: Tensor) -> Tensor:
        return trailing(g, 1).abs().amax(-1)

    def dualize(self, g: Tensor) -> Tensor:
        x = trailing(g, 1)
        largest = x.abs() == x.abs().amax(-1, keepdim=True)
        return (largest * sign(x) / largest.sum(-1, keepdim=True).clamp_min(1)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        x = trailing(w, 1)
        return (x.sign() * simplex_cap(x.abs())).to(w.dtype)


@dataclass(frozen=True)
class L2(Norm):
    """‖w‖ = √Σ wᵢ², its own dual; dualize(g) = g/‖g‖₂.

    >>> L2().dualize(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    ndim = 1
    euclidean = True

    def norm(self, w: Tensor) -> Tensor:
        return l2(trailing(w, 1), 1).squeeze(-1)

    def dual_norm(self, g: Tensor) -> Tensor:
        return self.norm(g)

    def dualize(self, g: Tensor) -> Tensor:
        return unit(trailing(g, 1), 1).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        x = trailing(w, 1)
        return (x / l2(x, 1).clamp_min(1)).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return f(w.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class RMS(Norm):
    """‖w‖ = ‖w‖₂/√d;  ‖g‖* = √d·‖g‖₂;  dualize(g) = g/RMS(g). The size of activations and biases.

    >>> RMS().norm(torch.tensor([3.0, -3.0, 3.0, 3.0]))
    tensor(3.)
    """

    ndim = 1
    euclidean = True

    def norm(self, w: Tensor) -> Tensor:
        return rms(trailing(w, 1)).squeeze(-1)

    def dual_norm(self, g: Tensor) -> Tensor:
        g = trailing(g, 1)
        return l2(g, 1).squeeze(-1) * math.sqrt(g.shape[-1])

    def dualize(self, g: Tensor) -> Tensor:
        return rms_unit(trailing(g, 1)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        return rms_project(trailing(w, 1)).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        c = math.sqrt(w.shape[-1])
        return c * f(w.unsqueeze(-1) / c).squeeze(-1)


@dataclass(frozen=True)
class Linf(Norm):
    """‖w‖ = max|wᵢ|;  ‖g‖* = Σ|gᵢ|;  dualize(g) = sign(g). The size of gains: RMS(γ ⊙ x) ≤ ‖γ‖·RMS(x).

    >>> Linf().dualize(torch.tensor([0.5, -2.0, 0.0]))
    tensor([ 1., -1.,  0.])
    """

    ndim = 1
    entrywise = True

    def norm(self, w: Tensor) -> Tensor:
        return trailing(w, 1).abs().amax(-1)

    def dual_norm(self, g: Tensor) -> Tensor:
        return trailing(g, 1).abs().sum(-1)

    def dualize(self, g: Tensor) -> Tensor:
        return sign(trailing(g, 1)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        return trailing(w, 1).clamp(-1, 1).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return f(w[..., None, None])[..., 0, 0]
