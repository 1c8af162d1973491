"""Curvature along the direction, measured on the batch at hand: never from losses of different batches, whose noise
exceeds what a step changes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.steps.base import Stats, StepSize, StepState, total
from normgeo.steps.majorize import above
from normgeo.steps.schedules import whole

__all__ = ["Cauchy", "Secant"]


@dataclass(frozen=True)
class Cauchy(StepSize):
    """η = min(most, s/κ),  s = ⟨g, u⟩, κ = |⟨u, H u⟩|, u = r·D the direction of modular norm 1: where a quadratic has its
    minimum along u. s and κ are averaged with the weight β on the past, over every `every`-th step.

    H u is one Hessian-vector product through the graph of the same batch, so that noise of the batch does not enter
    twice; the closure returns the loss and does not call backward. While the average of s is ≤ 0, and in a group that is
    new until it is measured, the step is 0. κ is the curvature of one direction, a lower bound of the sharpness λ. With
    lr = 1, β = 0, every = 1 it is exact line search for quadratics, in plain gradient descent gᵀg/gᵀHg (Cauchy's; erratum
    X0-22).

    >>> import torch, normgeo as ng
    >>> model = ng.nn.Linear(4, 2)
    >>> opt = ng.optimizer(model, step=Cauchy(every=1), rule=ng.rules.Plain(), lr=1.0)
    >>> loss = opt.step(lambda: (model(torch.eye(4)) - 1).square().mean())
    """

    beta: float = 0.9
    every: int = 10
    most: float = 1.0

    def __post_init__(self) -> None:
        _check(self.beta, self.every, self.most, "Cauchy")

    @property
    def needs(self) -> Mapping[str, int]:  # type: ignore[override]
        """A Hessian-vector product every `every` steps, and the directions."""
        return {"hvp": self.every, "moves": 1}

    def init_shared(self) -> dict[str, float]:
        return {"slope": 0.0, "curvature": 0.0}

    def value(self, stats: Stats, state: StepState) -> Tensor:
        if stats.hessian is not None:
            u = [move.radius * move.D for move in stats.moves]
            curvature = total((a * b).sum() for a, b in zip(u, stats.hessian(u), strict=True)).abs()
            _average(state, self.beta, stats.slope, curvature)
        return _ratio(state).clamp_max(self.most)


@dataclass(frozen=True)
class Secant(StepSize):
    """η = s/κ as in `Cauchy`, with κ = (φ'(η₀) - φ'(0))/η₀ for φ(η) = loss(W - η·u) on one batch, η₀ the last step size:
    the curvature over the step that is taken, kinks included, without second derivatives. Every `every`-th step costs one
    more run of the closure. Where κ ≤ 0 the step grows.

    η changes by at most a factor `change` per measurement and starts at `start`; with lr = 1 it is the formula. Dropout
    should be off, or draw the same mask in both runs.

    >>> import torch, normgeo as ng
    >>> step = Secant(beta=0.0, every=1, start=1.0, change=float("inf"))
    >>> def line(eta): return 0.0, 4.0 * eta - torch.tensor(2.0)  # a parabola with its minimum at 1/2
    >>> state = ng.steps.StepState({"eta": torch.tensor(1.0), "slope": torch.tensor(0.0), "curvature": torch.tensor(0.0)})
    >>> step.value(ng.steps.Stats(torch.tensor(0.0), line=line), state)
    tensor(0.5000)
    """

    beta: float = 0.9
    every: int = 10
    start: float = 1e-3
    change: float = 2.0
    most: float = 1.0

    def __post_init__(self) -> None:
        _check(self.beta, self.every, self.most, "Secant")
        above("Secant", "start", self.start)
        above("Secant", "change", self.change, 1.0)

    @property
    def needs(self) -> Mapping[str, int]:  # type: ignore[override]
        """Another run of the closure every `every` steps, and the directions."""
        return {"closure": self.every, "moves": 1}

    def init_shared(self) -> dict[str, float]:
        return {"eta": self.start, "slope": 0.0, "curvature": 0.0}

    def value(self, stats: Stats, state: StepState) -> Tensor:
        last = state.shared["eta"]
        if stats.line is not None:
            (_, here), (_, there) = stats.line(0.0), stats.line(last)
            _average(state, self.beta, -here, (there - here) / last)
            best = torch.where(state.shared["curvature"] > 0, _ratio(state), torch.inf)
            within = torch.minimum(torch.maximum(best, last / self.change), last * self.change)
            state.shared["eta"] = within.clamp_max(self.most)
        return state.shared["eta"]


def _average(state: StepState, beta: float, slope: Tensor, curvature: Tensor) -> None:
    """Both with the same weights, so that their ratio needs no bias correction; what is not finite is left out."""
    ok = slope.isfinite() & curvature.isfinite()
    for name, new in (("slope", slope), ("curvature", curvature)):
        old = state.shared[name]
        state.shared[name] = torch.where(ok, beta * old + (1 - beta) * new.to(old), old)


def _ratio(state: StepState) -> Tensor:
    slope, curvature = state.shared["slope"].clamp_min(0), state.shared["curvature"]
    return torch.where(slope > 0, slope / curvature.clamp_min(torch.finfo(curvature.dtype).tiny), 0.0)


def _check(beta: float, every: int, most: float, name: str) -> None:
    whole(name, "every", every)
    above(name, "most", most)
    if not (math.isfinite(beta) and 0 <= beta < 1):
        raise ValueError(f"{name}: beta is the weight on the past and must be in [0, 1), got {beta}")
