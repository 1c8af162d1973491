"""A filter seen at frequencies: K lags are K complex numbers at ω_j = 2πj/(2K-1), and all inner products agree
(Parseval).

    Q(ω) = Σ_k Q[k] e^{-iωk}      S(ω) = Σ_{|k|<K} R[|k|] e^{-iωk} = R[0] + 2·Σ_{k>0} R[k] cos ωk

`dim` is the axis of lags, and of frequencies, counted from the end (-2 for diagonals, -3 for matrices). On this grid
⟨Q, R⟩ = Σ_k ⟨Q[k], R[k]⟩ = Σ_j w_j·⟨Re Q(ω_j), S(ω_j)⟩: the power of a causal filter depends on the real part of its
response alone, and every real part belongs to one causal filter.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["density", "from_real_part", "impulse", "response", "weights"]


def response(q: Tensor, dim: int) -> Tensor:
    """Q(ω_j), complex, in place of the lags on the axis `dim`."""
    return torch.fft.rfft(q, n=2 * q.shape[dim] - 1, dim=dim)


def impulse(frequencies: Tensor, dim: int) -> Tensor:
    """The lags Q[k] from Q(ω_j)."""
    k = frequencies.shape[dim]
    return torch.fft.irfft(frequencies, n=2 * k - 1, dim=dim).narrow(dim, 0, k)


def density(r: Tensor, dim: int) -> Tensor:
    """S(ω_j), real: the spectral density of gradients with these lag moments."""
    return 2 * response(r, dim).real - r.narrow(dim, 0, 1)


def from_real_part(h: Tensor, dim: int) -> Tensor:
    """The causal filter with Re Q(ω_j) = h_j: the part of the two-sided one that lies ahead, folded onto the past."""
    twice = torch.full((h.shape[dim],) + (1,) * (-1 - dim), 2.0, dtype=h.dtype, device=h.device)
    twice[0] = 1
    return twice * impulse(torch.complex(h, torch.zeros_like(h)), dim)


def weights(lags: int, like: Tensor) -> Tensor:  # (lags,)
    """w_j: every frequency but 0 stands for two."""
    w = torch.full((lags,), 2 / (2 * lags - 1), dtype=like.dtype, device=like.device)
    w[0] /= 2
    return w
