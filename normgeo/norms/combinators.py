"""Norms made of norms."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import parse_shape, rearrange
from torch import Tensor

from normgeo.linalg import exponent, shift
from normgeo.norms.base import Norm, trailing
from normgeo.norms.gauges import root
from normgeo.norms.vectors import unit

__all__ = ["Blocks", "L2OfBlocks", "Scaled", "SumOfBlocks", "Viewed"]


@dataclass(frozen=True)
class Scaled(Norm):
    """‖w‖ = c·‖w‖_inner, so the unit ball is that of `inner` divided by c; ‖g‖* = ‖g‖*_inner / c.

    >>> from normgeo.norms import RMS
    >>> Scaled(RMS(), 2.0).norm(torch.ones(4)), (4 * RMS()).dualize(torch.ones(4))
    (tensor(2.), tensor([0.2500, 0.2500, 0.2500, 0.2500]))
    """

    inner: Norm
    factor: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"a norm can only be scaled by a finite factor > 0, got {self.factor}")

    @property
    def ndim(self) -> int:
        return self.inner.ndim

    @property
    def independent(self) -> int:
        return self.inner.independent

    @property
    def entrywise(self) -> bool:
        return self.inner.entrywise

    @property
    def euclidean(self) -> bool:
        return self.inner.euclidean

    def norm(self, w: Tensor) -> Tensor:
        return self.factor * self.inner.norm(w)

    def dual_norm(self, g: Tensor) -> Tensor:
        return self.inner.dual_norm(g) / self.factor

    def dualize(self, g: Tensor) -> Tensor:
        return self.inner.dualize(g) / self.factor

    def project(self, w: Tensor) -> Tensor:
        return self.inner.project(w * self.factor) / self.factor

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return self.inner.on_matrices(f, w * self.factor) / self.factor

    def on_rows(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return self.inner.on_rows(f, w)

    def init(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return self.inner.init(shape, generator, dtype, device) / self.factor


@dataclass(frozen=True)
class Blocks(Norm):
    """Interchangeable blocks w (n, *d), heads or experts: ‖w‖ = maxᵢ ‖wᵢ‖_inner; ‖g‖* = Σᵢ ‖gᵢ‖*_inner; dualize each.

    >>> from normgeo.norms import RMS
    >>> Blocks(RMS()).norm(torch.tensor([[1.0, 1.0], [5.0, 5.0]]))
    tensor(5.)
    """

    inner: Norm

    @property
    def ndim(self) -> int:
        return 1 + self.inner.ndim

    @property
    def independent(self) -> int:
        return 1 + self.inner.independent

    def norm(self, w: Tensor) -> Tensor:
        return self.inner.norm(trailing(w, self.ndim)).amax(-1)

    def dual_norm(self, g: Tensor) -> Tensor:
        return self.inner.dual_norm(trailing(g, self.ndim)).sum(-1)

    def dualize(self, g: Tensor) -> Tensor:
        return self.inner.dualize(g)

    def project(self, w: Tensor) -> Tensor:
        return self.inner.project(w)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return self.inner.on_matrices(f, w)

    def on_rows(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return self.inner.on_rows(f, w)

    def init(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return self.inner.init(shape, generator, dtype, device)


@dataclass(frozen=True)
class SumOfBlocks(Norm):
    """Blocks w (n, *d): ‖w‖ = Σᵢ ‖wᵢ‖_inner;  ‖g‖* = maxᵢ ‖gᵢ‖*_inner;  dualize: all of the step goes to the block with
    the largest dual norm (shared among ties). The projection searches for the blocks' radii, by hundreds of projections.

    >>> from normgeo.norms import RMS
    >>> SumOfBlocks(RMS()).dualize(torch.tensor([[1.0, 1.0], [5.0, 5.0]])).round(decimals=4)
    tensor([[0., 0.],
            [1., 1.]])
    """

    inner: Norm

    @property
    def ndim(self) -> int:
        return 1 + self.inner.ndim

    def norm(self, w: Tensor) -> Tensor:
        return self.inner.norm(trailing(w, self.ndim)).sum(-1)

    def dual_norm(self, g: Tensor) -> Tensor:
        return self.inner.dual_norm(trailing(g, self.ndim)).amax(-1)

    def dualize(self, g: Tensor) -> Tensor:
        x = trailing(g, self.ndim)
        sizes = self.inner.dual_norm(shift(x, -exponent(x, self.ndim)))
        first = (sizes == sizes.amax(-1, keepdim=True)) & (sizes > 0)
        share = first.to(x) / first.sum(-1, keepdim=True).clamp_min(1)
        return (_per_block(share, x) * self.inner.dualize(x)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        return _project_radii(self.inner, w, lambda r: r.sum(-1, keepdim=True), lambda r, lam: lam.expand_as(r))


@dataclass(frozen=True)
class L2OfBlocks(Norm):
    """Blocks w (n, *d): ‖w‖ = √Σᵢ ‖wᵢ‖²_inner;  ‖g‖* = √Σᵢ ‖gᵢ‖*²_inner;  dualize: block i gets ‖gᵢ‖*/‖g‖* of its own
    dual. The projection searches for the blocks' radii.

    >>> from normgeo.norms import Absolute
    >>> L2OfBlocks(Absolute()).dualize(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    inner: Norm

    @property
    def ndim(self) -> int:
        return 1 + self.inner.ndim

    def norm(self, w: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.inner.norm(trailing(w, self.ndim)), dim=-1)

    def dual_norm(self, g: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.inner.dual_norm(trailing(g, self.ndim)), dim=-1)

    def dualize(self, g: Tensor) -> Tensor:
        x = trailing(g, self.ndim)
        share = unit(self.inner.dual_norm(shift(x, -exponent(x, self.ndim))), 1)
        return (_per_block(share, x) * self.inner.dualize(x)).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        def size(r: Tensor) -> Tensor:
            return r.square().sum(-1, keepdim=True)

        return _project_radii(self.inner, w, size, lambda r, lam: lam * r)


@dataclass(frozen=True)
class Viewed(Norm):
    """‖w‖ = ‖rearrange(w)‖_inner: the same norm for weights stored in another order or shape, as an einops pattern on the
    last axes.

    >>> from normgeo.norms import RMSToRMS
    >>> Viewed(RMSToRMS(), "i o -> o i").norm(torch.ones(4, 1)), RMSToRMS().norm(torch.ones(1, 4))
    (tensor(4.0000), tensor(4.0000))
    """

    inner: Norm
    pattern: str
    sizes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.pattern.count("->") != 1 or "..." in self.pattern:
            raise ValueError(f"Viewed needs a pattern 'stored axes -> seen axes' without ..., got {self.pattern!r}")
        if _axes(self.pattern.split("->")[1]) != self.inner.ndim:
            raise ValueError(f"Viewed: {self.pattern!r} does not end in the {self.inner.ndim} axes of {self.inner}")

    @property
    def ndim(self) -> int:
        return _axes(self.pattern.split("->")[0])

    def norm(self, w: Tensor) -> Tensor:
        return self.inner.norm(self._seen(trailing(w, self.ndim)))

    def dual_norm(self, g: Tensor) -> Tensor:
        return self.inner.dual_norm(self._seen(trailing(g, self.ndim)))

    def dualize(self, g: Tensor) -> Tensor:
        return self._stored(self.inner.dualize(self._seen(trailing(g, self.ndim))), g).to(g.dtype)

    def project(self, w: Tensor) -> Tensor:
        return self._stored(self.inner.project(self._seen(trailing(w, self.ndim))), w).to(w.dtype)

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return self._stored(self.inner.on_matrices(f, self._seen(w)), w)

    def on_rows(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        return self._stored(self.inner.on_rows(f, self._seen(w)), w)

    def _seen(self, x: Tensor) -> Tensor:
        left, right = self.pattern.split("->")
        return rearrange(x, f"... {left} -> ... {right}", **dict(self.sizes))

    def _stored(self, seen: Tensor, like: Tensor) -> Tensor:
        left, right = self.pattern.split("->")
        lengths = parse_shape(like, f"{'_ ' * (like.ndim - self.ndim)}{left}") if "(" not in left else {}
        return rearrange(seen, f"... {right} -> ... {left}", **{**lengths, **dict(self.sizes)})


def _axes(side: str) -> int:
    """How many axes one side of a pattern has; a group in brackets is one."""
    return len(re.sub(r"\([^)]*\)", "group", side).split())


def _per_block(share: Tensor, x: Tensor) -> Tensor:  # (*b, n), (*b, n, *d) -> (*b, n, 1, ..., 1)
    return share.reshape(share.shape + (1,) * (x.ndim - share.ndim))


def _project_radii(
    inner: Norm, w: Tensor, size: Callable[[Tensor], Tensor], slope: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """min Σ ½‖wᵢ - zᵢ‖² over size(‖z₁‖, ..., ‖z_n‖) ≤ 1. With the radius rᵢ given, zᵢ is rᵢ·project(wᵢ/rᵢ), and the
    distance falls with rᵢ at the rate ‖wᵢ - zᵢ‖*; so ‖wᵢ - zᵢ‖* = slope(rᵢ, λ), with the λ that meets the constraint.
    """
    x = trailing(w, 1 + inner.ndim)
    full = inner.norm(x)

    def at(r: Tensor) -> Tensor:
        scale = _per_block(r.clamp_min(torch.finfo(r.dtype).tiny), x)
        return torch.where(_per_block(r >= full, x), x, scale * inner.project(x / scale))

    def radii(lam: Tensor) -> Tensor:
        return root(lambda r: slope(r, lam) - inner.dual_norm(x - at(r)), torch.zeros_like(full), full)

    high = inner.dual_norm(x).amax(-1, keepdim=True) * (1 + full.sum(-1, keepdim=True)) * x.shape[-1 - inner.ndim]
    lam = root(lambda lam: 1 - size(radii(lam)), torch.zeros_like(high), high)
    inside = size(full) <= 1
    return torch.where(_per_block(inside, x), x, at(radii(lam))).to(w.dtype)
