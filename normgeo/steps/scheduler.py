"""A schedule in the hands of torch's own schedulers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR

from normgeo.steps.schedules import Schedule

__all__ = ["scheduler"]


@dataclass
class _At:
    """An object, not a function: LambdaLR saves it with its state and pickles it."""

    schedule: Schedule

    def __call__(self, t: int) -> float:
        return float(self.schedule.at(torch.tensor(float(t), dtype=torch.float64)))


def scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule) -> LambdaLR:
    """torch's LambdaLR with lr = lr₀·schedule.at(t), for any torch optimizer, to chain with others or to log.

    With `step=schedule` in a normgeo optimizer nothing has to be called; use one of the two.

    >>> from normgeo.steps import Linear
    >>> opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    >>> schedule = scheduler(opt, Linear(total=4))
    >>> for _ in range(2): opt.step(); schedule.step()
    >>> opt.param_groups[0]["lr"]
    0.25
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(f"scheduler takes a function of the step count alone, a Schedule, got {schedule!r}")
    return LambdaLR(optimizer, _At(schedule))
