"""Blocks of fused weights, found from where the parts of their output go.

The outputs of a weight are numbered and followed through everything that only moves or linearly combines entries. Numbers
that meet in an operation belong together; what never meets are blocks: q, k and v reach attention in slots of their own,
gate and up meet only in a product. The halves that rotary positions turn meet in a sum, and stay one.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from normgeo.geometry.entries import Axis
from normgeo.geometry.graph import Node
from normgeo.geometry.operations.elementwise import PRODUCTS, SUMS
from normgeo.geometry.operations.shape import COPIES, JOINS, MOVES
from normgeo.geometry.reading import Found, Reader, Weight
from normgeo.geometry.record import Call, Value

__all__ = ["Part", "parts"]

GATES = {"silu", "gelu", "sigmoid", "tanh", "relu", "softplus"}
INTERCHANGEABLE = 4
"""more equal blocks than this that all go the same way are one leaf, with the maximum over blocks"""


@dataclass(frozen=True)
class Part:
    """Some of the outputs, as axes of steps of one output, from `start`."""

    name: str
    axes: tuple[Axis, ...]
    start: int


def parts(reader: Reader, found: Found) -> list[Part]:
    """The blocks of the weight along its outputs; none if it is one."""
    value = found.call.outputs[0]
    if found.parts:
        size = sum(n for letter, axes in found.groups if letter in ("o", "d") for n, _ in axes) // len(found.parts)
        return [Part(name, ((size, 1),), i * size) for i, name in enumerate(found.parts)]
    if found.axis is None or value.shape[found.axis] < 2:
        return []
    if found.role == "convolution" and found.call.inputs[1].shape[1] != found.call.inputs[0].shape[found.axis]:
        return []  # its groups are blocks already
    consumers = {call.name for call in reader.recording.consumers.get(value.index, ())}
    if value is reader.recording.output or not consumers & (MOVES | SUMS | PRODUCTS):
        return []
    count = value.shape[found.axis]
    shape = [1] * value.tensor.ndim
    shape[found.axis] = count
    numbers = _laid_out(torch.arange(count, dtype=torch.int32).reshape(shape), value.tensor)
    groups = Groups(count)
    ends = list(_follow(reader, value, numbers, groups))
    labels = groups.labels()
    if len(labels.unique()) == 1 or any(int(x) not in {int(labels[i]) for i, *_ in ends} for x in labels.unique()):
        return []
    return _named(reader, _cut(labels), labels, ends)


class Groups:
    """Disjoint sets of numbers."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))
        self.count = count

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def join(self, numbers: Sequence[int]) -> None:
        if len(numbers) < 2 or self.count == 1:
            return
        first = self.find(numbers[0])
        for other in numbers[1:]:
            root = self.find(other)
            if root != first:
                self.parent[root] = first
                self.count -= 1

    def labels(self) -> Tensor:
        return torch.tensor([self.find(i) for i in range(len(self.parent))])


End = tuple[int, Call, Value]
"""a number, and the operation that uses it, through which value"""


def _follow(reader: Reader, start: Value, numbers: Tensor, groups: Groups) -> list[End]:
    tracked: dict[int, Tensor] = {start.index: numbers}
    values: dict[int, Value] = {start.index: start}
    queue: list[int] = []

    def enqueue(value: Value) -> None:
        for call in reader.recording.consumers.get(value.index, ()):
            heapq.heappush(queue, call.index)

    enqueue(start)
    ends: list[End] = []
    seen: set[int] = set()
    while queue and groups.count > 1:
        position = heapq.heappop(queue)
        if position in seen:
            continue
        seen.add(position)
        call = reader.recording.calls[position]
        if call.name in COPIES and not _first(call, tracked):
            continue  # only its type is asked for
        out = _through(reader, call, tracked, groups)
        if out is None:
            for value in {x.index: x for x in call.inputs if x.index in tracked}.values():
                used = tracked[value.index].unique().tolist()
                used = [n for n in used if n >= 0]
                groups.join(used)
                ends.append((used[0], call, value))
            continue
        for value, its in zip(call.outputs, out, strict=True):
            if value is reader.recording.output:
                groups.join([n for n in its.unique().tolist() if n >= 0])
            tracked[value.index], values[value.index] = its, value
            enqueue(value)
    return ends


def _through(reader: Reader, call: Call, tracked: dict[int, Tensor], groups: Groups) -> list[Tensor] | None:
    """The numbers in the outputs of an operation that keeps entries apart; None if it does not."""
    mine = [x for x in call.inputs if x.index in tracked]
    shapes = [value.shape for value in call.outputs]
    if call.name in COPIES or "dropout" in call.name:
        return [_laid_out(tracked[mine[0].index], value.tensor) for value in call.outputs]
    if call.name in MOVES | JOINS:
        if call.name in MOVES and (len(mine) > 1 or not _first(call, tracked)):
            return None

        def replaced(x: Any) -> Any:
            if not isinstance(x, Value):
                return x
            if x.index in tracked:
                return tracked[x.index]
            return torch.full(x.shape, -1, dtype=torch.int32) if call.name in JOINS else x.tensor

        args, kwargs = tree_map(replaced, (call.args, call.kwargs))
        moved: list[Tensor] = tree_flatten(call.function(*args, **kwargs))[0]
        if call.name in JOINS:
            groups.join([n for x in mine for n in tracked[x.index].unique().tolist() if n >= 0])
        return moved
    linear = call.name in SUMS or (call.name in PRODUCTS | {"neg", "negative"} and not _data(reader, call, mine))
    if not linear or len(shapes) != 1:
        return None
    out = call.outputs[0].tensor
    spread = [_laid_out(tracked[x.index], out) for x in mine]
    for other in spread[1:]:
        pairs = torch.stack([spread[0].flatten(), other.flatten()]).unique(dim=1)
        for a, b in pairs.T.tolist():
            if a >= 0 and b >= 0:
                groups.join([a, b])
    return spread[:1]


def _first(call: Call, tracked: Mapping[int, Tensor]) -> bool:
    """Whether the first argument is tracked."""
    first = call.args[0] if call.args else call.kwargs.get("input")
    return isinstance(first, Value) and first.index in tracked


def _laid_out(numbers: Tensor, like: Tensor) -> Tensor:
    """The numbers in the memory layout of a tensor, so that its views are possible ones."""
    if 0 in like.stride():
        return numbers.expand(like.shape).contiguous()
    return torch.empty_strided(like.shape, like.stride(), dtype=numbers.dtype).copy_(numbers)


def _data(reader: Reader, call: Call, mine: Sequence[Value]) -> bool:
    """Whether a product is with something that is not a constant."""
    others = [x for x in call.inputs if x not in mine]
    return len(mine) > 1 or any(isinstance(reader.meaning.get(x.index), Node | Weight) for x in others)


def _cut(labels: Tensor) -> dict[int, tuple[tuple[Axis, ...], int]]:
    """label -> axes and start, where every label is a run, or a run in each period; {} otherwise."""
    n = len(labels)
    for period in (n, *(p for p in range(2, n // 2 + 1) if n % p == 0)):
        if period < n and not bool((labels.reshape(-1, period) == labels[:period]).all()):
            continue
        change = (labels[1:period] != labels[: period - 1]).nonzero().flatten().add(1).tolist()
        starts = [0, *change]
        first = [int(labels[s]) for s in starts]
        if len(set(first)) < len(first):
            continue
        runs = zip(first, starts, [*change, period], strict=True)
        outer = ((n // period, period),) if period < n else ()
        return {label: ((*outer, (stop - start, 1)), start) for label, start, stop in runs}
    return {}


def _named(
    reader: Reader, cut: dict[int, tuple[tuple[Axis, ...], int]], labels: Tensor, ends: Sequence[End]
) -> list[Part]:
    to: dict[int, list[tuple[Call, Value]]] = {}
    for number, call, value in ends:
        to.setdefault(int(labels[number]), []).append((call, value))
    if not cut:
        return []
    ways = {label: tuple(sorted({call.name for call, _ in to[label]})) for label in cut}
    if len(cut) > INTERCHANGEABLE and len(set(ways.values())) == 1:
        # Interchangeable: one leaf with a leading axis that counts them.
        sizes = {axes for axes, _ in cut.values()}
        if len(sizes) == 1 and all(len(axes) == 1 for axes in sizes):
            return [Part("", ((len(cut), next(iter(sizes))[0][0]), *next(iter(sizes))), 0)]
        return []
    names = [_slot(reader, to[label]) for label in cut]
    if None in names or len(set(names)) < len(names):
        active = [any(call.name in GATES for call, _ in to[label]) for label in cut]
        gated = sorted(active) == [False, True] and any(call.name in PRODUCTS for way in to.values() for call, _ in way)
        names = ["gate" if a else "up" for a in active] if gated else [str(i) for i in range(len(cut))]
    return [Part(str(name), axes, start) for name, (axes, start) in zip(names, cut.values(), strict=True)]


def _slot(reader: Reader, ways: Sequence[tuple[Call, Value]]) -> str | None:
    """q, k or v, if attention is where a block goes."""
    for call, value in ways:
        found = attention_slot(reader, call, value)
        if found:
            return found
    return None


def way(reader: Reader, found: Found) -> str | None:
    """q, k or v, if attention is where the output of a weight goes."""
    out = found.call.outputs[0]
    return _slot(reader, [(call, out) for call in reader.recording.consumers.get(out.index, ())])


def attention_slot(reader: Reader, call: Call, value: Value, steps: int = 14) -> str | None:
    """The place in attention to which a value goes, through normalisation and positions but no weight."""
    if call.name == "scaled_dot_product_attention":
        slots = [*call.args, *call.kwargs.values()]
        return "qkv"[min(2, next(i for i, x in enumerate(slots) if x is value))]
    if call.name in ("matmul", "bmm", "einsum", "baddbmm"):
        operands = [x for x in call.inputs if isinstance(reader.meaning.get(x.index), Node)]
        if len(operands) != 2:
            return None
        if _reaches_softmax(reader, call):
            return "qk"[operands.index(value)] if operands.index(value) < 2 else None
        return "v"
    if steps == 0 or call.name in ("linear", "addmm") or call.name.startswith("conv"):
        return None
    for out in call.outputs:
        for after in reader.recording.consumers.get(out.index, ()):
            if slot := attention_slot(reader, after, out, steps - 1):
                return slot
    return None


def _reaches_softmax(reader: Reader, call: Call, steps: int = 8) -> bool:
    """Whether the scores of a product are normalised over keys before they meet anything else."""
    for out in call.outputs:
        for after in reader.recording.consumers.get(out.index, ()):
            if after.name == "softmax":
                return True
            passes = after.name in SUMS | PRODUCTS | MOVES | JOINS | {"masked_fill", "where", "tanh"}
            if steps and passes and _reaches_softmax(reader, after, steps - 1):
                return True
    return False


def spread(part: Part, axis: Axis) -> tuple[tuple[Axis, ...], int]:
    """A part of an axis: its axes and offset in the parameter."""
    return tuple((n, s * axis[1]) for n, s in part.axes), part.start * axis[1]
