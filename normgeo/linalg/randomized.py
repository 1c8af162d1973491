"""The polar factor of a matrix that is nearly of low rank, by a randomized singular value decomposition."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.linalg.polar import SVD, Polar
from normgeo.linalg.scale import exponent, shift

__all__ = ["RandomizedSVD"]


@dataclass(frozen=True)
class RandomizedSVD(Polar):
    """P = Q·polar(QᵀG), with Q an orthonormal basis of the range of GΩ, Ω (n, rank) Gaussian from a fixed seed.

    A semi-orthogonal matrix P with ⟨G, P⟩ = Σσᵢ(QᵀG) ≤ Σσᵢ(G): what it finds of the nuclear norm is never too much, and is
    all of it if the rank of G is at most `rank`. Costs O(m·n·rank); matrices with min(m, n) ≤ rank are decomposed exactly.
    Source: arXiv 0909.4061, algorithm 4.1.

    >>> g = torch.ones(100, 100)
    >>> p = RandomizedSVD(rank=4)(g)
    >>> round(float((g * p).sum()), 1), round(float(torch.linalg.svdvals(g).sum()), 1)
    (100.0, 100.0)
    """

    rank: int = 32
    seed: int = 0

    def __call__(self, g: Tensor) -> Tensor:
        if min(g.shape[-2:]) <= self.rank:
            return SVD()(g)
        x = shift(g, -exponent(g, 2))
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        if x.shape[-2] < x.shape[-1]:
            return self._tall(x.mT).mT.to(g.dtype)
        return self._tall(x).to(g.dtype)

    def _tall(self, x: Tensor) -> Tensor:  # (*b, m, n) with m ≥ n
        random = torch.Generator().manual_seed(self.seed)
        omega = torch.randn(x.shape[-1], self.rank, generator=random, dtype=x.dtype).to(x.device)
        q, _ = torch.linalg.qr(x @ omega)
        return q @ SVD()(q.mT @ x)
