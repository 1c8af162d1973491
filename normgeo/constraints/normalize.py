"""‖W‖ ≤ ρ by scaling."""

from dataclasses import dataclass

from torch import Tensor

from normgeo.constraints.base import Rate
from normgeo.constraints.measured import Measured, check_radius

__all__ = ["Normalize"]


@dataclass(frozen=True)
class Normalize(Measured):
    """W ← W / max(1, ‖W‖/ρ), in the leaf's norm or in `norm`: spectral normalisation, for linear maps.

    Invariant: ‖W‖ ≤ ρ after every step, up to rounding, wherever the weights started. All of a weight shrinks when its
    largest part does; `Ball` cuts only what is too large. Source: Miyato et al., arXiv 1802.05957, here applied to the
    weights themselves and with the exact norm.

    >>> import torch
    >>> from normgeo.norms import Linf
    >>> Normalize(2.0, norm=Linf()).retract(torch.tensor([[4.0, -1.0]]), None, None, {})
    tensor([[ 2.0000, -0.5000]])
    """

    radius: float

    def __post_init__(self) -> None:
        check_radius(type(self).__name__, self.radius)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        return W / (self.size(W) / self.radius).clamp_min(1)
