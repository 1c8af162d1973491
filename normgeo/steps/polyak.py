"""Polyak's step: straight to where the linear model reaches the least loss."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.steps.base import Stats, StepSize, StepState
from normgeo.steps.majorize import above

__all__ = ["Polyak"]


@dataclass(frozen=True)
class Polyak(StepSize):
    """η = min(most, (loss - best)/⟨g, u⟩), u = r·D: with plain duality maps (loss - best)/‖g‖*, in plain gradient descent
    (loss - best)/‖g‖² along g. On convex losses it never moves away from a minimiser in the Euclidean norm.

    `best` is the least loss, 0 for models that can fit all data. 0 if the loss is below `best` or u does not descend.
    With lr = 1 it is the formula. `most` keeps minibatches from jumping (SPS_max, Loizou et al., arXiv 2002.10542).

    >>> import torch, normgeo as ng
    >>> model = ng.nn.Linear(4, 2)
    >>> opt = ng.optimizer(model, step=Polyak(), rule=ng.rules.Plain(), lr=1.0)
    """

    best: float = 0.0
    most: float = math.inf
    needs = {"loss": 1, "moves": 1}  # noqa: RUF012

    def __post_init__(self) -> None:
        above("Polyak", "most", self.most)
        if not math.isfinite(self.best):
            raise ValueError(f"Polyak: best must be a finite number, got {self.best}")

    def value(self, stats: Stats, state: StepState) -> Tensor:
        assert stats.loss is not None
        slope = stats.slope
        excess = (stats.loss.to(slope) - self.best).clamp_min(0)
        eta = torch.where(slope > 0, excess / slope.clamp_min(torch.finfo(slope.dtype).tiny), 0.0)
        return eta.clamp_max(self.most)
