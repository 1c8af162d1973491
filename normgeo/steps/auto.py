"""The step size as a function of the horizon."""

from dataclasses import dataclass

from torch import Tensor

from normgeo.steps.schedules import Linear, Schedule, whole

__all__ = ["HORIZON", "POWER", "Auto"]

HORIZON = 500
"""the number of steps at which `Auto` leaves the lr as it is: the lab's default, where 0.2 is the best lr"""

POWER = 0.6
"""how the best lr falls with the number of steps: .3, .15, .07, .04 at 100, 300, 1000, 3000 steps on a pre-norm GPT of
width 64 and depth 2 with linear decay, one seed: .59 from end to end, .51 to .63 between neighbours"""


@dataclass(frozen=True)
class Auto(Schedule):
    """(HORIZON/total)^POWER · Linear(total, warmup): a schedule whose peak falls with the horizon as the best one does.

    Without `total`, the same power of the steps so far, warm-up·(1 + t/HORIZON)^-POWER, to be evaluated with an average of
    weights (`iterate=ng.optim.ScheduleFree()` or `EMA()`), so that nobody has to know the end. An experiment, not the
    default: the two constants come from one network and are not yet confirmed on others.

    >>> import torch
    >>> Auto(total=4000, warmup=0).at(torch.tensor([0.0, 2000.0]))
    tensor([0.2872, 0.1436])
    >>> Auto(warmup=0).at(torch.tensor([0.0, 3500.0]))
    tensor([1.0000, 0.2872])
    """

    total: int | None = None
    warmup: int = 20

    def __post_init__(self) -> None:
        whole("Auto", "warmup", self.warmup, at_least=0)
        if self.total is not None:
            Linear(self.total, self.warmup)  # says what is wrong with them

    def at(self, t: Tensor) -> Tensor:
        if self.total is not None:
            return (HORIZON / self.total) ** POWER * Linear(self.total, self.warmup).at(t)
        return ((t + 1) / (self.warmup + 1)).clamp_max(1) * (1 + t / HORIZON).pow(-POWER)
