"""Schedules of older recipes: one cycle, stairs, exponential decay, spikes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.steps.schedules import Annealed, Schedule, whole

__all__ = ["Exponential", "OneCycle", "Spike", "Stairs"]


@dataclass(frozen=True)
class OneCycle(Annealed):
    """Half a cosine up from `start` to 1 in `warmup` steps, half a cosine down to `final` at `total`, as in
    torch.optim.lr_scheduler.OneCycleLR. Source: Smith and Topin, arXiv 1708.07120.

    >>> OneCycle(total=10, warmup=4, start=0.2, final=0.0).at(torch.tensor([0.0, 2.0, 4.0, 7.0, 10.0]))
    tensor([0.2000, 0.6000, 1.0000, 0.5000, 0.0000])
    """

    start: float = 0.04
    final: float = 4e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.start <= 1:
            raise ValueError(f"OneCycle: start is a share of the peak in [0, 1], got {self.start}")

    def shape(self, u: Tensor) -> Tensor:
        return self.final + (1 - self.final) * (1 + torch.cos(torch.pi * u)) / 2

    def at(self, t: Tensor) -> Tensor:
        rise = (1 - torch.cos(torch.pi * t / max(self.warmup, 1))) / 2
        return torch.where(t < self.warmup, self.start + (1 - self.start) * rise, super().at(t))


@dataclass(frozen=True)
class Stairs(Schedule):
    """value = factor^⌊t/every⌋.

    >>> Stairs(every=2, factor=0.5).at(torch.arange(5.0))
    tensor([1.0000, 1.0000, 0.5000, 0.5000, 0.2500])
    """

    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        whole("Stairs", "every", self.every)
        _factor("Stairs", self.factor)

    def at(self, t: Tensor) -> Tensor:
        return self.factor ** (t / self.every).floor()


@dataclass(frozen=True)
class Exponential(Schedule):
    """value = factor^(t/over): by `factor` in every `over` steps, smoothly.

    >>> Exponential(over=2, factor=0.25).at(torch.arange(3.0))
    tensor([1.0000, 0.5000, 0.2500])
    """

    over: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        whole("Exponential", "over", self.over)
        _factor("Exponential", self.factor)

    def at(self, t: Tensor) -> Tensor:
        return self.factor ** (t / self.over)


@dataclass(frozen=True)
class Spike(Schedule):
    """value = factor at every `every`-th step, else 1: long steps where a preconditioner is fresh.

    >>> Spike(every=3).at(torch.arange(5.0))
    tensor([10.,  1.,  1., 10.,  1.])
    """

    every: int = 50
    factor: float = 10.0

    def __post_init__(self) -> None:
        whole("Spike", "every", self.every)
        _factor("Spike", self.factor)

    def at(self, t: Tensor) -> Tensor:
        return torch.where(t % self.every == 0, self.factor, torch.ones_like(t))


def _factor(name: str, factor: float) -> None:
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"{name}: factor must be a finite number > 0, got {factor}")
