"""Which leaves share a stack, and where in it each lies: as it is, transposed, or among zeros."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.geometry import Leaf
from normgeo.linalg import SMALLEST_MIXED
from normgeo.norms import Norm
from normgeo.optim.layout import Whole, layout_of
from normgeo.optim.ranks import Ranks
from normgeo.optim.shards import costly

__all__ = ["Bunch", "Entry", "Place", "at_a_time", "bunches", "most_entries"]

Entry = tuple[Parameter, Leaf]

# Entries of a stack on CPU: 1 MB in float32, the second-level cache of one core. All that happens to a leaf in a step then
# happens in the cache, and temporaries are small enough for malloc to recycle. Accelerators want whole stacks, but not
# without bound: a step needs eight tensors of this size, 2 GB in float32.
MOST = {"cpu": 2**18}
MOST_ELSEWHERE = 2**26

# Entries of leaves together, elsewhere, whose norm needs no products: what takes longer to copy than to launch stays where
# it is. An estimate: some 20 launches of 5 µs, against three copies at 4 TB/s.
MOST_COPIED = 2**24

# Entries of whole leaves that come to one rank at a time: 256 MB in float32, or one leaf if that is larger. While they are
# under way the rank works on others.
WHOLE = 2**26

# A stack more costs as much as the polar factor of a matrix with sides m ≤ n and this m²n: launches against arithmetic.
# On CPU measured: 25 matrices with sides from 64 to 128 take 35 ms alone, 13.5 in 3 stacks, 16.5 with 2²³ here. Elsewhere
# an estimate: 60 launches of 5 µs, at a tenth of the speed of an H200.
STACK = {"cpu": 2**19}
STACK_ELSEWHERE = 2**28


@dataclass(frozen=True)
class Place:
    """How a leaf lies in its slot of the stack, and its dual as a multiple of the dual in the stack's norm."""

    shape: tuple[int, ...]
    turned: bool = False
    scale: float = 1.0

    def view(self, slot: Tensor) -> Tensor:
        """The leaf in its slot."""
        if slot.shape == self.shape and not self.turned:
            return slot
        seen = slot.mT if self.turned else slot
        return seen[: self.shape[0], : self.shape[1]]


class Bunch(NamedTuple):
    """Leaves that the mathematics sees as one tensor (n, *shape)."""

    entries: list[Entry]
    norm: Norm
    shape: tuple[int, ...]
    places: list[Place]


def bunches(
    entries: Sequence[Entry], entrywise: bool, simple: bool, ranks: Ranks | None = None, alone: bool = False
) -> Iterator[Bunch]:
    """Leaves of equal norm, shape, dtype, device and layout, no more than `MOST` entries together, and on many ranks, their
    own or `ranks` that share the work, no more than these should have whole at a time. Where parts are `simple` and
    nobody shares, transposed shapes count as equal, and small matrices are padded to share a stack where that costs less
    than another one. entrywise: of the parts, for the layout. alone: only leaves of one parameter share a stack.
    """
    found: dict[Any, list[tuple[Entry, float]]] = {}
    for parameter, leaf in entries:
        layout = layout_of(parameter, leaf, entrywise)
        whole = simple and ranks is None and layout == Whole()
        spectral = leaf.norm.as_spectral(leaf.shape) if whole else None
        norm, scale = spectral or (leaf.norm, 1.0)
        shape = tuple(sorted(leaf.shape)) if spectral else leaf.shape
        at = id(parameter) if alone else None
        key = (norm, parameter.dtype, parameter.device, bool(spectral), at, layout, shape)
        found.setdefault(key, []).append(((parameter, leaf), scale))
    for (norm, _, device, spectral, _, layout, shape), these in _padded(found).items():
        most = most_entries(device) if costly(norm) else min(most_entries(device), MOST_COPIED)
        if spectral:  # those that lie alike next to each other, so that few chunks have both
            these = sorted(these, key=lambda each: _tall(each[0][1].shape))
        sharing = layout.ranks or ranks
        size = max(1, most // max(1, math.prod(shape))) if sharing is None else at_a_time(shape, sharing.size)
        for i in range(0, len(these), size):
            chunk = these[i : i + size]
            first = chunk[0][0][1].shape
            tall = bool(spectral) and _tall(first)
            places = [
                Place(leaf.shape, bool(spectral) and _tall(leaf.shape) != tall, scale) for (_, leaf), scale in chunk
            ]
            yield Bunch([entry for entry, _ in chunk], norm, shape[::-1] if tall else shape, places)


def most_entries(device: torch.device) -> int:
    """How many entries a stack there may have, if it has more than one leaf or one that can be divided."""
    return MOST.get(device.type, MOST_ELSEWHERE)


def at_a_time(shape: Sequence[int], ranks: int) -> int:
    """How many leaves of that shape ranks put together before the next ones."""
    return ranks * max(1, WHOLE // max(1, math.prod(shape)))


def _padded(found: dict[Any, list[tuple[Entry, float]]]) -> dict[Any, list[tuple[Entry, float]]]:
    """The same with small matrices of different shapes together. Never across the size from which products are in bfloat16:
    its rounding is stated for matrices that are themselves that large."""
    out: dict[Any, list[tuple[Entry, float]]] = {}
    for key, these in sorted(found.items(), key=lambda item: -math.prod(item[0][-1]) if item[0][3] else 0):
        *kind, shape = key
        for other in [key for key in out if list(key[:-1]) == kind] if kind[3] else []:
            (m, n), (k, l) = shape, other[-1]  # noqa: E741
            both = (max(m, k), max(n, l))
            more = len(these) * (_work(both) - _work(shape)) + len(out[other]) * (_work(both) - _work((k, l)))
            alike = (m >= SMALLEST_MIXED) == (k >= SMALLEST_MIXED)
            if alike and more <= STACK.get(kind[2].type, STACK_ELSEWHERE):
                joint = [*out.pop(other), *these]
                out[(*kind, both)] = [*out.get((*kind, both), ()), *joint]
                break
        else:
            out[key] = these
    return out


def _work(shape: tuple[int, ...]) -> int:
    return shape[0] ** 2 * shape[1]


def _tall(shape: tuple[int, ...]) -> bool:
    return shape[0] > shape[1]
