"""Escape velocity: as long as the weights still run straight away from where they began, the step may grow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.steps.base import Stats, StepSize, StepState, total
from normgeo.steps.majorize import above
from normgeo.steps.schedules import whole

__all__ = ["Escape", "Prodigy"]


@dataclass(frozen=True)
class Escape(StepSize):
    """η_{t+1} = max(η_t, ⟨M, W₀ - W⟩/‖M‖*) from η = `start`, in the modular norm: Prodigy without its averages, for any
    norm. On a linear loss the distances are start times the Fibonacci numbers; at a minimum η stops growing.

    η never shrinks: `start` has to be too small (a start that is too large stays), and near the end a schedule must bring
    it down, `Linear(total) * Escape()`. With lr = 1 it is the formula. Source: Bernstein and Newhouse, arXiv 2409.20325,
    after Mishchenko and Defazio, arXiv 2306.06101.

    >>> import normgeo as ng
    >>> opt = ng.optimizer(ng.nn.Linear(4, 2), step=ng.steps.Linear(100) * Escape(), lr=1.0)
    """

    start: float = 1e-4
    needs = {"moves": 1}  # noqa: RUF012

    def __post_init__(self) -> None:
        _positive("Escape", self.start)

    def init(self, W: Tensor) -> dict[str, Tensor]:
        return {"start": W.clone()}

    def init_shared(self) -> dict[str, float]:
        return {"eta": self.start}

    def value(self, stats: Stats, state: StepState) -> Tensor:
        eta = state.shared["eta"]
        state.shared["eta"] = torch.maximum(eta, distance(stats, state))
        return eta


def distance(stats: Stats, state: StepState) -> Tensor:  # ()
    """⟨M, W₀ - W⟩/‖M‖*, W₀ the "start" of each leaf: no more than how far the weights have come."""
    g = stats.dual_norm
    away = total(
        (move.M * (leaf["start"] - move.W)).sum() for move, leaf in zip(stats.moves, state.leaves, strict=True)
    )
    return torch.where(g > 0, away / g, 0.0)


@dataclass(frozen=True)
class Prodigy(StepSize):
    """d_{t+1} = max(d_t, min(coefficient·r/‖s‖*, growth·d_t)),  r ← β·r + d²·⟨g, W₀ - W⟩,  s ← β·s + d²·g,  η = d_t, with
    ‖s‖* in the modular norm: Prodigy's estimate of the distance to the solution for any norm and any base update.

    In the norm of the largest entry, with sign descent, it is the published one without its moments (prodigyopt 1.1.2 with
    betas (1e-14, 0); at betas (0, 0) exactly it takes the new d). There the moments of Adam are weighted by d as well,
    here they are the rule's business. ‖s‖* costs a second duality map per leaf. β = 0 with `rules.Plain()` is `Escape`.
    That map is made every `every`-th step, and d moves only then: 10 saves nine tenths of its time in long runs, in short
    ones d comes too late. d never shrinks. With lr = 1 it is the formula. Source: Mishchenko and Defazio, arXiv 2306.06101.

    >>> import normgeo as ng
    >>> opt = ng.optimizer(ng.nn.Linear(4, 2), step=ng.steps.Linear(100) * Prodigy(), lr=1.0)
    """

    start: float = 1e-6
    beta: float = math.sqrt(0.999)
    coefficient: float = 1.0
    growth: float = math.inf
    every: int = 1

    @property
    def needs(self) -> Mapping[str, int]:  # type: ignore[override]
        """All directions, and for a period the count of steps."""
        return {"moves": 1, "turn": self.every} if self.every > 1 else {"moves": 1}

    def __post_init__(self) -> None:
        _positive("Prodigy", self.start)
        above("Prodigy", "coefficient", self.coefficient)
        above("Prodigy", "growth", self.growth, 1.0)
        whole("Prodigy", "every", self.every)
        if not 0 <= self.beta <= 1:
            raise ValueError(f"Prodigy: beta is the weight on the past and must be in [0, 1], got {self.beta}")

    def init(self, W: Tensor) -> dict[str, Tensor]:
        return {"start": W.clone(), "s": torch.zeros_like(W)}

    def init_shared(self) -> dict[str, float]:
        return {"d": self.start, "r": 0.0}

    def value(self, stats: Stats, state: StepState) -> Tensor:
        d, both = state.shared["d"], list(zip(stats.moves, state.leaves, strict=True))
        weight = (d / self.start).square()  # in units of the start, so that small squares do not underflow
        away = total((move.G * (leaf["start"] - move.W)).sum() for move, leaf in both)
        state.shared["r"] = r = self.beta * state.shared["r"] + weight * away
        for move, leaf in both:
            leaf["s"] = self.beta * leaf["s"] + weight.to(leaf["s"]) * move.G
        if stats.turn % self.every:
            return d
        # ‖s‖* by the duality map, as for gradients: nuclear norms by SVD would wait for the device.
        size = total((move.radius * leaf["s"] * move.norm.dualize(leaf["s"])).sum() for move, leaf in both)
        estimate = torch.where(size > 0, self.coefficient * r / size, 0.0)
        state.shared["d"] = torch.maximum(d, torch.minimum(estimate, self.growth * d))
        return d


def _positive(name: str, start: float) -> None:
    if not (math.isfinite(start) and start > 0):
        raise ValueError(f"{name}: start must be a finite number > 0, got {start}")
