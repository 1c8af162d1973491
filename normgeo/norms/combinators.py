"""Norms made of norms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.norms.base import Norm, trailing

__all__ = ["Blocks", "Scaled"]


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

    def norm(self, w: Tensor) -> Tensor:
        return self.factor * self.inner.norm(w)

    def dual_norm(self, g: Tensor) -> Tensor:
        return self.inner.dual_norm(g) / self.factor

    def dualize(self, g: Tensor) -> Tensor:
        return self.inner.dualize(g) / self.factor

    def project(self, w: Tensor) -> Tensor:
        return self.inner.project(w * self.factor) / self.factor

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

    def init(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return self.inner.init(shape, generator, dtype, device)
