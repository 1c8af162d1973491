"""Rows picked from tables."""

from __future__ import annotations

from normgeo.geometry.entries import Entries
from normgeo.geometry.graph import Node
from normgeo.geometry.operations.shape import moves
from normgeo.geometry.reading import Meaning, Operation, Weight
from normgeo.geometry.record import Value
from normgeo.geometry.registry import operation


@operation("embedding", "embedding_bag")
def embedding(op: Operation) -> Meaning:
    weight = op.meaning(op.argument(1, "weight"))
    return _picked(op, weight) if isinstance(weight, Weight) else op.result(*op.nodes)


@operation("getitem", "index_select", "take", "gather", "take_along_dim", "index")
def getitem(op: Operation) -> Meaning:
    weight = op.meaning(op.argument(0, "input"))
    if not isinstance(weight, Weight) or not any(isinstance(x, Value) for x in op.call.inputs[1:]):
        out: Meaning = moves(op)
        return out
    if op.argument(0, "input").tensor.ndim > 2 and weight.entries is not None:
        # A matrix for each index: which one does not matter for what a matrix is.
        missing = op.call.outputs[0].tensor.ndim - 2
        axes = (*((n, 0) for n in op.call.outputs[0].shape[:missing]), *weight.entries.axes[-2:])
        return Weight(weight.parameter, Entries(axes, weight.entries.offset), weight.changed)
    return _picked(op, weight)


def _picked(op: Operation, weight: Weight) -> Node:
    out = op.result(name="embed")
    op.use(weight, out, "embedding", whole=True)
    return out
