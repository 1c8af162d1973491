"""The largest singular value set down to ρ: one rank-one correction a step."""

from dataclasses import dataclass

from torch import Tensor

from normgeo.constraints.base import Rate
from normgeo.constraints.measured import Measured, check_radius
from normgeo.linalg import l2, leading

__all__ = ["SpectralHammer"]


@dataclass(frozen=True)
class SpectralHammer(Measured):
    """X ← X·(I - c·v vᵀ), c = max(0, 1 - ρ/‖X v‖₂), v the first right singular vector: σ₁ ← min(σ₁, ρ), the others stay.

    Invariant: weights that start inside ‖W‖ ≤ ρ stay within ρ + (k - 1)·max η·r, k = min(m, n), in the leaf's norm (and
    within 1 + 1e-3 times that for the error of v). A step adds at most η·r to every σᵢ, and the hammer sends the largest
    to ρ: σᵢ ≤ ρ + (k - i)·η·r repeats itself. A gradient of full rank reaches that, so use it where gradients have low
    rank, or else `HardCap`. With c ≥ 0 and v of unit length no singular value ever grows.

    Newhouse et al., arXiv 2507.13338; theirs also raises σ₁ when it is below ρ.

    >>> import torch
    >>> from normgeo.norms import Spectral
    >>> SpectralHammer(1.0, norm=Spectral()).retract(torch.diag(torch.tensor([3.0, 2.0]))[None], None, None, {}).round()
    tensor([[[1., 0.],
             [0., 2.]]])
    """

    radius: float

    def __post_init__(self) -> None:
        check_radius(type(self).__name__, self.radius)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        return self.radius * self.measure().on_matrices(_strike, W / self.radius)


def _strike(x: Tensor) -> Tensor:
    image, v = leading(x)
    return x - (1 - 1 / l2(image, 2).clamp_min(1)) * image @ v.mT
