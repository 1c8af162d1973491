"""Duality maps of leaves of which every rank has a shard, without putting the leaf together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.linalg import exponent, shift
from normgeo.norms import Norm
from normgeo.optim.direction import Direction
from normgeo.optim.layout import Shards
from normgeo.optim.ranks import Ranks
from normgeo.rules.base import State

__all__ = ["Alone", "Euclidean", "costly", "on_shards"]

NOTHING = -(2**14)  # the exponent of 0, below that of any number


@dataclass(frozen=True)
class Alone(Direction):
    """dualize(shard) = shard of dualize, for norms that make it entry by entry or slice by slice. A shard may be empty."""

    norm: Norm

    def __call__(self, M: Tensor, state: State, W: Tensor) -> Tensor:
        return self.norm.dualize(M) if M.numel() else M


@dataclass(frozen=True)
class Euclidean(Direction):
    """D = c·M/‖M‖₂ from shards: each rank tells the others two numbers for each leaf, max|M| as a power of two and the sum
    of squares in that unit, so that nothing can overflow that did not in one piece."""

    ranks: Ranks
    parts: tuple[int, ...]
    """ranks that together have the leaf once"""
    length: float
    """c = ‖D‖₂"""

    def __call__(self, M: Tensor, state: State, W: Tensor) -> Tensor:
        axes = tuple(range(1, M.ndim))
        nothing = M.new_zeros(M.shape[:1] + (1,) * (M.ndim - 1))
        e = exponent(M, M.ndim - 1) if M.numel() else nothing.int()
        squares = shift(M, -e).square().sum(axes, keepdim=True) if M.numel() else nothing
        told = self.ranks.each(torch.stack([torch.where(squares == 0, NOTHING, e).to(M.dtype), squares]))
        exponents, sums = told[list(self.parts)].unbind(1)
        most = exponents.amax(0)
        most = torch.where(most == NOTHING, 0, most)
        size = torch.ldexp(sums, 2 * (exponents - most).clamp_min(-200)).sum(0).sqrt().clamp_min(0.25)
        return shift(M, -most.int()) * (self.length / size)


def on_shards(norm: Norm, layout: Shards, shape: Sequence[int]) -> Direction | None:
    """The duality map of leaves of that shape where each rank has a shard, or None where a rank must have all of one."""
    if not layout.split:
        return None if costly(norm) else Alone(norm)
    if norm.entrywise or max(layout.split) < norm.independent:
        return Alone(norm)
    # Vectors are cheap to send, and in one place their squares add up to the bit as they do without sharding.
    if not norm.euclidean or len(shape) == 1:
        return None
    ones = torch.ones((1, *shape), dtype=torch.float64)
    length = float(norm.dualize(ones).norm())
    found = layout.boxes(shape)
    return Euclidean(layout.ranks, tuple(found.index(box) for box in dict.fromkeys(found) if box.entries), length)


def costly(norm: Norm) -> bool:
    """Whether a duality map does more than a few passes over its leaf, so that ranks which all have the leaf gain from
    computing it once."""
    return not (norm.entrywise or norm.euclidean or norm.independent >= norm.ndim - 1)
