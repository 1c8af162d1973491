"""The step size as a function of the horizon."""

from dataclasses import dataclass

from torch import Tensor

from normgeo.steps.schedules import Linear, Schedule, whole

__all__ = ["HORIZON", "POWER", "Auto"]

HORIZON = 1000
"""the number of steps at which `Auto` leaves the lr as it is, the optimizer's default of 0.2: so the peak is 6.3/√total"""

POWER = 0.5
"""how the best lr falls with the number of steps: .43, .25, .10 at 200, 1000, 4000 steps (vertices of parabolas through
factor-2 grids; 3, 2 and 1 seeds) on a GPT of width 64 and depth 2 on TinyShakespeare, batch 16: .49 from end to end"""


@dataclass(frozen=True)
class Auto(Schedule):
    """(HORIZON/total)^POWER · Linear(total, warmup): a schedule whose peak falls with the horizon as the best one does.

    Without `total`, the same power of the steps so far, warm-up·(1 + t/HORIZON)^-POWER, to be evaluated with an average of
    weights (`iterate=ng.optim.ScheduleFree()` or `EMA()`), so that nobody has to know the end. An experiment, not the
    default. The two constants come from one network.

    >>> import torch
    >>> Auto(total=4000, warmup=0).at(torch.tensor([0.0, 2000.0]))
    tensor([0.5000, 0.2500])
    >>> Auto(warmup=0).at(torch.tensor([0.0, 3000.0]))
    tensor([1.0000, 0.5000])
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
