"""A step size from the number of steps alone."""

from dataclasses import dataclass

from torch import Tensor

from normgeo.steps.adamnorm import AdamNorm
from normgeo.steps.base import Stats, StepSize, StepState
from normgeo.steps.schedules import Linear, whole

__all__ = ["Auto"]

SCALE, STEPS, POWER = 4.5, 200, 0.25
"""SCALE, at up to STEPS steps, was chosen on a GPT and an MLP of width 64: 4 is 1.2 % behind the best constant on the
one, 5 is 1.3 % behind on the other at 1000 steps. POWER fits 1000 and 5000 steps, with a ViT and an MLP of width 256 as
well. Where gradients are noise, and `AdamNorm` is .27 with the default momentum, steps are about those of the lr .2."""


@dataclass(frozen=True)
class Auto(StepSize):
    """value = 4.5·min(1, (200/total)^¼)·min(1, ‖M‖₂/√v)·(1 - t/total) for each leaf: `AdamNorm`, going down linearly.

    The lr stays the optimizer's 0.2, and there is no warm-up: M begins at 0, and the step with it. How it does beside the
    best lr of a grid for each run is in docs/results.md.

    >>> import normgeo as ng
    >>> opt = ng.optimizer(ng.nn.Linear(4, 2), step=Auto(total=1000))
    """

    total: int
    needs = AdamNorm.needs

    def __post_init__(self) -> None:
        whole("Auto", "total", self.total)

    def init(self, W: Tensor) -> dict[str, Tensor]:
        return AdamNorm().init(W)

    def value(self, stats: Stats, state: StepState) -> list[Tensor]:
        peak = SCALE * min(1.0, (STEPS / self.total) ** POWER)
        down = peak * Linear(self.total).at(stats.count)
        return [down * each for each in AdamNorm().value(stats, state)]
