"""The unit balls of leaves, as balls of the entries of their parameters and as matrices."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from normgeo.geometry.bounds.local import Local, Measure, Source
from normgeo.geometry.leaf import Leaf
from normgeo.norms import RMS, Absolute, Blocks, Conv, ConvTransposed, L1ToRMS, Linf, Norm, RMSToLinf, RMSToRMS, Scaled

__all__ = ["balls", "is_known", "matrix_gain", "unscaled"]


def unscaled(norm: Norm) -> tuple[Norm, bool, float]:
    """The norm of one block, whether there are several, and c if the norm is c times that."""
    if isinstance(norm, Scaled):
        inner, blocks, c = unscaled(norm.inner)
        return inner, blocks, c * norm.factor
    if isinstance(norm, Blocks):
        inner, _, c = unscaled(norm.inner)
        return inner, True, c
    return norm, False, 1.0


def entries(leaf: Leaf, shape: Sequence[int]) -> Tensor:
    """Which entry of the parameter, in row-major order, every entry of the leaf is."""
    return leaf.read(torch.arange(math.prod(shape)).reshape(tuple(shape)))


def balls(leaf: Leaf, shape: Sequence[int]) -> list[Source]:
    """Balls in ℓ2 that hold the unit ball of a leaf: for each group of entries Σ x_j² ≤ n. There may be several choices of
    groups; a matrix with σ_max ≤ s has rows and columns of length at most s, and all of it at most √rank·s."""
    norm, several, c = unscaled(leaf.norm)
    if leaf.view is None and not several and (choices := _on_axes(norm, shape)):
        return [Source(leaf.name, n / c**2, Measure(axes)) for axes, n in choices]
    each = (math.prod(leaf.shape[: len(leaf.shape) - norm.ndim]), *leaf.shape[len(leaf.shape) - norm.ndim :])

    def source(axes: Sequence[int], n: float) -> Source:
        return Source(leaf.name, n / c**2, None, functools.partial(_groups, leaf, tuple(shape), each, tuple(axes)))

    if choices := _on_axes(norm, each[1:]):
        return [source(axes, n) for axes, n in choices]
    # Only the dual map of any other norm tells how long its unit vectors are; the one that it gives for noise is a guess.
    drawn = leaf.norm.init(leaf.shape, torch.Generator().manual_seed(0)).reshape(each[0], -1)
    return [source(range(norm.ndim), float(drawn.square().sum(1).max()) * c**2)]


def _groups(leaf: Leaf, shape: tuple[int, ...], each: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """The group of every entry of a parameter: one for each block of the leaf and each place on the axes but these."""
    kept = [1 if a - 1 in axes else m for a, m in enumerate(each)]
    out = torch.full((math.prod(shape),), -1)
    out[entries(leaf, shape).reshape(-1)] = torch.arange(math.prod(kept)).reshape(kept).expand(each).reshape(-1)
    return out


def is_known(norm: Norm) -> bool:
    """Whether the balls of a norm are known to hold its unit ball."""
    known = (Linf, Absolute, RMS, L1ToRMS, RMSToLinf, RMSToRMS, Conv, ConvTransposed)
    return isinstance(unscaled(norm)[0], known)


def _on_axes(norm: Norm, shape: Sequence[int]) -> list[tuple[tuple[int, ...], float]]:
    """The axes that groups run over, and n, for a norm on tensors of this shape."""
    every = tuple(range(len(shape)))
    if isinstance(norm, Linf | Absolute):
        return [((), 1.0)]
    if isinstance(norm, RMS):
        return [(every, shape[0])]
    if isinstance(norm, L1ToRMS):
        return [((1,), shape[1])]
    if isinstance(norm, RMSToLinf):
        return [((1,), 1 / shape[1])]
    if isinstance(norm, RMSToRMS):
        o, i = shape
        return [((0, 1), min(o, i) * o / i), ((1,), o / i), ((0,), o / i)]
    if isinstance(norm, Conv | ConvTransposed):
        taps, g = math.prod(shape[2:]), norm.groups
        o, i = (shape[0] // g, shape[1]) if isinstance(norm, Conv) else (shape[1], shape[0] // g)
        if isinstance(norm, Conv):
            return [(every, g * min(o, i * taps) * o / (i * taps))]
        return [(every, g * taps * min(o, i) * o / i)]  # as many phases as taps, at most
    return []


def matrix_gain(leaf: Leaf, shape: Sequence[int], weight: Local, k: Sequence[int], n: Sequence[int]) -> float | None:
    """c with σ_max(ΔW) ≤ c·‖Δ‖ for the matrices (n, k) that a tensor W shows, made of a leaf whose norm is about matrices;
    other axes count matrices. None if W is not made of blocks of the leaf's matrices, entry by entry."""
    norm, _, scale = unscaled(leaf.norm)
    if not isinstance(norm, RMSToRMS) or len(weight.terms) != 1:
        return None
    term = weight.terms[0]
    slope = 1.0 if term.slope is None else float(term.slope.abs().max())
    if term.slope is not None and not bool((term.slope.abs() == slope).all()):
        return None
    if leaf.view is None and weight.plain and (tuple(n), tuple(k)) in (((0,), (1,)), ((1,), (0,))):
        return math.sqrt(shape[0] / shape[1]) * slope / scale
    seen = entries(leaf, shape)
    o, i = seen.shape[-2:]
    place = torch.full((math.prod(shape),), -1)
    place[seen.reshape(-1)] = torch.arange(seen.numel())
    index = weight.numbers(term)
    there = torch.where(index >= 0, place[index.clamp_min(0)], -1)
    rest = [a for a in range(there.ndim) if a not in (*k, *n)]
    rows, columns = (math.prod(there.shape[a] for a in axes) for axes in (n, k))
    mats = there.permute(*rest, *n, *k).reshape(-1, rows, columns)
    present = mats >= 0
    if not bool(present.any()):
        return 0.0
    block, row, column = mats // (o * i), mats // i % o, mats % i
    inside = bool((present == present.any(-1, keepdim=True) & present.any(-2, keepdim=True)).all())
    ordered = mats.flatten(1).sort(1).values
    once = not bool((ordered.diff(dim=1).eq(0) & ordered[:, 1:].ge(0)).any())
    # Blocks above each other, or side by side, straight or transposed.
    stacked = any(
        _constant(block * max(o, i) + line, present, axis) and _constant(across, present, -3 - axis)
        for line, across in ((row, column), (column, row))
        for axis in (-1, -2)
    )
    if not (inside and once and stacked):
        return None
    blocks = max(len(b[p].unique()) for b, p in zip(block, present, strict=True))
    return math.sqrt(blocks * o / i) * slope / scale


def _constant(x: Tensor, present: Tensor, axis: int) -> bool:
    """Whether x is the same for all that are present along an axis."""
    low = torch.where(present, x, int(x.max()) + 1).amin(axis)
    high = torch.where(present, x, -1).amax(axis)
    return bool(((high < 0) | (low == high)).all())
