"""Landscapes: losses of one small weight, in float64, for many runs at once. All that is random follows from the seeds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Factors", "Landscape", "Network", "Quadratic", "Rosenbrock", "curvature"]


class Landscape(ABC):
    """A loss of weights (*runs, seeds, rows, columns): the same landscape drawn anew for each seed.

    The gradient of a step is that of the loss at weights moved by noise of size `noise`, the same for all runs of a seed.

    >>> place = Quadratic(condition=10.0, seeds=2)
    >>> place.loss(place.start()).shape
    torch.Size([2])
    """

    rows: int = 4
    columns: int = 3
    noise: float = 0.03
    layers: tuple[int, ...] = ()
    """columns of each layer, if it has some"""
    seeds: int

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def start(self) -> Tensor:  # (seeds, rows, columns)
        ...

    @abstractmethod
    def loss(self, w: Tensor) -> Tensor:  # (*runs, seeds, rows, columns) -> (*runs, seeds)
        ...

    def gradient(self, w: Tensor, step: int) -> Tensor:  # (*runs, seeds, rows, columns) -> the same
        at = (w + self.noise * self._normal(1 + step, self.rows, self.columns)).detach().requires_grad_()
        return torch.autograd.grad(self.loss(at).sum(), at)[0]

    def _normal(self, stream: int, *shape: int) -> Tensor:  # -> (seeds, *shape)
        draws = [torch.Generator().manual_seed(1_000_003 * seed + stream) for seed in range(self.seeds)]
        return torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in draws])


def curvature(condition: float, dim: int, generator: torch.Generator) -> Tensor:  # -> (dim, dim)
    """A Hessian with eigenvalues from 1 down to 1/condition, evenly in their logarithm, in a random basis."""
    u = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return (u * torch.logspace(0, -math.log10(condition), dim, dtype=torch.float64)) @ u.mT


@dataclass(frozen=True)
class Quadratic(Landscape):
    """½ wᵀHw from w ~ N(0, I)."""

    condition: float
    seeds: int = 3

    @property
    def name(self) -> str:
        return f"quadratic, condition {self.condition:g}"

    @cached_property
    def hessian(self) -> Tensor:  # (seeds, d, d)
        size = self.rows * self.columns
        return torch.stack(
            [curvature(self.condition, size, torch.Generator().manual_seed(s)) for s in range(self.seeds)]
        )

    def start(self) -> Tensor:
        return self._normal(0, self.rows, self.columns)

    def loss(self, w: Tensor) -> Tensor:
        w = w.flatten(-2)
        return torch.einsum("...si,sij,...sj->...s", w, self.hessian, w) / 2

    def gradient(self, w: Tensor, step: int) -> Tensor:
        moved = w + self.noise * self._normal(1 + step, self.rows, self.columns)
        return torch.einsum("sij,...sj->...si", self.hessian, moved.flatten(-2)).reshape(w.shape)


@dataclass(frozen=True)
class Rosenbrock(Landscape):
    """Σ 10·(wᵢ₊₁ - wᵢ²)² + (1 - wᵢ)², a curved valley along the coordinates, from w ~ N(0, ¼)."""

    seeds: int = 3
    name = "Rosenbrock"

    def start(self) -> Tensor:
        return self._normal(0, self.rows, self.columns) / 2

    def loss(self, w: Tensor) -> Tensor:
        w = w.flatten(-2)
        return (10 * (w[..., 1:] - w[..., :-1].square()).square() + (1 - w[..., :-1]).square()).sum(-1)


@dataclass(frozen=True)
class Factors(Landscape):
    """½‖U Vᵀ - A‖²_F, A (6, 6) of rank 2 with singular values 1 and .1, from near the saddle 0."""

    seeds: int = 3
    name = "factors of a matrix"
    rows = 12
    columns = 2

    def start(self) -> Tensor:
        return self._normal(0, self.rows, self.columns) / 10

    def loss(self, w: Tensor) -> Tensor:
        left, right = w.chunk(2, -2)
        return (left @ right.mT - self._target).square().sum((-2, -1)) / 2

    @cached_property
    def _target(self) -> Tensor:  # (seeds, 6, 6)
        sides = torch.linalg.qr(self._normal(-1, 2, self.rows // 2, self.columns))[0]
        return sides[:, 0] * torch.tensor([1.0, 0.1], dtype=sides.dtype) @ sides[:, 1].mT


@dataclass(frozen=True)
class Network(Landscape):
    """Mean ½(f(x) - y)² over 64 examples, f(x) = Σ_u a_u·tanh(wᵤ·x + b_u) with 6 hidden units, batches of 16.

    A row of the weight is a hidden unit, its columns are w (inputs of sizes 1, 2, ½), b and a: three layers.
    y = sin(2x₁) + x₂x₃.
    """

    seeds: int = 3
    name = "network"
    rows = 6
    columns = 5
    layers = (3, 1, 1)

    def start(self) -> Tensor:
        return self._normal(0, self.rows, self.columns) * torch.tensor([1, 1, 1, 0, 1]) / 2

    def loss(self, w: Tensor) -> Tensor:
        return self._error(w, self._inputs)

    def gradient(self, w: Tensor, step: int) -> Tensor:
        first = 16 * step % 64
        at = w.detach().requires_grad_()
        return torch.autograd.grad(self._error(at, self._inputs[:, first : first + 16]).sum(), at)[0]

    @cached_property
    def _inputs(self) -> Tensor:  # (seeds, examples, 3)
        return self._normal(-1, 64, 3) * torch.tensor([1, 2, 0.5], dtype=torch.float64)

    def _error(self, w: Tensor, x: Tensor) -> Tensor:
        y = (2 * x[..., 0]).sin() + x[..., 1] * x[..., 2]
        hidden = (x @ w[..., :3].mT + w[..., 3].unsqueeze(-2)).tanh()
        return ((hidden @ w[..., 4:]).squeeze(-1) - y).square().mean(-1) / 2
