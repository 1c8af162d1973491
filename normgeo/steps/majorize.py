"""Majorisation: the step that minimises an upper bound of the loss."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.steps.base import Stats, StepSize, StepState

__all__ = ["Majorize", "above"]


@dataclass(frozen=True)
class Majorize(StepSize):
    """η = min(most, ‖M‖*/λ),  λ = sharpness + growth·‖M‖*: the minimum over Δ of ⟨M, Δ⟩ + λ/2·‖Δ‖² in the modular norm,
    which promises a decrease of ‖M‖*²/2λ where λ bounds the curvature ⟨Δ, HΔ⟩/‖Δ‖².

    The lr multiplies; with lr = 1 it is this formula. `growth` > 0 is for losses whose curvature grows with the gradient
    (L0 + L1·‖g‖, Zhang et al., arXiv 1905.11881); `most` is the radius of a trust region. The norm of a minibatch's
    gradient does not go to 0 at the minimum: smooth it with a rule, or multiply with a schedule.

    >>> import normgeo as ng
    >>> opt = ng.optimizer(ng.nn.Linear(4, 2), step=Majorize(sharpness=2.0), lr=1.0)
    """

    sharpness: float
    growth: float = 0.0
    most: float = math.inf
    needs = {"moves": 1}  # noqa: RUF012

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sharpness + self.growth) and min(self.sharpness, self.growth) >= 0):
            raise ValueError(
                f"Majorize: sharpness and growth must be finite and ≥ 0, got {self.sharpness} and {self.growth}"
            )
        if self.sharpness + self.growth == 0:
            raise ValueError("Majorize: sharpness or growth must be > 0, else no step is too long")
        above("Majorize", "most", self.most)

    def value(self, stats: Stats, state: StepState) -> Tensor:
        g = stats.dual_norm
        return (g / (self.sharpness + self.growth * g).clamp_min(torch.finfo(g.dtype).tiny)).clamp_max(self.most)


def above(name: str, field: str, number: float, floor: float = 0.0) -> None:
    """Refuse what is not greater than `floor`; infinity is."""
    if not number > floor:
        raise ValueError(f"{name}: {field} must be > {floor:g}, got {number}")
