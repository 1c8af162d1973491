"""Line searches: the loss itself says how far. These rules look at what they measure, so they wait for the device."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.steps.base import Stats, StepSize, StepState
from normgeo.steps.majorize import above
from normgeo.steps.schedules import whole

__all__ = ["Armijo", "Wolfe"]


@dataclass(frozen=True)
class Armijo(StepSize):
    """The first of η₀, η₀·shrink, η₀·shrink², ... with  φ(η) ≤ φ(0) + decrease·η·φ'(0),  φ(η) = loss(W - η·r·D) on this
    batch;  η₀ is `grow` times what was found last, at most `most`.

    0 if D does not descend on this batch (use `rules.Plain()`), or if none of `trials` passes; NaN does not pass. The
    decrease holds for lr = 1 and before constraints act. Every trial runs the closure once more.

    >>> import torch, normgeo as ng
    >>> model = ng.nn.Linear(4, 2)
    >>> opt = ng.optimizer(model, step=Armijo(), rule=ng.rules.Plain(), lr=1.0)
    >>> def closure():
    ...     opt.zero_grad()
    ...     loss = (model(torch.eye(4)) - 1).square().mean(); loss.backward(); return loss
    >>> bool(opt.step(closure) > opt.step(closure))
    True
    """

    start: float = 0.2
    decrease: float = 0.1
    shrink: float = 0.5
    grow: float = 2.0
    most: float = math.inf
    trials: int = 20
    needs = {"closure": 1, "moves": 1}  # noqa: RUF012

    def __post_init__(self) -> None:
        _check("Armijo", self.start, self.most, self.trials)
        if not (0 < self.decrease < 1 and 0 < self.shrink < 1 and self.grow >= 1):
            raise ValueError("Armijo needs decrease and shrink in (0, 1) and grow ≥ 1")

    def init_shared(self) -> dict[str, float]:
        return {"eta": self.start / self.grow}

    def value(self, stats: Stats, state: StepState) -> Tensor:
        assert stats.line is not None
        loss, slope = stats.line(0.0)
        eta = (state.shared["eta"] * self.grow).clamp_max(self.most)
        if not bool(slope < 0):
            return torch.zeros_like(eta)
        for _ in range(self.trials):
            state.shared["eta"] = eta
            if bool(stats.line(eta)[0] <= loss + self.decrease * eta * slope):
                return eta
            eta = eta * self.shrink
        return torch.zeros_like(eta)


@dataclass(frozen=True)
class Wolfe(StepSize):
    """An η with  φ(η) ≤ φ(0) + decrease·η·φ'(0)  and  |φ'(η)| ≤ flatness·|φ'(0)|  (strong Wolfe conditions) by doubling
    until it is bracketed and halving the bracket; starts at what was found last.

    After `trials` the best of the steps that were too short but decrease enough, or 0. As `Armijo` in all else.

    >>> import torch, normgeo as ng
    >>> def line(eta): return (eta - 1.0) ** 2, 2.0 * (torch.as_tensor(eta) - 1.0)
    >>> state = ng.steps.StepState({"eta": torch.tensor(0.2)})
    >>> eta = Wolfe(flatness=0.1).value(ng.steps.Stats(torch.tensor(0.0), line=line), state)
    >>> bool(abs(eta - 1) <= 0.1)
    True
    """

    start: float = 0.2
    decrease: float = 1e-4
    flatness: float = 0.9
    most: float = math.inf
    trials: int = 30
    needs = {"closure": 1, "moves": 1}  # noqa: RUF012

    def __post_init__(self) -> None:
        _check("Wolfe", self.start, self.most, self.trials)
        if not 0 < self.decrease < self.flatness < 1:
            raise ValueError("Wolfe needs 0 < decrease < flatness < 1")

    def init_shared(self) -> dict[str, float]:
        return {"eta": self.start}

    def value(self, stats: Stats, state: StepState) -> Tensor:
        assert stats.line is not None
        loss, slope = stats.line(0.0)
        eta = state.shared["eta"].clamp_max(self.most)
        low, high = torch.zeros_like(eta), None
        if not bool(slope < 0):
            return low
        for _ in range(self.trials):
            there, slope_there = stats.line(eta)
            if not bool(there <= loss + self.decrease * eta * slope) or bool(slope_there > -self.flatness * slope):
                high = eta
            elif bool(slope_there >= self.flatness * slope):
                low = eta
                break
            else:
                low = eta
                if bool(low >= self.most):
                    break
            eta = 2 * eta if high is None else (low + high) / 2
            eta = eta.clamp_max(self.most)
        state.shared["eta"] = torch.where(low > 0, low, eta)
        return low


def _check(name: str, start: float, most: float, trials: int) -> None:
    above(name, "start", start)
    above(name, "most", most)
    whole(name, "trials", trials)
    if not math.isfinite(start):
        raise ValueError(f"{name}: start must be finite, got {start}")
