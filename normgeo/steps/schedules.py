"""Schedules: step sizes that are a function of the step count alone."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from normgeo.steps.base import Stats, StepSize, StepState

__all__ = ["WSD", "Annealed", "Constant", "Cosine", "Linear", "Schedule", "Shape", "Sqrt", "Warmup", "whole"]

Shape = Literal["linear", "cosine", "mirror-cosine", "sqrt", "square", "lowered-linear"]


class Schedule(StepSize):
    """value = at(t) after t completed steps; `schedule * rule` multiplies it with any other step size.

    >>> class Halving(Schedule):
    ...     def at(self, t): return 0.5**t
    >>> Halving().at(torch.arange(3.0))
    tensor([1.0000, 0.5000, 0.2500])
    """

    @abstractmethod
    def at(self, t: Tensor) -> Tensor:
        """The value at any number of completed steps, elementwise: for plots and for `scheduler`."""

    def value(self, stats: Stats, state: StepState) -> Tensor:
        return self.at(stats.count)


@dataclass(frozen=True)
class Constant(Schedule):
    """value = 1: every step has the size of the group's lr.

    >>> Constant().value(Stats(torch.tensor(7.0)), StepState())
    tensor(1.)
    """

    def at(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Warmup(Schedule):
    """value = min(1, (t + 1)/(steps + 1)), to be multiplied with a rule that has no warm-up of its own.

    >>> (Warmup(3) * Constant()).value(Stats(torch.tensor(1.0)), StepState())
    tensor(0.5000)
    """

    steps: int

    def __post_init__(self) -> None:
        whole("Warmup", "steps", self.steps, at_least=0)

    def at(self, t: Tensor) -> Tensor:
        return ((t + 1) / (self.steps + 1)).clamp_max(1)


@dataclass(frozen=True)
class Annealed(Schedule):
    """`warmup` steps up a straight line to 1, then `shape` over what is left of `total` steps, then its last value.

    With t steps done: (t + 1)/(warmup + 1) while t < warmup, then shape(u), u = (t - warmup)/(total - warmup) in [0, 1].

    >>> class Cubic(Annealed):
    ...     def shape(self, u): return 1 - u**3
    >>> Cubic(total=5, warmup=1).at(torch.tensor([0.0, 1.0, 3.0, 5.0]))
    tensor([0.5000, 1.0000, 0.8750, 0.0000])
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

    def at(self, t: Tensor) -> Tensor:
        u = ((t - self.warmup) / (self.total - self.warmup)).clamp(0, 1)
        return torch.where(t < self.warmup, (t + 1) / (self.warmup + 1), self.shape(u))


@dataclass(frozen=True)
class Linear(Annealed):
    """shape(u) = 1 - (1 - final)·u: straight down to `final`.

    >>> Linear(total=4).at(torch.arange(5.0))
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """

    final: float = 0.0

    def shape(self, u: Tensor) -> Tensor:
        return 1 - (1 - self.final) * u


@dataclass(frozen=True)
class Cosine(Annealed):
    """shape(u) = final + (1 - final)·(1 + cos πu)/2.

    >>> Cosine(total=2, final=0.1).at(torch.arange(3.0))
    tensor([1.0000, 0.5500, 0.1000])
    """

    final: float = 0.0

    def shape(self, u: Tensor) -> Tensor:
        return self.final + (1 - self.final) * (1 + torch.cos(torch.pi * u)) / 2


@dataclass(frozen=True)
class Sqrt(Annealed):
    """shape(u) = final + (1 - final)·(1 - √u): steep first, then flat.

    >>> Sqrt(total=4).at(torch.tensor([0.0, 1.0, 4.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """

    final: float = 0.0

    def shape(self, u: Tensor) -> Tensor:
        return self.final + (1 - self.final) * (1 - u.sqrt())


@dataclass(frozen=True)
class WSD(Annealed):
    """Warm-up, stable, decay: 1 until the last `cooldown` share of what follows the warm-up, then down to `final` in the
    `decay` shape φ(v) of the progress v in that share. Without a warm-up it is "constant + cooldown"; with cooldown=1 and
    decay="lowered-linear" all of it is .7·(1 - v).

    φ: linear 1 - v; cosine (1 + cos πv)/2; mirror-cosine, its reflection in the straight line, 2(1 - v) - cosine; sqrt
    1 - √v; square 1 - v²; lowered-linear .7·(1 - v), which drops to .7 at once. Source: Dremov et al., arXiv 2508.01483.

    >>> WSD(total=10, cooldown=0.2).at(torch.tensor([0.0, 8.0, 9.0, 10.0]))
    tensor([1.0000, 1.0000, 0.5000, 0.0000])
    """

    cooldown: float = 0.25
    final: float = 0.0
    decay: Shape = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cooldown <= 1:
            raise ValueError(f"WSD: cooldown is a share of the run in (0, 1], got {self.cooldown}")
        if self.decay not in SHAPES:
            raise ValueError(f"WSD: decay must be one of {', '.join(get_args(Shape))}, got {self.decay!r}")

    def shape(self, u: Tensor) -> Tensor:
        v = 1 - (1 - u) / self.cooldown
        return torch.where(v < 0, 1.0, self.final + (1 - self.final) * SHAPES[self.decay](v.clamp_min(0)))


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda v: 1 - v,
    "cosine": lambda v: (1 + torch.cos(torch.pi * v)) / 2,
    "mirror-cosine": lambda v: 2 * (1 - v) - (1 + torch.cos(torch.pi * v)) / 2,
    "sqrt": lambda v: 1 - v.sqrt(),
    "square": lambda v: 1 - v.square(),
    "lowered-linear": lambda v: 0.7 * (1 - v),
}


def whole(name: str, field: str, number: int, at_least: int = 1) -> None:
    """Refuse what is not a whole number from `at_least` up."""
    if not isinstance(number, int) or number < at_least:
        raise ValueError(f"{name}: {field} must be a whole number ≥ {at_least}, got {number!r}")
