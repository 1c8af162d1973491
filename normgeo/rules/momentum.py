"""Momentum: a geometric memory of past gradients. β is the weight on the past."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.rules.base import Rule, State, drop_stale, never

__all__ = ["HeavyBall", "Momentum", "Plain"]


@dataclass(frozen=True)
class Plain(Rule):
    """M = G, no memory.

    >>> Plain().update(torch.ones(1, 1), {})
    tensor([[1.]])
    """

    entrywise = True

    def update(self, G: Tensor, state: State) -> Tensor:
        return G


@dataclass(frozen=True)
class Momentum(Rule):
    """m ← β m + (1-β) G from m = 0;  M = m, or with `nesterov` M = β m + (1-β) G, the average as if G were seen twice.

    There is no bias correction: duality maps do not see the scale of M. Rows of tables that have had no gradient for
    1/(1-β) steps are dropped from m.

    >>> rule = Momentum(0.9)
    >>> rule.update(torch.ones(1, 1), rule.init(torch.zeros(1, 1)))
    tensor([[0.1000]])
    """

    entrywise = True
    beta: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_beta(type(self).__name__, self.beta)

    def init(self, W: Tensor, independent: int = 0) -> State:
        return _buffer(W, independent)

    def update(self, G: Tensor, state: State) -> Tensor:
        m = state["momentum"].lerp_(G, 1 - self.beta)
        _forget(G, state, self.beta)
        return torch.lerp(G, m, self.beta) if self.nesterov else m

    def still(self, state: State) -> Tensor | None:
        own = type(self).update is Momentum.update  # a rule that is made of this one may do more with gradients
        return state["momentum"] if own and "age" not in state else None


@dataclass(frozen=True)
class HeavyBall(Rule):
    """m ← β m + G from m = 0;  M = m, or with `nesterov` M = G + β m. As in torch.optim.SGD; 1/(1-β) times the size of
    `Momentum`, which matters only to directions that see scale. Gradients must stay below 1-β of the
    largest number of the dtype, or m overflows (for `Momentum` below half of it).

    >>> rule = HeavyBall(0.9, nesterov=True)
    >>> rule.update(torch.ones(1, 1), rule.init(torch.zeros(1, 1)))
    tensor([[1.9000]])
    """

    entrywise = True
    beta: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check_beta(type(self).__name__, self.beta)

    def init(self, W: Tensor, independent: int = 0) -> State:
        return _buffer(W, independent)

    def update(self, G: Tensor, state: State) -> Tensor:
        m = state["momentum"].mul_(self.beta).add_(G)
        _forget(G, state, self.beta)
        return G + self.beta * m if self.nesterov else m


def _buffer(W: Tensor, independent: int) -> State:
    state = {"momentum": torch.zeros_like(W)}
    if independent:
        state["age"] = never(W, independent)
    return state


def _forget(G: Tensor, state: State, beta: float) -> None:
    if "age" in state:
        drop_stale(state["momentum"], G, state["age"], 1 / (1 - beta))


def _check_beta(name: str, beta: float) -> None:
    if not 0 <= beta < 1:
        raise ValueError(f"{name}: beta is the weight on the past and must be in [0, 1), got {beta}")
