"""Momentum that tunes itself on the lag curve of its own gradients."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.rules.base import Rule, State, drop_stale, never
from normgeo.rules.lags import LagCurve, best_momentum

__all__ = ["TunedMomentum"]


@dataclass(frozen=True)
class TunedMomentum(Rule):
    """m ← β·m + (1 - β)·G,  M = m, with a β for every leaf that is set anew every `every` steps to the best momentum of the
    leaf's lag curve (`LagCurve`, `best_momentum`), from `beta` until then. Which momentum a norm wants thus comes from how
    long its gradients agree with themselves.

    The curve takes at most `entries` entries of a leaf, evenly spread: the inner product of a leaf up to its scale, which
    the best β does not depend on. It keeps `lags` of them. `most` bounds β: without centring a steady gradient asks for the
    longest memory that the lags allow. Source: Algorithm 1 of *Optimizing optimizers for fast gradient-based learning*,
    with errata X0-13.

    >>> import normgeo as ng
    >>> opt = ng.optimizer(ng.nn.MLP(4, 8, 2), rule=TunedMomentum(every=50))
    """

    beta: float = 0.9
    every: int = 100
    lags: int = 20
    memory: float = 0.99
    center: bool = False
    most: float = 0.99
    entries: int = 1024

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= self.most < 1:
            raise ValueError(f"TunedMomentum needs 0 ≤ beta ≤ most < 1, got beta={self.beta}, most={self.most}")
        if self.every < 1 or self.entries < 1:
            raise ValueError("TunedMomentum needs whole numbers every ≥ 1 and entries ≥ 1")
        self._curve  # noqa: B018  says what is wrong with the rest

    @property
    def _curve(self) -> LagCurve:
        return LagCurve(self.lags, self.memory, self.center)

    def init(self, W: Tensor, independent: int = 0) -> State:
        state = {"momentum": torch.zeros_like(W), "beta": W.new_full((len(W),), self.beta)}
        if independent:
            state["age"] = never(W, independent)
        return {**state, **self._curve.init(0 * self._sample(W))}

    def update(self, G: Tensor, state: State) -> Tensor:
        self._curve.update(self._sample(G), state)
        tuned, _ = best_momentum(self._curve.read(state))
        due = (state["t"] % self.every == 0) & (state["t"] > self.lags)
        state["beta"] = torch.where(due, tuned.clamp_max(self.most), state["beta"])
        beta = state["beta"].reshape((-1,) + (1,) * (G.ndim - 1))
        state["momentum"] = torch.lerp(G, state["momentum"], beta)
        if "age" in state:
            memory = 1 / (1 - state["beta"]).reshape((-1,) + (1,) * (state["age"].ndim - 1))
            drop_stale(state["momentum"], G, state["age"], memory)
        return state["momentum"]

    def _sample(self, G: Tensor) -> Tensor:  # (n, *shape) -> (n, at most entries)
        flat = G.reshape(len(G), -1)
        return flat[:, :: -(-flat.shape[1] // self.entries)]
