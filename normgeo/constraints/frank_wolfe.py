"""Steps inside a ball: the constrained form of Scion."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.constraints.base import Constraint, Rate
from normgeo.constraints.measured import check_radius

__all__ = ["FrankWolfe"]


@dataclass(frozen=True)
class FrankWolfe(Constraint):
    """W ← (1 - γ)·W + γ·(-ρ·D), γ = min(1, η·r/ρ): towards the point of the ball ‖W‖ ≤ ρ that the direction prefers.

    It is `Decay(r/ρ)` with each leaf's own radius r, so ρ is the size of the ball whatever the masses are; Scion's lr is
    γ, its scale ρ. Invariant: weights inside ‖W‖ ≤ ρ stay there at any η, being averages of points of the ball; from
    outside, ‖W‖ - ρ falls by the factor 1 - γ a step. For iterates that write W - η·r·D with ‖D‖ ≤ 1.
    Source: Pethick et al., arXiv 2502.07529; Frank and Wolfe 1956.

    >>> import torch
    >>> old, rate = torch.ones(1, 1), Rate(torch.tensor(0.5), torch.tensor(1.0), radius=1.0)
    >>> FrankWolfe(2.0).retract(old - 0.5, old, rate, {})
    tensor([[0.2500]])
    """

    entrywise = True
    radius: float

    def __post_init__(self) -> None:
        check_radius(type(self).__name__, self.radius)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        share = rate.eta * rate.radius / self.radius
        return old + (W - old) / torch.clamp(share, min=1) - torch.clamp(share, max=1) * old
