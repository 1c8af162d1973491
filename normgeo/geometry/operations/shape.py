"""Operations that only move entries about."""

from __future__ import annotations

from typing import Any

from normgeo.geometry.factor import typical
from normgeo.geometry.graph import Node
from normgeo.geometry.reading import Meaning, Mixed, Operation, Weight, of_weights
from normgeo.geometry.record import Value
from normgeo.geometry.registry import operation

MOVES = {
    "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "expand_as", "flatten",
    "unflatten", "chunk", "split", "tensor_split", "unbind", "getitem", "select", "narrow", "contiguous", "clone",
    "to", "float", "half", "bfloat16", "double", "type", "type_as", "T", "mT", "H", "mH", "swapaxes", "swapdims",
    "movedim", "moveaxis", "view_as", "reshape_as", "broadcast_to", "t", "repeat", "tile", "roll", "flip",
    "split_with_sizes", "alias", "repeat_interleave", "diagonal", "as_strided", "unfold", "pixel_shuffle",
    "pixel_unshuffle", "tril", "channel_shuffle", "rot90", "hsplit", "vsplit", "dsplit", "ravel", "triu",
    "squeeze_copy", "fold", "requires_grad", "unsafe_chunk", "unsafe_split", "atleast_1d", "atleast_2d",
    "atleast_3d", "view_copy", "cpu", "cuda", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_dropout", "pin_memory", "pad", "constant_pad_nd", "index_select", "nan_to_num", "positive", "conj",
    "resolve_conj", "adjoint",
}  # fmt: skip
"""in evaluation mode, in which recordings are made, dropout moves nothing at all"""
JOINS = {"cat", "concat", "concatenate", "stack"}
COPIES = {
    "to", "float", "half", "bfloat16", "double", "type", "type_as", "contiguous", "clone", "cpu", "cuda",
}  # fmt: skip
CUTS = {
    "detach", "data", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros",
    "new_ones", "new_full", "new_empty", "new_tensor", "bernoulli", "heaviside",
}  # fmt: skip


@operation(*MOVES)
def moves(op: Operation) -> Any:
    meaning = op.meaning(op.argument(0, "input"))
    if isinstance(meaning, Weight):
        before = op.argument(0, "input").tensor
        return tuple(_followed(meaning, before, value) for value in op.call.outputs)
    if isinstance(meaning, Mixed):
        return meaning
    if meaning is None:
        return None  # the other tensors are indices
    axis = op.reader.axis.get(meaning.index)
    same = all(value.tensor.ndim == op.argument(0, "input").tensor.ndim for value in op.call.outputs)
    keeps = axis is None or (same and op.name not in ("transpose", "permute", "movedim", "swapaxes", "moveaxis"))
    node = op.result(meaning, slots=typical(1.0))
    if not keeps:
        op.reader.axis.pop(node.index, None)
    return node


@operation("view_as_complex", "view_as_real", "complex", "polar", "real", "imag")
def pairs(op: Operation) -> Meaning:
    """Two numbers as one, or one as two."""
    return of_weights(op) or op.result(*op.nodes)


@operation(*CUTS)
def cuts(op: Operation) -> None:
    """No derivative passes."""


@operation(*JOINS, "hstack", "vstack", "column_stack")
def joins(op: Operation) -> Meaning:
    parts = [op.meaning(x) for x in op.call.inputs]
    if not any(isinstance(part, Node) for part in parts):
        weights = tuple(part for part in parts if isinstance(part, Weight | Mixed))
        return weights[0] if len(weights) == 1 else Mixed("cat", weights)
    return op.result(*op.nodes)


@operation("setitem", "index_put", "index_copy", "scatter", "scatter_add", "index_add", "masked_scatter", "copy")
def writes(op: Operation) -> Meaning:
    return op.result(*op.nodes) if any(isinstance(op.meaning(x), Node) for x in op.call.inputs) else _only(op)


def _only(op: Operation) -> Meaning:
    weights = [m for x in op.call.inputs if isinstance(m := op.meaning(x), Weight | Mixed)]
    return weights[0] if len(weights) == 1 else Mixed("add", tuple(weights))


def _followed(weight: Weight, before: Any, after: Value) -> Weight:
    entries = None if weight.entries is None else weight.entries.follow(before, after.tensor)
    return Weight(weight.parameter, entries, weight.changed)
