"""A small descent that gives a step size all that it may ask for, and an error for whoever waits for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normgeo.geometry import Leaf
from normgeo.norms import RMS, Frobenius
from normgeo.steps import Stats
from normgeo.steps.base import Move

__all__ = ["Bowl", "NoWaiting"]


class NoWaiting(TorchDispatchMode):
    """Inside, looking at a number of a tensor is an error: on an accelerator it would wait for everything before it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            raise AssertionError("a number of a tensor is looked at (.item(), float(), if), which waits for the device")
        return func(*args, **(kwargs or {}))


class Bowl:
    """½·Σ curvature·W² over two stacks of leaves, matrices and vectors, with directions that are unit in RMS."""

    def __init__(self) -> None:
        self.weights = [_gaussian((3, 2), 0), _gaussian((4,), 1)]
        self.curvature = [_gaussian((3, 2), 2).abs() + 0.1, _gaussian((4,), 3).abs() + 0.1]
        self.radius = [torch.full((3, 1, 1), 0.25, dtype=torch.float64), torch.full((3, 1), 0.5, dtype=torch.float64)]

    def at(self, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        grads = [c * W for c, W in zip(self.curvature, weights, strict=True)]
        return sum(((W * g).sum() / 2 for W, g in zip(weights, grads, strict=True)), start=torch.tensor(0.0)), grads

    def stats(self, t: int, flat: bool, needs: Mapping[str, int]) -> Stats:
        loss, grads = self.at(self.weights)
        moves = []
        for W, g, r in zip(self.weights, grads, self.radius, strict=True):
            G = g * (not flat)
            norm = Frobenius() if W.ndim == 3 else RMS()
            leaves = [Leaf(f"{W.ndim}.{i}", "", tuple(W.shape[1:]), "linear", norm) for i in range(len(W))]
            moves.append(Move(G, G, norm.dualize(G), W, r, leaves))

        def line(eta: Tensor | float) -> tuple[Tensor, Tensor]:
            steps = [m.radius * m.D for m in moves]
            loss, grads = self.at([W - eta * s for W, s in zip(self.weights, steps, strict=True)])
            return loss, -sum(((g * s).sum() for g, s in zip(grads, steps, strict=True)), start=torch.tensor(0.0))

        def hessian(Vs: Sequence[Tensor]) -> list[Tensor]:
            return [c * V for c, V in zip(self.curvature, Vs, strict=True)]

        return Stats(
            torch.tensor(float(t)),
            loss if "loss" in needs else None,
            moves if {"move", "moves", "updates"} & set(needs) else (),
            hessian=hessian if t % needs.get("hvp", t + 1) == 0 else None,
            line=line if t % needs.get("closure", t + 1) == 0 else None,
        )

    def move(self, sizes: Sequence[Tensor], moves: Sequence[Move]) -> None:
        for i, (move, eta) in enumerate(zip(moves, sizes, strict=False)):
            move.update, move.eta = -eta * move.radius * move.D, eta
            self.weights[i] = move.W + move.update


def _gaussian(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
