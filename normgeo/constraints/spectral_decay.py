"""Weight decay of the largest singular value alone."""

from dataclasses import dataclass

from torch import Tensor

from normgeo.constraints.base import Rate
from normgeo.constraints.decay import check_strength
from normgeo.constraints.measured import Measured, largest
from normgeo.linalg import leading

__all__ = ["SpectralDecay"]


@dataclass(frozen=True)
class SpectralDecay(Measured):
    """X ← X·(I - d·v vᵀ), d = min(1, η·λ), v the first right singular vector after the step: σ₁ ← (1 - η·λ)·σ₁.

    Invariant: weights that start inside ‖W‖ ≤ k·r/λ, k = min(m, n), stay within k·r/λ + (k - 1)·max η·r (in the leaf's
    norm; 1 + 1e-3 times that for the error of v). A step adds at most η·r to every σᵢ, and above k·r/λ the decay takes
    k·η·r or more from the largest: σᵢ ≤ k·r/λ + (k - i)·η·r repeats itself. `Decay` holds r/λ.
    Source: Newhouse et al., arXiv 2507.13338.

    >>> import torch
    >>> from normgeo.norms import Spectral
    >>> rate = Rate(torch.tensor(0.5), torch.tensor(1.0))
    >>> SpectralDecay(0.2, norm=Spectral()).retract(torch.diag(torch.tensor([3.0, 2.0]))[None], None, rate, {})
    tensor([[[2.7000, 0.0000],
             [0.0000, 2.0000]]])
    """

    strength: float

    def __post_init__(self) -> None:
        check_strength(type(self).__name__, self.strength)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        share = (largest(rate.eta, W) * self.strength).clamp_max(1)

        def shrink(x: Tensor) -> Tensor:
            image, v = leading(x)
            return x - share.reshape(-1, *(1,) * (x.ndim - 1)) * image @ v.mT

        return self.measure().on_matrices(shrink, W)
