"""Moments of gradients: what a budget is asked about. A moment knows a basis in which it is diagonal, and so does Q."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.linalg import eigh

__all__ = ["BlockMoment", "DiagonalMoment", "FullMoment", "Moment"]

State = dict[str, Tensor]
Basis = dict[str, Tensor]


@dataclass(frozen=True)
class Moment(ABC):
    """M = E[g hᵀ], symmetrised, of gradients G (n, *shape) of n leaves: h = g is the training (or validation) moment, h the
    validation gradient the cross moment, which may be indefinite.

    M ← M + ρ·(new - M), ρ = (1-β)/(1-βᵗ): the average with weights βᵗ⁻ˢ, unbiased from the first step on; β = 1 is the mean
    of all. `estimate` is the mean over a batch. A subclass says what it keeps of one gradient (`parts`) and in which basis
    that is diagonal (`spectrum`), so that the best operator of an invariant budget is q = allocate(values) in that basis.

    >>> g = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    >>> DiagonalMoment().matrix(DiagonalMoment().estimate(g))
    tensor([[[5., 0.],
             [0., 8.]]])
    """

    beta: float = 0.99

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(
                f"{type(self).__name__}: beta is the weight on the past and must be in [0, 1], got {self.beta}"
            )

    @abstractmethod
    def parts(self, G: Tensor, H: Tensor) -> State:  # (n, *shape), (n, *shape)
        """What is kept of n gradients: tensors (n, ...) whose averages are the moment."""

    @abstractmethod
    def spectrum(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Basis]:  # -> (n, k)
        """Eigenvalues in the basis, and the tensors of the basis."""

    @abstractmethod
    def rotate(self, V: Tensor, basis: Mapping[str, Tensor]) -> Tensor:  # (n, *shape) -> (n, k)
        """Coordinates of gradients in the basis."""

    @abstractmethod
    def back(self, x: Tensor, basis: Mapping[str, Tensor], like: Tensor) -> Tensor:  # (n, k) -> (n, *shape)
        """Gradients from their coordinates."""

    def init(self, W: Tensor) -> State:
        """State of no gradient yet."""
        kept = self.parts(torch.zeros_like(W), torch.zeros_like(W))
        return {**kept, "seen": torch.zeros(len(W), dtype=W.dtype, device=W.device)}

    def observe(self, G: Tensor, state: State, other: Tensor | None = None) -> None:
        """Take in gradients, and for a cross moment those of another source."""
        state["seen"] = state["seen"] + 1
        t = state["seen"]
        rate = 1 / t if self.beta == 1 else (1 - self.beta) / (1 - self.beta**t)
        for name, new in self.parts(G, _like(G, other)).items():
            state[name] = torch.lerp(state[name], new, rate.reshape((-1,) + (1,) * (new.ndim - 1)))

    def estimate(self, G: Tensor, other: Tensor | None = None) -> State:  # (batch, *shape)
        """The moment of one leaf, the mean over a batch of gradients, as a stack of one."""
        return {name: new.mean(0, keepdim=True) for name, new in self.parts(G, _like(G, other)).items()}

    def apply(self, q: Tensor, basis: Mapping[str, Tensor], V: Tensor) -> Tensor:
        """Q V for Q with eigenvalues q in the basis."""
        return self.back(q * self.rotate(V, basis), basis, V)

    def matrix(self, state: Mapping[str, Tensor], shape: tuple[int, ...] | None = None) -> Tensor:  # -> (n, d, d)
        """M as a dense matrix, to look at. `shape` is the leaf's, where it is not that of what is kept."""
        values, basis = self.spectrum(state)
        shape = shape or tuple(values.shape[1:])
        one = torch.eye(math.prod(shape), dtype=values.dtype, device=values.device)
        columns = [self.apply(values, basis, e.reshape(1, *shape).expand(len(values), *shape)) for e in one]
        return torch.stack([column.flatten(1) for column in columns], -1)


@dataclass(frozen=True)
class FullMoment(Moment):
    """All of M (d, d), d the number of entries of a leaf: d times the parameter's memory, so at most `largest` entries.

    >>> moment = FullMoment()
    >>> moment.spectrum(moment.estimate(torch.tensor([[3.0, 4.0]])))[0].round()
    tensor([[ 0., 25.]])
    """

    largest: int = 4096

    def parts(self, G: Tensor, H: Tensor) -> State:
        g, h = G.flatten(1), H.flatten(1)
        if g.shape[1] > self.largest:
            raise ValueError(
                f"FullMoment of a leaf {tuple(G.shape[1:])} would have {g.shape[1]}² entries; use KroneckerMoment() "
                f"or DiagonalMoment(), or raise largest={self.largest}"
            )
        m = g.unsqueeze(-1) * h.unsqueeze(-2)
        return {"moment": (m + m.mT) / 2}

    def spectrum(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Basis]:
        values, vectors = eigh(state["moment"])
        return values, {"vectors": vectors}

    def matrix(self, state: Mapping[str, Tensor], shape: tuple[int, ...] | None = None) -> Tensor:
        return state["moment"]

    def rotate(self, V: Tensor, basis: Mapping[str, Tensor]) -> Tensor:
        return (basis["vectors"].mT @ V.flatten(1).unsqueeze(-1)).squeeze(-1)

    def back(self, x: Tensor, basis: Mapping[str, Tensor], like: Tensor) -> Tensor:
        return (basis["vectors"] @ x.unsqueeze(-1)).reshape(like.shape)


@dataclass(frozen=True)
class DiagonalMoment(Moment):
    """Mⱼⱼ = E[gⱼhⱼ]: the second moments of Adam; as much memory as the parameter.

    >>> DiagonalMoment().estimate(torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [-5.0]]))
    {'moment': tensor([[-1.]])}
    """

    def parts(self, G: Tensor, H: Tensor) -> State:
        return {"moment": (G * H).flatten(1)}

    def spectrum(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Basis]:
        return state["moment"], {}

    def rotate(self, V: Tensor, basis: Mapping[str, Tensor]) -> Tensor:
        return V.flatten(1)

    def back(self, x: Tensor, basis: Mapping[str, Tensor], like: Tensor) -> Tensor:
        return x.reshape(like.shape)


@dataclass(frozen=True)
class BlockMoment(Moment):
    """The blocks of M that belong to the slices along the first `axes` axes of a leaf (rows, heads): (n, blocks, d, d).

    >>> moment = BlockMoment()
    >>> moment.estimate(torch.ones(1, 3, 2))["moment"].shape
    torch.Size([1, 3, 2, 2])
    """

    axes: int = 1

    def parts(self, G: Tensor, H: Tensor) -> State:
        g, h = self._slices(G), self._slices(H)
        m = g.unsqueeze(-1) * h.unsqueeze(-2)
        return {"moment": (m + m.mT) / 2}

    def spectrum(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Basis]:
        values, vectors = eigh(state["moment"])
        return values.flatten(1), {"vectors": vectors}

    def rotate(self, V: Tensor, basis: Mapping[str, Tensor]) -> Tensor:
        return (basis["vectors"].mT @ self._slices(V).unsqueeze(-1)).flatten(1)

    def back(self, x: Tensor, basis: Mapping[str, Tensor], like: Tensor) -> Tensor:
        blocks = x.reshape(self._slices(like).shape)
        return (basis["vectors"] @ blocks.unsqueeze(-1)).reshape(like.shape)

    def _slices(self, G: Tensor) -> Tensor:  # (n, *shape) -> (n, blocks, d)
        if G.ndim <= 1 + self.axes:
            raise ValueError(
                f"BlockMoment(axes={self.axes}) needs leaves with more than {self.axes} axes, got {tuple(G.shape[1:])}"
            )
        return G.flatten(1 + self.axes).flatten(1, self.axes)


def _like(G: Tensor, other: Tensor | None) -> Tensor:
    if other is not None and other.shape != G.shape:
        raise ValueError(f"the other gradients have shape {tuple(other.shape)}, these {tuple(G.shape)}")
    return G if other is None else other
