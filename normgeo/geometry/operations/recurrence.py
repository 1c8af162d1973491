"""Recurrent networks, which run inside one call of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normgeo.geometry.graph import Node
from normgeo.geometry.reading import Operation, Weight
from normgeo.geometry.record import Value
from normgeo.geometry.registry import operation

GATES = {"lstm": ("i", "f", "g", "o"), "gru": ("r", "z", "n"), "rnn_tanh": (), "rnn_relu": ()}


@operation("lstm", "gru", "rnn_tanh", "rnn_relu")
def network(op: Operation) -> Node:
    """All layers and directions: W_ih x + b_ih + W_hh h + b_hh, a block for each gate."""
    weights = next(x for x in op.call.args if isinstance(x, tuple | list) and len(x) > 2 and isinstance(x[0], Value))
    state = [x for x in op.call.inputs if not any(x is w for w in weights)]
    biases = op.call.args[op.call.args.index(weights) + 1]
    layers = op.call.args[op.call.args.index(weights) + 2]
    directions = 2 if op.call.args[op.call.args.index(weights) + 5] else 1
    each = len(weights) // (layers * directions)
    inputs: list[Node | None] = [op.data(x) for x in state]
    for layer in range(layers):
        out = op.result(*inputs)
        for direction in range(directions):
            first = (layer * directions + direction) * each
            _cell(op, out, weights[first : first + each], GATES[op.name], bool(biases))
        inputs = [out]
    return out


@operation("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(op: Operation) -> Node:
    """One step of one layer."""
    weights = [w for w in op.call.args[2:6] if w is not None]
    state = [x for x in op.call.inputs if not any(x is w for w in weights)]
    out = op.result(*(op.data(x) for x in state))
    _cell(op, out, weights, GATES[op.name.removesuffix("_cell")], len(weights) > 2)
    return out


def _cell(op: Operation, out: Node, weights: Sequence[Any], gates: tuple[str, ...], biases: bool) -> None:
    """Two matrices, two biases if there are any, and a projection of the state if it is smaller than the cell."""
    for position, value in enumerate(weights):
        weight = op.meaning(value)
        if not isinstance(weight, Weight):
            continue
        if position in (2, 3) and biases:
            op.use(weight, out, "bias", [("d", [0])], parts=gates)
        elif position < 2:
            op.use(weight, out, "gate" if gates else "recurrent", [("o", [0]), ("i", [1])], parts=gates)
        else:
            op.use(weight, out, "linear", [("o", [0]), ("i", [1])])
