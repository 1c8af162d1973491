"""The Constraint: what is done to gradients before, and to weights after, the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from normgeo.norms import Norm

__all__ = ["Constraint", "Free", "Pull", "Rate"]


class Rate(NamedTuple):
    """How long the step was, each () or (n, 1, ..., 1).

    >>> import torch
    >>> Rate(eta=torch.tensor(0.05), relative=torch.tensor(0.5)).relative
    tensor(0.5000)
    """

    eta: Tensor
    """η = lr · value of the step size"""
    relative: Tensor
    """η over the lr that the group was made with: the schedule alone, whoever runs it"""
    radius: Tensor | float = 1.0
    """r: the update was at most η·r in the leaf's norm"""


class Constraint(ABC):
    """Keeps the weights W (n, *shape) of a stack of leaves where they should be. At η = 0 the optimizer moves
    nothing and keeps the state that `retract` found.

    >>> class Positive(Constraint):
    ...     def retract(self, W, old, rate, state): return W.clamp_min(0)
    >>> import torch
    >>> Positive().retract(torch.tensor([[-1.0, 2.0]]), None, None, {})
    tensor([[0., 2.]])
    """

    needs: Mapping[str, int] = {}
    entrywise = False
    """whether every entry is treated on its own, so that a shard of a leaf is as good as the leaf"""

    def bind(self, norm: Norm) -> Constraint:
        """This constraint for leaves of that norm; those that measure weights keep it."""
        return self

    def init(self, W: Tensor) -> dict[str, Tensor]:
        """State per leaf."""
        return {}

    def tangent(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> Tensor:
        """The part of the gradient along which W may move."""
        return G

    def direct(self, M: Tensor, W: Tensor, state: dict[str, Tensor]) -> Tensor | None:
        """The direction, of norm at most 1, for constraints whose set knows a better one than the norm alone."""
        return None

    @abstractmethod
    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        """Bring W, the weights after the step, back to the set; `old` are the weights before it."""


class Pull(Constraint):
    """W ← W - d·old, d = `pull`: a constraint that the optimizer can apply in the same pass over memory as the step.

    >>> import torch
    >>> class Half(Pull):
    ...     def pull(self, rate): return 0.5 * rate.eta
    >>> Half().retract(torch.ones(1), torch.ones(1), Rate(torch.tensor(0.1), torch.tensor(1.0)), {})
    tensor([0.9500])
    """

    entrywise = True

    @abstractmethod
    def pull(self, rate: Rate) -> Tensor | None:
        """d, () or (n, 1, ..., 1); None for 0."""

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        d = self.pull(rate)
        return W if d is None else torch.addcmul(W, old, d, value=-1)


@dataclass(frozen=True)
class Free(Pull):
    """No constraint.

    >>> import torch
    >>> Free().retract(torch.ones(1), torch.zeros(1), None, {})
    tensor([1.])
    """

    def pull(self, rate: Rate) -> None:
        return None
