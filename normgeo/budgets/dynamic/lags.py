"""Lag moments: how gradients agree with those of k steps ago."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normgeo.budgets.moments import DiagonalMoment, Moment, State

__all__ = ["IsotropicMoment", "LagMoment"]


@dataclass(frozen=True)
class IsotropicMoment(DiagonalMoment):
    """tr M/d alone, standing for M = (tr M/d)·I: one number for a leaf of d entries.

    >>> IsotropicMoment().estimate(torch.tensor([[3.0, 4.0]]))
    {'moment': tensor([[12.5000]])}
    """

    def parts(self, G: Tensor, H: Tensor) -> State:
        return {"moment": (G * H).flatten(1).mean(1, keepdim=True)}


@dataclass(frozen=True)
class LagMoment:
    """R[k] = E[g[n] g[n-k]ᵀ], k = 0, ..., lags - 1, symmetrised, of gradients (n, *shape) of n leaves; of each R[k]
    what `moment` keeps, (n, lags, ...), averaged with its β.

    The last gradients are kept, so memory grows by `lags` times the leaves and `lags` times the moment. Lag k is seen k
    steps later than lag 0, so every lag has a bias correction of its own (X0-13); what has not been seen is 0. The mean
    gradient is part of R: a gradient that does not change agrees with all of its past. With `other`, the fresh
    gradients of another source (validation), R[k] = E[other[n] g[n-k]ᵀ].

    >>> lags = LagMoment(lags=2, moment=DiagonalMoment(beta=1.0))
    >>> state = lags.init(torch.zeros(1, 1))
    >>> for g in (1.0, 2.0, 4.0): lags.observe(torch.tensor([[g]]), state)
    >>> state["moment"].flatten()  # (1 + 4 + 16)/3 and (2·1 + 4·2)/2
    tensor([7., 5.])
    """

    lags: int = 8
    moment: Moment = field(default_factory=DiagonalMoment)

    def __post_init__(self) -> None:
        if self.lags < 1:
            raise ValueError(f"LagMoment: lags must be at least 1 (lag 0 is the present), got {self.lags}")

    def init(self, W: Tensor) -> State:
        """State of no gradient yet."""
        kept = self.moment.parts(torch.zeros_like(W), torch.zeros_like(W))
        stacked = {name: x.new_zeros(len(x), self.lags, *x.shape[1:]) for name, x in kept.items()}
        return {**stacked, "past": W.new_zeros(len(W), self.lags, *W.shape[1:]), "seen": W.new_zeros(len(W))}

    def observe(self, G: Tensor, state: State, other: Tensor | None = None) -> None:
        """Take in the next gradients; the newest stands first in `state["past"]`."""
        past = torch.cat([G.unsqueeze(1), state["past"][:, :-1]], 1)
        seen = state["seen"] + 1
        count = seen.unsqueeze(1) - torch.arange(self.lags, device=G.device)
        now = (G if other is None else other).unsqueeze(1).expand_as(past)
        for name, new in self.moment.parts(now.flatten(0, 1), past.flatten(0, 1)).items():
            new = new.unflatten(0, past.shape[:2])
            rate = self._rate(count).reshape(count.shape + (1,) * (new.ndim - 2))
            state[name] = torch.lerp(state[name], new, rate)
        state["past"], state["seen"] = past, seen

    def _rate(self, count: Tensor) -> Tensor:
        """(1-β)/(1-βᵗ), t how often this lag has been seen; 0 before."""
        beta, t = self.moment.beta, count.clamp_min(1)
        # At β = 0 and 1 the formula is 0/0, and its limit a power of t.
        rate = t**-beta if beta in (0, 1) else (1 - beta) / -torch.expm1(t * math.log(beta))
        return torch.where(count > 0, rate, 0)
