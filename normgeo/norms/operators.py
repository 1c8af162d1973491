"""Norms of matrices as operators: how much can the output change when the matrix does?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.linalg import TIGHT, Polar, l2
from normgeo.norms.base import Norm, gaussian, trailing
from normgeo.norms.spectral import Spectral, capped, singular_values
from normgeo.norms.vectors import rms, rms_project, rms_unit, sign, unit

__all__ = ["L1ToLinf", "L1ToRMS", "RMSToLinf", "RMSToRMS"]


@dataclass(frozen=True)
class RMSToRMS(Norm):
    """W (out, in): ‖W‖ = √(in/out)·σ_max(W) = max RMS(Wx) over RMS(x) ≤ 1;  ‖G‖* = √(out/in)·Σσᵢ(G);
    dualize(G) = √(out/in)·U Vᵀ, with U Vᵀ from `polar`. `norm` and `dual_norm` decompose exactly.
    Source: eq. 4.2 of Bernstein & Newhouse, arXiv 2409.20325.

    >>> RMSToRMS().norm(2 * torch.eye(3)), RMSToRMS().dual_norm(torch.eye(3))
    (tensor(2.), tensor(3.))
    """

    polar: Polar = TIGHT
    ndim = 2

    def norm(self, w: Tensor) -> Tensor:
        return singular_values(w).amax(-1) / _aspect(w)

    def dual_norm(self, g: Tensor) -> Tensor:
        return singular_values(g).sum(-1) * _aspect(g)

    def dualize(self, g: Tensor) -> Tensor:
        p, c = self.polar(trailing(g, 2)), _aspect(g)
        return (p if c == 1 else c * p).to(g.dtype)  # one pass less over square ones

    def as_spectral(self, shape: Sequence[int]) -> tuple[Norm, float]:
        return Spectral(self.polar), math.sqrt(shape[0] / shape[1])

    def project(self, w: Tensor) -> Tensor:
        return capped(w, _aspect(w))

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        c = _aspect(w)
        return c * f(w / c)

    def init(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """√(out/in) times a random semi-orthogonal matrix: every singular value has the size that the norm allows."""
        g = gaussian(shape, generator, dtype, device)
        tall = g.shape[-2] >= g.shape[-1]
        q, r = torch.linalg.qr(g if tall else g.mT)
        q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)  # else not uniform (Haar)
        return ((q if tall else q.mT) * _aspect(g)).to(dtype or torch.get_default_dtype())


@dataclass(frozen=True)
class L1ToRMS(Norm):
    """An embedding table (num, dim), one row picked at a time: ‖W‖ = maxᵢ RMS(wᵢ);  ‖G‖* = Σᵢ √dim·‖gᵢ‖₂;
    dualize(G) = each row over its RMS, zero rows staying zero (denormal rows do not overflow).

    >>> L1ToRMS().dualize(torch.tensor([[1e-44, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    tensor([[2., 0., 0., 0.],
            [0., 0., 0., 0.]])
    """

    ndim = 2
    independent = 1

    def norm(self, w: Tensor) -> Tensor:
        return rms(trailing(w, 2)).squeeze(-1).amax(-1)

    def dual_norm(self, g: Tensor) -> Tensor:
        g = trailing(g, 2)
        return l2(g, 1).squeeze(-1).sum(-1) * math.sqrt(g.shape[-1])

    def dualize(self, g: Tensor) -> Tensor:
        return rms_unit(trailing(g, 2)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        return rms_project(trailing(w, 2)).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        c = math.sqrt(w.shape[-1])
        return c * f(w.unsqueeze(-2) / c).squeeze(-2)


@dataclass(frozen=True)
class RMSToLinf(Norm):
    """The head of a classifier, W (classes, d), measured by its largest logit: ‖W‖ = max |Wx|∞ over RMS(x) ≤ 1
    = √d·maxᵢ ‖wᵢ‖₂;  ‖G‖* = Σᵢ ‖gᵢ‖₂/√d;  dualize(G) = each row at ℓ2 size 1/√d. It is d times `L1ToRMS`.

    >>> RMSToLinf().norm(torch.eye(4))
    tensor(2.)
    """

    ndim = 2
    independent = 1

    def norm(self, w: Tensor) -> Tensor:
        w = trailing(w, 2)
        return l2(w, 1).squeeze(-1).amax(-1) * math.sqrt(w.shape[-1])

    def dual_norm(self, g: Tensor) -> Tensor:
        g = trailing(g, 2)
        return l2(g, 1).squeeze(-1).sum(-1) / math.sqrt(g.shape[-1])

    def dualize(self, g: Tensor) -> Tensor:
        return unit(trailing(g, 2), 1, g.shape[-1] ** -0.5).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        x = trailing(w, 2)
        return (x / (l2(x, 1) * math.sqrt(x.shape[-1])).clamp_min(1)).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        c = math.sqrt(w.shape[-1])
        return f(w.unsqueeze(-2) * c).squeeze(-2) / c


@dataclass(frozen=True)
class L1ToLinf(Norm):
    """‖W‖ = max |Wx|∞ over ‖x‖₁ ≤ 1 = max|wᵢⱼ|;  ‖G‖* = Σ|gᵢⱼ|;  dualize(G) = sign(G). The norm behind sign descent.

    >>> L1ToLinf().dualize(torch.tensor([[0.5, -2.0]]))
    tensor([[ 1., -1.]])
    """

    ndim = 2
    entrywise = True

    def norm(self, w: Tensor) -> Tensor:
        return trailing(w, 2).abs().amax((-2, -1))

    def dual_norm(self, g: Tensor) -> Tensor:
        return trailing(g, 2).abs().sum((-2, -1))

    def dualize(self, g: Tensor) -> Tensor:
        return sign(trailing(g, 2)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        return trailing(w, 2).clamp(-1, 1).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return f(w[..., None, None])[..., 0, 0]


def _aspect(w: Tensor) -> float:
    return math.sqrt(w.shape[-2] / w.shape[-1])
