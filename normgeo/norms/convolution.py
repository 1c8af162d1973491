"""Norms of convolution kernels. At one output pixel a convolution is a matrix times the patch that it sees:

    y = W p,   W (out, in·taps),   RMS(p)² = mean over taps of RMS(x at the tap)² ≤ max over pixels of RMS(x)²

since taps in the padding are 0 and taps in the image are pixels. So the RMS→RMS norm of the unfolded kernel bounds RMS
over channels at every output pixel by the largest RMS over channels of an input pixel. Groups see different channels,

    RMS(y)² = mean over groups of RMS(y_g)² ≤ mean of ‖W_g‖²·RMS(p_g)² ≤ max ‖W_g‖² · RMS(p)²,

hence the maximum over groups. Matrices that share no entries make a norm whose dual is the sum of their duals.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from normgeo.linalg import TIGHT, Polar, svdvals
from normgeo.norms.base import Norm, trailing
from normgeo.norms.operators import RMSToRMS

__all__ = ["Conv", "ConvTransposed", "circulant_norm"]

Taps = tuple[Any, ...]


@dataclass(frozen=True)
class _Unfolded(Norm):
    """Kernels with `spatial` trailing axes; the taps that meet at one output pixel are one matrix per group."""

    spatial: int
    groups: int = 1
    polar: Polar = TIGHT

    def __post_init__(self) -> None:
        if self.spatial < 1 or self.groups < 1:
            raise ValueError(
                f"a convolution has ≥ 1 spatial axes and groups, got spatial={self.spatial}, groups={self.groups}"
            )

    @property
    def ndim(self) -> int:
        return 2 + self.spatial

    @property
    @abstractmethod
    def _pattern(self) -> str:
        """The stored kernel with its taps on one axis, as g matrices; an einops pattern."""

    def _phases(self, kernel: Sequence[int]) -> list[Taps]:
        """Indices of the taps that meet at one output pixel; each tap is in one of them."""
        return [(...,)]

    def norm(self, w: Tensor) -> Tensor:
        inner = RMSToRMS(self.polar)
        return torch.stack([inner.norm(m).amax(-1) for m in self._matrices(trailing(w, self.ndim))]).amax(0)

    def dual_norm(self, g: Tensor) -> Tensor:
        inner = RMSToRMS(self.polar)
        return torch.stack([inner.dual_norm(m).sum(-1) for m in self._matrices(trailing(g, self.ndim))]).sum(0)

    def dualize(self, g: Tensor) -> Tensor:
        return self._each(RMSToRMS(self.polar).dualize, trailing(g, self.ndim)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        return self._each(RMSToRMS(self.polar).project, trailing(w, self.ndim)).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return self._each(lambda m: RMSToRMS(self.polar).on_matrices(f, m), w)

    def on_rows(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return self._each(f, w)

    def init(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Every singular value of every matrix has the size that the norm allows."""

        def draw(m: Tensor) -> Tensor:
            return RMSToRMS().init(m.shape, generator, dtype, device)

        return self._each(draw, torch.empty(*shape, dtype=dtype, device=device))

    def _matrices(self, w: Tensor) -> list[Tensor]:  # each (*b, g, out_g, in_g·taps)
        return [self._unfold(w[taps]) for taps in self._phases(w.shape[-self.spatial :])]

    def _each(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        """Every matrix replaced by f of it."""
        out = torch.empty_like(w)
        left, right = self._pattern.split(" -> ")
        for taps in self._phases(w.shape[-self.spatial :]):
            part = w[taps]
            flat = part.flatten(-self.spatial)
            back = rearrange(f(self._unfold(part)), f"{right} -> {left}", g=self.groups, k=flat.shape[-1])
            out[taps] = back.reshape(part.shape)
        return out

    def _unfold(self, w: Tensor) -> Tensor:
        if w.shape[-self.ndim] % self.groups:
            raise ValueError(f"{w.shape[-self.ndim]} channels do not divide into {self.groups} groups")
        return rearrange(w.flatten(-self.spatial), self._pattern, g=self.groups)


@dataclass(frozen=True)
class Conv(_Unfolded):
    """W (out, in/groups, *kernel) with k taps: ‖W‖ = max over groups of √(k·in_g/out_g)·σ_max(W_g unfolded to (out_g,
    in_g·k)); ‖G‖* = Σ √(out_g/(k·in_g))·Σσᵢ(G_g); dualize(G) = √(out_g/(k·in_g))·U Vᵀ per group.

    Bounds RMS over channels at an output pixel where it is at most 1 at every input pixel, at any stride, padding and
    dilation. Tight for kernels that respond most to a constant patch; else loose, as a patch of RMS 1 may have a pixel of
    RMS √k.

    >>> Conv(2).norm(torch.ones(1, 1, 3, 3)).round(decimals=4)
    tensor(9.)
    """

    @property
    def _pattern(self) -> str:
        return "... (g o) i k -> ... g o (i k)"


@dataclass(frozen=True)
class ConvTransposed(_Unfolded):
    """W (in, out/groups, *kernel) of a transposed convolution: only the taps τ ≡ φ (mod stride) reach an output pixel of
    phase φ, and phases share no taps. With k_φ taps, ‖W‖ = max over φ and groups of √(k_φ·in_g/out_g)·σ_max(W_gφ unfolded
    to (out_g, in_g·k_φ)); ‖G‖* is the sum of the duals over φ and groups; dualize each.

    >>> kernel = torch.ones(1, 1, 4, 4)
    >>> [round(ConvTransposed(2, stride=(s, s)).norm(kernel).item(), 4) for s in (1, 2, 4)]
    [16.0, 4.0, 1.0]
    """

    stride: tuple[int, ...] = ()
    """one per spatial axis; () for 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride and (len(self.stride) != self.spatial or min(self.stride) < 1):
            raise ValueError(f"ConvTransposed: stride needs {self.spatial} whole numbers ≥ 1, got {self.stride}")

    @property
    def _pattern(self) -> str:
        return "... (g i) o k -> ... g o (i k)"

    def _phases(self, kernel: Sequence[int]) -> list[Taps]:
        steps = self.stride or (1,) * self.spatial
        each = [[slice(phase, None, s) for phase in range(min(s, k))] for s, k in zip(steps, kernel, strict=True)]
        return [(..., *taps) for taps in itertools.product(*each)]


def circulant_norm(w: Tensor, size: Sequence[int]) -> Tensor:  # (*b, out, in, *kernel) -> (*b,)
    """The exact ℓ2→ℓ2 norm over all pixels and channels of a convolution with circular padding and stride 1 on images of
    this size: the largest singular value over frequencies of the kernel's Fourier transform.

    Outside the modular norm, whose promise is about every pixel and not about their sum of squares; and the kernel's
    support leaves its dual without a closed form. For measuring.

    >>> circulant_norm(torch.ones(1, 1, 3, 3), (8, 8)).round(decimals=4)
    tensor(9.)
    """
    w = trailing(w, 2 + len(size))
    if any(k > n for k, n in zip(w.shape[-len(size) :], size, strict=True)):
        raise ValueError(f"a kernel of shape {tuple(w.shape[-len(size) :])} is larger than the image {tuple(size)}")
    waves = torch.fft.fftn(w, s=tuple(size), dim=tuple(range(-len(size), 0)))
    matrices = rearrange(waves.flatten(-len(size)), "... o i f -> ... f o i")
    return svdvals(matrices).real.flatten(-2).amax(-1)
