"""Blocks that a person declares: einops patterns in which numerals are blocks, each a leaf of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from normgeo.geometry.declare import GeometryError
from normgeo.geometry.leaf import View

__all__ = ["Split", "blocks"]

Split = str | tuple[str, Mapping[str, int]]
NUMERALS = dict(zip(["one", "two", "three", "four", "five", "six", "seven", "eight"], range(1, 9), strict=True))


def blocks(split: Split, name: str, shape: Sequence[int]) -> list[tuple[str, View, int]]:
    """(name, view, number of axes) for each block of a parameter. The first axis of the right side, if its name is a
    numeral, counts blocks that are leaves; further axes in front of a matrix count blocks of one leaf. For a bias, of
    fewer axes than the pattern, the axes at the end are left out.

    >>> [str(view) for _, view, _ in blocks("(two d) i -> two d i", "gate_up", (6, 4))]
    ['(two d) i -> two d i [0]', '(two d) i -> two d i [1]']
    """
    pattern, given = (split, {}) if isinstance(split, str) else split
    left, right = (re.findall(r"\([^)]*\)|\S+", side) for side in pattern.split("->"))
    gone = {axis for group in left[len(shape) :] for axis in group.strip("()").split()}
    left, right = left[: len(shape)], [axis for axis in right if axis not in gone]
    if len(left) != len(shape):
        raise GeometryError(f"splits: {pattern!r} is for {len(left)} axes, but {name} has shape {tuple(shape)}")
    left, right = _merged(left, right, {**NUMERALS, **given})
    sizes: dict[str, int] = {}
    for group, size in zip(left, shape, strict=True):
        axes = group.strip("()").split()
        known = {axis: given.get(axis, NUMERALS.get(axis, 0)) for axis in axes}
        unknown = [axis for axis, n in known.items() if not n]
        rest, over = divmod(size, math.prod(n for n in known.values() if n))
        if len(unknown) > 1 or over or (not unknown and rest != 1):
            raise GeometryError(
                f"splits: {group} is not {size}, as that axis of {name} is, or does not say how; give sizes, as in "
                f'splits={{"{name}": ("{pattern}", {{"{axes[0]}": 12}})}}'
            )
        sizes |= {axis: n or rest for axis, n in known.items()} if len(axes) > 1 else {}
    whole = f"{' '.join(left)} -> {' '.join(right)}"
    if right[0] not in NUMERALS:
        return [("", View(whole, tuple(sizes.items())), len(right))]
    return [(str(i), View(whole, tuple(sizes.items()), i), len(right) - 1) for i in range(NUMERALS[right[0]])]


def _merged(left: list[str], right: list[str], known: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Neighbours of unknown size on both sides are one axis: nobody needs their sizes."""
    out = []
    for group in left:
        axes = group.strip("()").split()
        i = 0
        while i + 1 < len(axes):
            a, b = axes[i], axes[i + 1]
            together = a in right and b in right and right.index(b) == right.index(a) + 1
            if together and a not in known and b not in known:
                right = [f"{a}{b}" if axis == a else axis for axis in right if axis != b]
                axes[i : i + 2] = [f"{a}{b}"]
            else:
                i += 1
        out.append(f"({' '.join(axes)})" if len(axes) > 1 else axes[0])
    return out, right
