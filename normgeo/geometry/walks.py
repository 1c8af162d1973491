"""Walks along a recording that tell what a weight is for: where its output goes, and what lies between it and the end."""

from __future__ import annotations

from collections.abc import Iterator

from normgeo.geometry.graph import Node
from normgeo.geometry.operations.shape import JOINS, MOVES
from normgeo.geometry.reading import Found, Mixed, Reader, Weight
from normgeo.geometry.record import Call, Value

__all__ = ["follows_map", "is_head", "is_lora", "is_router", "reaches_scores"]

PLAIN = MOVES | {"mul", "rmul", "div", "truediv", "rdiv", "neg", "tanh", "where", "masked_fill", "to", "float"}
SUMS = {"add", "radd", "sub", "rsub", "iadd", "cat"}
LINEAR = {"linear", "matmul", "mm", "addmm", "bmm"}


def is_head(reader: Reader, found: Found) -> bool:
    """Whether nothing but scalings, biases and moves is between the linear map and the output."""
    ends = [reader.recording.output]
    while ends:
        call = ends.pop().call
        if call is found.call:
            return True
        if call is not None and call.name in PLAIN | SUMS | {"log_softmax", "softmax", "sigmoid"}:
            data = {x.index: x for x in call.inputs if isinstance(reader.meaning.get(x.index), Node)}
            if len(data) == 1 or call.name in JOINS:
                ends += data.values()
    return False


def is_router(reader: Reader, found: Found) -> bool:
    """Whether the outputs choose: they go to topk, past softmax or sigmoid."""
    passes = PLAIN | {"softmax", "sigmoid", "add", "log_softmax", "sub"}
    return any(call.name in ("topk", "argmax") for call in _after(reader, found.call, passes, 12))


def reaches_scores(reader: Reader, found: Found) -> bool:
    """Whether the rows are added to attention scores: they meet softmax, or attention as its mask, unprocessed."""
    for call in _after(reader, found.call, PLAIN | SUMS, 12):
        if call.name == "softmax" and found.role != "bias":
            return True
        if call.name == "scaled_dot_product_attention":
            slots = [*call.args, *call.kwargs.values()][:3]
            mine = {id(x) for x in _reached(reader, found.call, PLAIN | SUMS, 12)}
            return not any(id(x) in mine for x in slots)
    return False


def follows_map(reader: Reader, found: Found) -> bool:
    """Whether the rows are added to what a linear map gives: a bias for each of several maps."""
    for call in _after(reader, found.call, PLAIN, 3):
        if call.name in SUMS:
            sources = [_source(reader, x).call for x in call.inputs]
            if any(source is not None and source.name in LINEAR | {"grouped_mm"} for source in sources):
                return True
    return False


def is_lora(reader: Reader, found: Found) -> str | None:
    """A for a map to fewer features, B for the next one, if only scalings are between them and what they give is added to
    what another map makes of the same input."""
    if found.call.name not in LINEAR or not isinstance(x := found.call.inputs[0], Value):
        return None
    for after in _after(reader, found.call, PLAIN, 4):
        if after.name in LINEAR and _is_pair(reader, found.call, after):
            return "lora A"
    before = _source(reader, x).call
    if before is not None and before.name in LINEAR and _is_pair(reader, before, found.call):
        return "lora B"
    return None


def _is_pair(reader: Reader, first: Call, second: Call) -> bool:
    x, narrow, wide = _source(reader, first.inputs[0]), first.outputs[0].shape[-1], second.outputs[0].shape[-1]
    if narrow >= min(first.inputs[0].shape[-1], wide):
        return False
    for after in _after(reader, second, PLAIN, 4):
        if after.name in SUMS:
            others = [call for y in after.inputs if (call := _source(reader, y).call) and call is not second]
            if any(call.name in LINEAR and _source(reader, call.inputs[0]) is x for call in others):
                return True
    return False


def _source(reader: Reader, value: Value) -> Value:
    """What a value was before it was scaled and moved."""
    while value.call is not None and value.call.name in PLAIN:
        data = [x for x in value.call.inputs if isinstance(reader.meaning.get(x.index), Node)]
        if len(data) != 1:
            break
        value = data[0]
    return value


def _after(reader: Reader, call: Call, passes: set[str], steps: int) -> Iterator[Call]:
    """The operations that follow, each once, going on behind those that pass on what they get."""
    seen: set[int] = set()
    front = [call]
    for _ in range(steps):
        behind = []
        for at in front:
            for out in at.outputs:
                for after in reader.recording.consumers.get(out.index, ()):
                    if id(after) not in seen:
                        seen.add(id(after))
                        yield after
                        if after.name in passes and not _mixes(reader, after):
                            behind.append(after)
        front = behind


def _reached(reader: Reader, call: Call, passes: set[str], steps: int) -> Iterator[Value]:
    yield from call.outputs
    for after in _after(reader, call, passes, steps):
        yield from after.outputs


def _mixes(reader: Reader, call: Call) -> bool:
    """Whether data are multiplied with data or with a weight."""
    data = [x for x in call.inputs if isinstance(reader.meaning.get(x.index), Node | Weight | Mixed)]
    return call.name in ("mul", "rmul", "div", "truediv") and len(data) > 1
