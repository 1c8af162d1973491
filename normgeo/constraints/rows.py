"""Rows of bounded and of given size."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from normgeo.constraints.base import Rate
from normgeo.constraints.measured import Measured, check_radius
from normgeo.norms.vectors import rms, unit

__all__ = ["Oblique", "RowCap"]


@dataclass(frozen=True)
class _OnRows(Measured):
    """Acts on each row, as the leaf's norm tells them apart."""

    def each(self, f: Callable[[Tensor], Tensor], W: Tensor) -> Tensor:
        if W.ndim == 1:  # scalars, rows of one entry
            return f(W.unsqueeze(1)).squeeze(1)
        return f(W) if self.norm is None else self.norm.on_rows(f, W)


@dataclass(frozen=True)
class RowCap(_OnRows):
    """wᵢ ← wᵢ / max(1, RMS(wᵢ)/ρ) for every row: the last axis of the leaf, for a kernel all that an output channel has.

    Invariant: RMS(wᵢ) ≤ ρ after every step, up to rounding, wherever the weights started. Of a linear map W (m, n) this
    bounds each output: |wᵢ·x| ≤ ρ·n for RMS(x) ≤ 1; of an embedding it is `Ball`, of a head `Ball(n·ρ, norm=RMSToLinf())`.

    >>> import torch
    >>> RowCap(1.0).retract(torch.tensor([[[3.0, 3.0], [0.5, 0.5]]]), None, None, {})
    tensor([[[1.0000, 1.0000],
             [0.5000, 0.5000]]])
    """

    radius: float

    def __post_init__(self) -> None:
        check_radius(type(self).__name__, self.radius)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        return self.each(lambda rows: rows / (rms(rows) / self.radius).clamp_min(1), W)


@dataclass(frozen=True)
class Oblique(_OnRows):
    """wᵢ ← ρ·wᵢ/RMS(wᵢ) for every row: the oblique manifold, a sphere for each. Rows at 0 stay there until they move.

    Invariant: RMS(wᵢ) = ρ after every step, up to rounding. gᵢ ← gᵢ - ⟨gᵢ, wᵢ⟩wᵢ/‖wᵢ‖₂², the gradient of the loss at the
    normalised rows. ρ = 1/√n gives rows of unit length.

    >>> import torch
    >>> Oblique(1.0).retract(torch.tensor([[[3.0, 3.0], [0.5, -0.5]]]), None, None, {})
    tensor([[[ 1.0000,  1.0000],
             [ 1.0000, -1.0000]]])
    """

    radius: float = 1.0

    def __post_init__(self) -> None:
        check_radius(type(self).__name__, self.radius)

    def tangent(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> Tensor:
        along = self.each(lambda rows: unit(rows, 1), W)
        return G - along * self.each(lambda rows: rows.sum(-1, keepdim=True).expand_as(rows), G * along)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        return self.each(lambda rows: unit(rows, 1) * (self.radius * math.sqrt(rows.shape[-1])), W)
