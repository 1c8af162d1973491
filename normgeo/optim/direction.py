"""The Direction: a smoothed gradient in, a direction of unit size out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from normgeo.norms import Norm
from normgeo.rules.base import State
from normgeo.steps import Stats

__all__ = ["Direction", "Dualize", "with_axes"]


class Direction(ABC):
    """Turns M (n, *shape) into the direction D that is subtracted. By default it is the dual of M in the leaf's norm.

    >>> import torch
    >>> class Normalised(Direction):
    ...     def __call__(self, M, state, W): return M / M.flatten(1).norm(dim=1)
    >>> Normalised()(torch.tensor([[3.0]]), {}, None)
    tensor([[1.]])
    """

    needs: Mapping[str, int] = {}

    def bind(self, norm: Norm) -> Direction:
        """This direction for leaves of that norm; those that measure what they give keep it."""
        return self

    def init(self, W: Tensor) -> State:
        """State per leaf."""
        return {}

    def observe(self, G: Tensor, state: State, stats: Stats) -> None:
        """See the raw gradients, for preconditioners; `stats` has hvp and validation in the steps that `needs` asks for."""
        return

    @abstractmethod
    def __call__(self, M: Tensor, state: State, W: Tensor) -> Tensor:
        """The direction D."""


def with_axes(x: Tensor) -> Tensor:  # (n,) -> (n, 1), (n, *shape) as it is
    """Numbers as vectors of one entry, for operators on what a leaf's axes index."""
    return x.unsqueeze(1) if x.ndim == 1 else x


@dataclass(frozen=True)
class Dualize(Direction):
    """D = argmax ⟨M, t⟩ over norm(t) ≤ 1.

    >>> import torch, normgeo as ng
    >>> Dualize(ng.norms.Linf())(torch.tensor([[3.0, -1.0]]), {}, None)
    tensor([[ 1., -1.]])
    """

    norm: Norm

    def __call__(self, M: Tensor, state: State, W: Tensor) -> Tensor:
        return self.norm.dualize(M)
