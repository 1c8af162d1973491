"""Averages of weights: train with one sequence, evaluate with another (`with opt.averaged():`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.optim.iterate import Iterate
from normgeo.rules.base import State

__all__ = ["BEMA", "EMA", "ScheduleFree"]


@dataclass(frozen=True)
class EMA(Iterate):
    """W ← W - η·D, and to evaluate  w̄_t = Σ β^(t-s) W_s / Σ β^(t-s)  over the weights after each step (and before the
    first): an exponential average with bias correction. Constraints have been applied to what is averaged, and
    `Optimizer.averaged` applies them to the average.

    >>> ema, W = EMA(0.5), torch.zeros(1)
    >>> state = ema.init(W)
    >>> W = ema.write(W, torch.ones(1), torch.tensor(-3.0), state)
    >>> W, ema.average(W, state)
    (tensor([3.]), tensor([2.]))
    """

    entrywise = True
    beta: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"EMA: beta is the weight on the past and must be in [0, 1), got {self.beta}")

    def init(self, W: Tensor) -> State:
        return {"mean": W.clone(), "t": _zeros(W)}

    def write(self, W: Tensor, D: Tensor, eta: Tensor, state: State) -> Tensor:
        # W is what the last step made, constraints included, so the average is taken one step late and completed on demand.
        state["mean"] = self.average(W, state)
        state["t"] = state["t"] + 1
        return W - eta * D

    def average(self, W: Tensor, state: State) -> Tensor:
        weight = (
            (1 - self.beta) / -torch.expm1((state["t"] + 1) * math.log(self.beta)) if self.beta else state["t"] * 0 + 1
        )
        return torch.lerp(state["mean"], W, _like(weight, W))


@dataclass(frozen=True)
class BEMA(Iterate):
    """W ← W - η·D, and to evaluate  a_t·(W_t - W_τ) + m_t  with  a_t = (ρ + γt)^-bias,  m ← (1 - b_t)·m + b_t·W_t,
    b_t = (ρ + γt)^-power,  at every `every`-th step from τ = `start` on; before that W itself. The first term takes away
    the bias of the average m towards where it started; bias = ∞ leaves the average alone. Source: Block and Zhang, arXiv
    2508.00180; it is an average to evaluate with, not an optimizer (erratum X2-11).

    >>> bema, W = BEMA(every=1), torch.zeros(1)
    >>> state = bema.init(W)
    >>> W = bema.write(W, torch.ones(1), torch.tensor(-1.0), state)
    >>> bema.average(W, state)
    tensor([0.9206])
    """

    entrywise = True
    bias: float = 0.2
    power: float = 0.5
    rho: float = 10.0
    gamma: float = 1.0
    every: int = 1
    start: int = 0

    def __post_init__(self) -> None:
        if not (self.bias >= 0 and 0 <= self.power <= 1 and self.rho >= 1 and self.gamma >= 0):
            raise ValueError("BEMA needs bias ≥ 0, power in [0, 1], rho ≥ 1 and gamma ≥ 0, so that b_t is at most 1")
        if self.every < 1 or self.start < 0:
            raise ValueError("BEMA needs whole numbers every ≥ 1 and start ≥ 0")

    def init(self, W: Tensor) -> State:
        return {"mean": W.clone(), "start": W.clone(), "t": _zeros(W)}

    def write(self, W: Tensor, D: Tensor, eta: Tensor, state: State) -> Tensor:
        early = _like(state["t"] <= self.start, W)
        state["start"] = torch.where(early, W, state["start"])
        state["mean"] = torch.where(early, W, self._mean(W, state))
        state["t"] = state["t"] + 1
        return W - eta * D

    def average(self, W: Tensor, state: State) -> Tensor:
        reach = self.rho + self.gamma * state["t"]
        corrected = _like(reach.pow(-self.bias), W) * (W - state["start"]) + self._mean(W, state)
        return torch.where(_like(state["t"] <= self.start, W), W, corrected)

    def _mean(self, W: Tensor, state: State) -> Tensor:
        weight = (self.rho + self.gamma * state["t"]).pow(-self.power)
        return torch.lerp(state["mean"], W, _like(torch.where(state["t"] % self.every == 0, weight, 0.0), W))


@dataclass(frozen=True)
class ScheduleFree(Iterate):
    """Gradients at y = (1 - β)·z + β·x;  z ← z - η·D;  x ← (1 - c)·x + c·z,  c = η²/Σ η².  The weights are y, to evaluate
    is x, an average that needs no horizon: use a constant step size (with a warm-up) in place of a schedule. What a
    constraint takes from y it takes from z too, so y obeys it exactly, and x where it is evaluated (`Optimizer.averaged`);
    in the published form decay reaches y through z and x alone, (1 - β + βc) of it in the same step. Use a rule with
    little or no momentum (`rules.Plain()`): β has its place. Source: Defazio et al., arXiv 2405.15682.

    >>> free, W = ScheduleFree(beta=0.5), torch.zeros(1)
    >>> state = free.init(W)
    >>> for _ in range(2): W = free.write(W, torch.ones(1), torch.tensor(-1.0), state)
    >>> W, free.average(W, state)
    (tensor([1.7500]), tensor([1.5000]))
    """

    entrywise = True
    beta: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"ScheduleFree: beta is the share of the average and must be in [0, 1], got {self.beta}")

    def init(self, W: Tensor) -> State:
        return {"z": W.clone(), "x": W.clone(), "squares": _zeros(W)}

    def write(self, W: Tensor, D: Tensor, eta: Tensor, state: State) -> Tensor:
        square = eta.square().expand(len(W), *eta.shape[1:]).reshape(len(W), -1).amax(1)  # W may be empty
        state["squares"] = state["squares"] + square
        state["z"] = state["z"] - eta * D
        share = torch.where(state["squares"] > 0, square / state["squares"], 0.0)
        state["x"] = torch.lerp(state["x"], state["z"], _like(share, W))
        return torch.lerp(state["z"], state["x"], self.beta)

    def follow(self, W: Tensor, written: Tensor, state: State) -> None:
        state["z"] = state["z"] + (W - written)

    def average(self, W: Tensor, state: State) -> Tensor:
        return state["x"]


def _zeros(W: Tensor) -> Tensor:  # (n,)
    return torch.zeros(len(W), dtype=W.dtype, device=W.device)


def _like(x: Tensor, W: Tensor) -> Tensor:  # (n,) -> (n, 1, ..., 1)
    return x.reshape((-1,) + (1,) * (W.ndim - 1))
