"""Schedules: step sizes that are a function of the step count alone."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.steps.base import Stats, StepSize, StepState

__all__ = ["WSD", "Constant", "Cosine", "Linear", "Schedule"]


@dataclass(frozen=True)
class Constant(StepSize):
    """value = 1: every step has the size of the group's lr.

    >>> Constant().value(Stats(torch.tensor(7.0)), StepState())
    tensor(1.)
    """

    def value(self, stats: Stats, state: StepState) -> Tensor:
        return torch.ones_like(stats.count)


@dataclass(frozen=True)
class Schedule(StepSize):
    """`warmup` steps up a straight line to 1, then `shape` over what is left of `total` steps, then its last value.

    With t steps done: (t + 1)/(warmup + 1) while t < warmup, then shape(u), u = (t - warmup)/(total - warmup) in [0, 1].

    >>> class Sqrt(Schedule):
    ...     def shape(self, u): return 1 - u.sqrt()
    >>> Sqrt(total=5, warmup=1).at(torch.tensor([0.0, 1.0, 2.0, 5.0]))
    tensor([0.5000, 1.0000, 0.5000, 0.0000])
    """

    total: int
    warmup: int = 0

    def __post_init__(self) -> None:
        name, final = type(self).__name__, getattr(self, "final", 0.0)
        if not (isinstance(self.total, int) and isinstance(self.warmup, int) and 0 <= self.warmup < self.total):
            raise ValueError(
                f"{name} needs whole numbers 0 ≤ warmup < total, got warmup={self.warmup}, total={self.total}"
            )
        if not 0 <= final < float("inf"):
            raise ValueError(f"{name}: final must be a finite number ≥ 0, got {final}")

    @abstractmethod
    def shape(self, u: Tensor) -> Tensor:
        """The value at progress u, from shape(0) = 1."""

    def value(self, stats: Stats, state: StepState) -> Tensor:
        return self.at(stats.count)

    def at(self, t: Tensor) -> Tensor:
        """The value at any number of completed steps, for plots and for torch's LambdaLR."""
        u = ((t - self.warmup) / (self.total - self.warmup)).clamp(0, 1)
        return torch.where(t < self.warmup, (t + 1) / (self.warmup + 1), self.shape(u))


@dataclass(frozen=True)
class Linear(Schedule):
    """shape(u) = 1 - (1 - final)·u: straight down to `final`.

    >>> Linear(total=4).at(torch.arange(5.0))
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """

    final: float = 0.0

    def shape(self, u: Tensor) -> Tensor:
        return 1 - (1 - self.final) * u


@dataclass(frozen=True)
class Cosine(Schedule):
    """shape(u) = final + (1 - final)·(1 + cos πu)/2.

    >>> Cosine(total=2, final=0.1).at(torch.arange(3.0))
    tensor([1.0000, 0.5500, 0.1000])
    """

    final: float = 0.0

    def shape(self, u: Tensor) -> Tensor:
        return self.final + (1 - self.final) * (1 + torch.cos(torch.pi * u)) / 2


@dataclass(frozen=True)
class WSD(Schedule):
    """Warm-up, stable, decay: 1 until the last `cooldown` share of what follows the warm-up, then straight to `final`.

    >>> WSD(total=10, cooldown=0.2).at(torch.tensor([0.0, 8.0, 9.0, 10.0]))
    tensor([1.0000, 1.0000, 0.5000, 0.0000])
    """

    cooldown: float = 0.25
    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cooldown <= 1:
            raise ValueError(f"WSD: cooldown is a share of the run in (0, 1], got {self.cooldown}")

    def shape(self, u: Tensor) -> Tensor:
        return self.final + (1 - self.final) * ((1 - u) / self.cooldown).clamp_max(1)
