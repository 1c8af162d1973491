"""What a change does near the recorded point, entry by entry, and how much that can stretch it.

A recorded forward fixes every tensor, so the derivative of the output by the weights is one linear map, and the promise
‖JΔ‖ ≤ ‖Δ‖ is about it alone. Between operations that mix many entries (matrices, normalisation, softmax) everything is
sparse: moves pick entries, functions of single entries scale them by their slope, sums add a few. There the derivative is
kept as it is,

    dy_i = Σ_t c_ti·dx_{j(t,i)}          few terms t, for every entry i of y; x is the last dense tensor, the root,

and the products, quotients and activations between two roots (a tanh GELU, SiLU as x·σ(x), rotary positions, masks, the
splitting into heads) cost nothing, because slopes of the same entry add before a norm is taken.

**Norms.** A tensor is measured by the root mean square over some of its axes F, or by the sum of absolute values over
them (probabilities over keys), and the maximum over all others: features F = {-1} of tokens, F = {1} of images, F = {}
(the largest entry) of attention scores. A group is what the maximum is taken over, of n entries; in RMS Σ x_j² ≤ n.

**Stretch.** Let y be measured over fibers f of m entries. With r_i = Σ_t |c_ti| and Cauchy-Schwarz in every row,

    Σ_{i∈f} dy_i² ≤ Σ_i r_i Σ_t |c_ti| dx_{j(t,i)}² = Σ_j w_fj dx_j²,     w_fj = Σ_{i∈f, t: j(t,i)=j} r_i·|c_ti|
    RMS_f(dy)² ≤ 1/m · Σ_g n_g · max_{j∈g} w_fj                      over the groups g that f touches,

and the bound is the largest over f. One term is exact: the largest dx puts all of a group on its heaviest entry. So a view
that splits features into heads costs √heads, one that flattens pixels and channels 1, a chunk of d/b features √b, and a
change from features F to F' on the same tensor √(entries of F \\ F').
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Local", "Measure", "Root", "Source", "Term", "largest", "merged", "stretch"]


@dataclass(frozen=True)
class Measure:
    """The norm of a tensor: RMS or sum over `axes` (from 0), the maximum over the others.

    >>> Measure((1,)).size(torch.tensor([[3.0, 3.0], [1.0, 0.0]]))
    3.0
    """

    axes: tuple[int, ...] = ()
    kind: Literal["rms", "sum"] = "rms"

    def count(self, shape: Sequence[int]) -> int:
        """How many entries a group has."""
        return math.prod(shape[a] for a in self.axes)

    def size(self, x: Tensor) -> float:
        x = x.detach().abs().double()
        if self.axes:
            x = x.sum(self.axes) if self.kind == "sum" else x.square().mean(self.axes).sqrt()
        return float(x.amax()) if x.numel() else 0.0


@dataclass(frozen=True, eq=False)
class Source:
    """A ball in which the entries of a root move: Σ over each group of x_j² ≤ n, or of |x_j| ≤ 1 for the kind sum."""

    name: int | str
    """a node of the graph or a leaf"""
    count: float
    """n"""
    measure: Measure | None = None
    """of the root's own axes, where the groups are that"""
    groups: Callable[[], Tensor] | None = None
    """the group of every entry, flat, -1 for those that do not move; made when it is asked for, since few are"""

    def at(self, shape: Sequence[int], j: Tensor) -> tuple[Tensor, Tensor]:
        """The group of the entries j of a root of this shape, and their places in it; -1 for those that do not move."""
        if self.measure is None:
            assert self.groups is not None
            return torch.where(j >= 0, self.groups()[j.clamp_min(0)], -1), j
        group, place, stride = torch.zeros_like(j), torch.zeros_like(j), 1
        for axis in reversed(range(len(shape))):
            at = j // stride % shape[axis]
            if axis in self.measure.axes:
                place += at * stride
            else:
                group += at * stride
            stride *= shape[axis]
        return torch.where(j >= 0, group, -1), place


@dataclass(eq=False)
class Root:
    """A dense tensor, or a parameter with its leaves: each source has one or more balls, all of which hold."""

    shape: tuple[int, ...]
    sources: list[list[Source]]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Term:
    """c·x_j for every entry: `index` has j (None: the entry itself), `slope` c (None: 1). Nothing where j is -1."""

    index: Tensor | None = None
    slope: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Local:
    """The derivative of a tensor of this shape by its root."""

    root: Root
    shape: tuple[int, ...]
    terms: tuple[Term, ...]

    def scaled(self, slope: Tensor) -> Local:
        """After multiplying every entry by its slope."""
        terms = [replace(t, slope=slope if t.slope is None else t.slope * slope) for t in self.terms]
        return replace(self, terms=tuple(terms))

    def numbers(self, term: Term) -> Tensor:
        """The index of a term, written out."""
        if term.index is not None:
            return term.index
        return torch.arange(math.prod(self.shape)).reshape(self.shape)

    def expanded(self, shape: Sequence[int]) -> Local:
        """Broadcast."""
        if tuple(shape) == self.shape:
            return self
        terms = [
            Term(self.numbers(t).expand(shape), None if t.slope is None else t.slope.expand(shape)) for t in self.terms
        ]
        return replace(self, shape=tuple(shape), terms=tuple(terms))

    def along(self, shape: Sequence[int], axis: int) -> Local:
        """A vector, the same everywhere but along an axis of a tensor of this shape."""

        def spread(x: Tensor) -> Tensor:
            return x.reshape([-1 if a == axis else 1 for a in range(len(shape))]).expand(tuple(shape))

        terms = [Term(spread(self.numbers(t)), None if t.slope is None else spread(t.slope)) for t in self.terms]
        return replace(self, shape=tuple(shape), terms=tuple(terms))

    def features(self) -> tuple[int, ...]:
        """The axes along which the place within a group of the root varies: where the features have gone."""
        source = self.root.sources[0][0]
        if source.measure is not None and (source.measure.kind == "sum" or self.plain):
            return () if source.measure.kind == "sum" else source.measure.axes
        found = set()
        for term in self.terms:
            group, place = source.at(self.root.shape, self.numbers(term))
            for axis, n in enumerate(self.shape):
                g, h = group.narrow(axis, 0, max(n - 1, 0)), group.narrow(axis, 1, max(n - 1, 0))
                there = place.narrow(axis, 0, max(n - 1, 0)) != place.narrow(axis, 1, max(n - 1, 0))
                there &= (g >= 0) & (h >= 0) & ((g == h) | (source.measure is not None))
                found |= {axis} if bool(there.any()) else set()
        return tuple(sorted(found))

    @property
    def plain(self) -> bool:
        """Whether every entry is one of the root's, in its place."""
        return len(self.terms) == 1 and self.terms[0].index is None


def merged(locals_: Sequence[Local]) -> Local:
    """The sum of several derivatives by the same root, of tensors of the same shape."""
    terms: list[Term] = []
    for term in (t for each in locals_ for t in each.terms):
        same = next((k for k, t in enumerate(terms) if _same(t.index, term.index)), None)
        if same is None:
            terms.append(term)
        else:
            one = torch.ones(())
            a, b = (one if t.slope is None else t.slope for t in (terms[same], term))
            terms[same] = replace(term, slope=(a + b).expand(locals_[0].shape))
    return replace(locals_[0], terms=tuple(terms))


def largest(local: Local, measure: Measure) -> float:
    """The stretch of the source that is stretched most; of its balls the one that says least counts."""
    return max(min(stretch(local, source, measure) for source in each) for each in local.root.sources)


def stretch(local: Local, source: Source, measure: Measure) -> float:
    """The largest size of dy in this measure for a dx in the ball of the source, an upper bound."""
    if math.prod(local.shape) == 0:
        return 0.0
    if source.measure is not None and local.plain:
        return _on_axes(local, source, measure)
    squares, total = measure.kind == "rms", source.measure is not None and source.measure.kind == "sum"
    kept = [n if a not in measure.axes else 1 for a, n in enumerate(local.shape)]
    fiber = torch.arange(math.prod(kept)).reshape(kept).expand(local.shape)
    rows = sum((_size(term, local.shape) for term in local.terms), start=torch.zeros(()))
    fibers, entries, groups, weights = [], [], [], []
    for term in local.terms:
        j, c = local.numbers(term), _size(term, local.shape)
        group, _ = source.at(local.root.shape, j)
        moves = (group >= 0) & (c > 0)
        fibers.append(fiber[moves])
        entries.append(j[moves])
        groups.append(group[moves])
        weights.append((rows * c if squares else c)[moves])
    f, j, g, w = (torch.cat(each) for each in (fibers, entries, groups, weights))
    if not len(f):
        return 0.0
    pairs, where = (f * local.root.numel + j).unique(return_inverse=True)
    w = torch.zeros(len(pairs)).double().index_add_(0, where, w)
    f, g = pairs // local.root.numel, torch.zeros(len(pairs), dtype=torch.long).scatter_(0, where, g)
    most = int(g.max()) + 1
    blocks, where = (f * most + g).unique(return_inverse=True)
    each = torch.zeros(len(blocks)).double()
    if squares or total:
        each = each.scatter_reduce(0, where, w, "amax") * (1.0 if total else source.count)
    else:
        each = (each.index_add(0, where, w.square()) * source.count).sqrt()
    ends, where = (blocks // most).unique(return_inverse=True)
    largest = float(torch.zeros(len(ends)).double().index_add_(0, where, each).amax())
    return math.sqrt(largest / measure.count(local.shape)) if squares else largest


def _on_axes(local: Local, source: Source, after: Measure) -> float:
    """The same bound for one term that leaves every entry where it is: groups and fibers meet in axes that they share."""
    assert source.measure is not None
    before, squares, total = source.measure, after.kind == "rms", source.measure.kind == "sum"
    inside = [a for a in after.axes if a in before.axes]
    across = [a for a in after.axes if a not in before.axes]
    slope = local.terms[0].slope
    c = torch.ones(()).double() if slope is None else slope.double().abs().expand(local.shape)
    c = c.square() if squares or not total else c
    if inside and slope is not None:
        c = c.amax(inside, keepdim=True) if squares or total else c.sum(inside, keepdim=True)
    elif not (squares or total):
        c = c * math.prod(local.shape[a] for a in inside)
    c = c if total else c * source.count
    c = c if squares or total else c.sqrt()
    c = c.sum(across) if across and slope is not None else c * math.prod(local.shape[a] for a in across)
    return math.sqrt(float(c.amax()) / after.count(local.shape)) if squares else float(c.amax())


def _size(term: Term, shape: Sequence[int]) -> Tensor:
    c = torch.ones(()) if term.slope is None else term.slope.abs()
    c = c.double().expand(tuple(shape))
    return c if term.index is None else torch.where(term.index >= 0, c, 0)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and torch.equal(a, b))
