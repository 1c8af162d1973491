"""Walks along a recording that tell what a weight is for: where its output goes, and what lies between it and the end."""

from __future__ import annotations

from collections.abc import Iterator

from normgeo.geometry.graph import Node
from normgeo.geometry.operations.shape import MOVES
from normgeo.geometry.reading import Found, Mixed, Reader, Weight
from normgeo.geometry.record import Call, Value

__all__ = ["is_head", "is_lora", "is_router", "reaches_scores"]

PLAIN = MOVES | {"mul", "rmul", "div", "truediv", "rdiv", "neg", "tanh", "where", "masked_fill", "to", "float"}
SUMS = {"add", "radd", "sub", "rsub", "iadd", "cat"}


def is_head(reader: Reader, found: Found) -> bool:
    """Whether nothing but scalings, biases and moves is between the linear map and the output."""
    value: Value | None = reader.recording.output
    while value is not None and value.call is not None:
        call = value.call
        if call is found.call:
            return True
        if call.name not in PLAIN | SUMS | {"log_softmax", "softmax", "sigmoid"}:
            return False
        data = [x for x in call.inputs if isinstance(reader.meaning.get(x.index), Node)]
        value = data[0] if len({x.index for x in data}) == 1 else None
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


def is_lora(reader: Reader, found: Found) -> str | None:
    """Whether a map and the next one, with only scalings between, are added to another map of the same input."""
    if found.call.name != "linear":
        return None
    x, w = found.call.inputs[:2]
    for after in _linears(reader, found.call):
        if _joins_sibling(reader, after, x) and w.shape[0] < min(w.shape[1], after.inputs[1].shape[0]):
            return "lora A"
    before = _origin(reader, x)
    if (
        before is not None
        and before.name == "linear"
        and isinstance(reader.meaning.get(before.inputs[1].index), Weight)
    ):
        small = before.inputs[1].shape[0] < min(before.inputs[1].shape[1], w.shape[0])
        if small and _joins_sibling(reader, found.call, before.inputs[0]):
            return "lora B"
    return None


def _linears(reader: Reader, call: Call) -> Iterator[Call]:
    for after in _after(reader, call, PLAIN, 4):
        if after.name == "linear":
            yield after


def _origin(reader: Reader, value: Value) -> Call | None:
    call = value.call
    while call is not None and call.name in PLAIN:
        call = next((x.call for x in call.inputs if isinstance(reader.meaning.get(x.index), Node)), None)
    return call


def _joins_sibling(reader: Reader, call: Call, x: Value) -> bool:
    """Whether the output is added to that of another linear map of (a copy of) x."""
    source = _origin(reader, x)
    for after in _after(reader, call, PLAIN, 4):
        if after.name in SUMS:
            for term in after.inputs:
                other = _origin(reader, term)
                if other is not None and other is not call and other.name == "linear":
                    y = other.inputs[0]
                    if y is x or (source is not None and _origin(reader, y) is source):
                        return True
    return False


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
