"""Which entries of a parameter a tensor shows: sizes and strides on the parameter's own entries, and the View for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from normgeo.geometry.leaf import View

__all__ = ["Axis", "Entries", "view_of"]

Axis = tuple[int, int]
"""(size, stride): how many entries, and how far apart they are in the parameter's row-major order"""


@dataclass(frozen=True)
class Entries:
    """Entry (i, j, ...) of a tensor is entry offset + Σ index·stride of the parameter, in row-major order.

    >>> import torch
    >>> w = torch.zeros(6, 4)
    >>> Entries.all(w.shape).follow(w, w.t()[:, 3:])
    Entries(axes=((4, 1), (3, 4)), offset=12)
    """

    axes: tuple[Axis, ...]
    offset: int = 0

    @classmethod
    def all(cls, shape: Sequence[int]) -> Entries:
        """Those of the whole parameter."""
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        return cls(tuple(zip(shape, strides, strict=True)))

    def follow(self, before: Tensor, after: Tensor) -> Entries | None:
        """The entries of `after`, a view of the tensor `before` that has these; None if they have no strides."""
        # By the storage itself: on the meta device all addresses are 0.
        if before.untyped_storage()._cdata != after.untyped_storage()._cdata:
            return self if before.shape == after.shape else None
        # From memory to entries: each axis of `before` takes `step` in memory and `stride` in the parameter.
        known = sorted(
            [
                (step, size, stride)
                for step, (size, stride) in zip(before.stride(), self.axes, strict=True)
                if size > 1 and step
            ],
            reverse=True,
        )
        offset = self.offset
        rest = after.storage_offset() - before.storage_offset()
        for step, _, stride in known:
            offset += rest // step * stride
            rest %= step
        axes: list[Axis] = []
        for size, step in zip(after.shape, after.stride(), strict=True):
            there = 0 if size == 1 or step == 0 else _stride(known, size, step)
            if there is None or rest:
                return None
            axes.append((size, there))
        return Entries(tuple(axes), offset)


def _stride(known: list[tuple[int, int, int]], size: int, step: int) -> int | None:
    """What `size` steps in memory are in the parameter, where that is a stride too."""
    for i, (unit, count, stride) in enumerate(known):
        if step % unit == 0:
            out, reach = step // unit * stride, count // (step // unit)
            while size > reach and i > 0:  # goes on in the next larger axis, if that is as far in the parameter
                i -= 1
                if known[i][0] != step * reach or known[i][2] != out * reach:
                    return None
                reach *= known[i][1]
            return out if size <= reach else None
    return None


def view_of(shape: Sequence[int], groups: Sequence[tuple[str, Sequence[Axis]]], offset: int = 0) -> View | None:
    """The View that shows a parameter of this shape as a tensor with one axis for each group of axes; None if it is
    stored like that. Entries that the groups do not cover are selected by the offset.

    >>> print(view_of((12, 2), [("o", [(4, 2)]), ("i", [(2, 1)])], offset=16))
    (n o) i -> n o i [2]
    """
    stored = Entries.all(shape).axes
    pieces, span = _pieces(stored, groups, offset)
    names: dict[tuple[int, int], str] = {}
    left, sizes = [], []
    for a in range(len(stored)):
        mine = sorted((piece for piece in pieces if piece[0] == a), key=lambda piece: -piece[1])
        for axis, low, high, owner in mine:
            alike = sum(name.rstrip("0123456789") == owner for name in names.values())
            name = f"{owner}{alike + 1}" if alike else owner
            names[axis, low] = name
            if len(mine) > 1:
                sizes.append((name, high // low))
        left.append(_joined([names[a, low] for _, low, _, _ in mine]) if mine else "1")
    chosen, block = [], 0
    for axis, low, high, owner in sorted(pieces, key=lambda piece: (piece[0], -piece[1])):
        if owner == "n":
            chosen.append(names[axis, low])
            block = block * (high // low) + offset // (stored[axis][1] * low) % (high // low)
    right = []
    for _, axes in groups:
        right.append(_joined([names[p[0], p[1]] for axis in axes for p in _cover(stored, axis, pieces)] or ["1"]))
    pattern = f"{' '.join(left)} -> {' '.join([_joined(chosen), *right] if chosen else right)}"
    same = left == right and not chosen
    if same and span is None:
        return None
    return View(pattern, tuple(sizes), block if chosen else None, span)


Piece = tuple[int, int, int, str]
"""stored axis, and from which to which of its steps, and the group that has it; "n" for none"""


def _pieces(
    stored: Sequence[Axis], groups: Sequence[tuple[str, Sequence[Axis]]], offset: int
) -> tuple[list[Piece], tuple[int, int, int] | None]:
    """Each stored axis cut so that every axis of a group is a product of pieces; the one that is partial is a span."""
    cuts = [{1, size} for size, _ in stored]
    owned: list[tuple[int, int, int, str]] = []
    span = None
    for position, (letter, axes) in enumerate(groups):
        for size, stride in axes:
            if size == 1 or stride == 0:
                continue
            for a, low, high in _within(stored, size, stride):
                start = offset // stored[a][1] % stored[a][0]
                if stored[a][0] % high or (start % high and low == 1):
                    if span is not None or low != 1:
                        raise ValueError("no view")
                    span, high = (position, start, start + high), stored[a][0]
                cuts[a] |= {low, high}
                owned.append((a, low, high, letter))
    pieces = []
    for a, marks in enumerate(cuts):
        ordered = sorted(marks)
        for low, high in itertools.pairwise(ordered):
            if high % low:
                raise ValueError("no view")
            owner = next((letter for b, lo, hi, letter in owned if b == a and lo <= low and high <= hi), "n")
            pieces.append((a, low, high, owner))
    return pieces, span


def _within(stored: Sequence[Axis], size: int, stride: int) -> list[tuple[int, int, int]]:
    """(stored axis, low, high) for each stored axis that an axis of a group runs over, from the innermost."""
    out: list[tuple[int, int, int]] = []
    while size > 1:
        a = next((a for a, (m, t) in enumerate(stored) if m > 1 and t <= stride < t * m), None)
        if a is None or stride % stored[a][1]:
            raise ValueError("no view")
        m, t = stored[a]
        low = stride // t
        if low * size <= m:
            return [*out, (a, low, low * size)]
        if m % low or size % (m // low):
            raise ValueError("no view")
        out.append((a, low, m))
        size, stride = size // (m // low), t * m
    return out


def _cover(stored: Sequence[Axis], axis: Axis, pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces that make up an axis of a group, from the outermost."""
    if axis[0] == 1 or axis[1] == 0:
        return []
    out: list[Piece] = []
    for a, low, high in reversed(_within(stored, *axis)):
        mine = [p for p in pieces if p[0] == a and p[1] >= low and (p[2] <= high or p[1] < high)]
        out += sorted(mine, key=lambda piece: -piece[1])
    return out


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"({' '.join(names)})"
