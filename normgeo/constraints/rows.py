"""Rows of bounded and of given size."""

import math
from dataclasses import dataclass

from torch import Tensor

from normgeo.constraints.base import Constraint, Rate
from normgeo.constraints.measured import check_radius
from normgeo.norms.vectors import rms, unit

__all__ = ["Oblique", "RowCap"]


@dataclass(frozen=True)
class RowCap(Constraint):
    """wᵢ ← wᵢ / max(1, RMS(wᵢ)/ρ) for every row: the last axis of the leaf, for a kernel its last spatial axis.

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
        rows = _rows(W)
        return (rows / (rms(rows) / self.radius).clamp_min(1)).reshape(W.shape)


@dataclass(frozen=True)
class Oblique(Constraint):
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
        along = unit(_rows(W), 1)
        return G - ((_rows(G) * along).sum(-1, keepdim=True) * along).reshape(W.shape)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        rows = _rows(W)
        return (unit(rows, 1) * (self.radius * math.sqrt(rows.shape[-1]))).reshape(W.shape)


def _rows(W: Tensor) -> Tensor:  # (n,) -> (n, 1), a scalar being a row of one entry
    return W if W.ndim > 1 else W.unsqueeze(1)
