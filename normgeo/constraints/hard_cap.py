"""σ ← min(σ, ρ) without a decomposition."""

from dataclasses import dataclass, field

from torch import Tensor

from normgeo.constraints.base import Rate
from normgeo.constraints.measured import Measured, check_radius
from normgeo.linalg import SHARP, Polar, clip

__all__ = ["HardCap"]


@dataclass(frozen=True)
class HardCap(Measured):
    """Every singular value σ ← min(σ, ρ), in units of the leaf's norm or of `norm`, by two polar factors.

    The set of `Ball` and nearly its projection, by matrix products. Invariant: ‖W‖ ≤ (1 + 2e-5)·ρ after steps of up to
    ρ from inside, and ≤ 1.002·ρ from weights 10 times too large (`linalg.clip` has the errors). Vectors and rows
    of tables count as matrices with one singular value.

    >>> import torch
    >>> from normgeo.norms import Spectral
    >>> HardCap(2.0, norm=Spectral()).retract(torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]), None, None, {}).round(decimals=3)
    tensor([[[2., 0.],
             [0., 1.]]])
    """

    radius: float
    polar: Polar = field(default=SHARP, repr=False)

    def __post_init__(self) -> None:
        check_radius(type(self).__name__, self.radius)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        return self.radius * self.measure().on_matrices(lambda x: clip(x, self.polar), W / self.radius)
