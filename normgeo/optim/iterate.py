"""The Iterate: what becomes of the weights once direction and step size are known."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.rules.base import State

__all__ = ["Descent", "Iterate"]


class Iterate(ABC):
    """Writes the step. An iterate may keep sequences of its own (averages) and say which weights to evaluate.

    >>> class Averaged(Iterate):
    ...     def init(self, W): return {"mean": W.clone()}
    ...     def write(self, W, D, eta, state):
    ...         state["mean"].lerp_(W - eta * D, 0.1)
    ...         return W - eta * D
    ...     def average(self, W, state): return state["mean"]
    >>> import torch
    >>> Averaged().write(torch.zeros(1), torch.ones(1), 0.5, {"mean": torch.zeros(1)})
    tensor([-0.5000])
    """

    needs: Mapping[str, int] = {}
    entrywise = False
    """whether every entry is written on its own, so that a shard of a leaf is as good as the leaf"""
    joint = False
    """whether only the product η·D matters to `write`: then the radius may come with η, which is smaller than D"""

    def init(self, W: Tensor) -> State:
        """State per leaf."""
        return {}

    @abstractmethod
    def write(self, W: Tensor, D: Tensor, eta: Tensor, state: State) -> Tensor:
        """The new weights; η·D is the step, D with the size of the leaf's radius unless the iterate is `joint`."""

    def follow(self, W: Tensor, written: Tensor, state: State) -> None:
        """See W, what the constraint has made of the weights that `write` returned; `written` itself where η = 0."""
        return

    def average(self, W: Tensor, state: State) -> Tensor:
        """The weights to evaluate with; `Optimizer.averaged()` puts them in place."""
        return W


@dataclass(frozen=True)
class Descent(Iterate):
    """W ← W - η·D.

    >>> import torch
    >>> Descent().write(torch.ones(1), torch.ones(1), torch.tensor(0.25), {})
    tensor([0.7500])
    """

    entrywise = True
    joint = True

    def write(self, W: Tensor, D: Tensor, eta: Tensor, state: State) -> Tensor:
        return torch.addcmul(W, D, eta, value=-1)
