"""Normalisation, with the gain and bias that come with it."""

from __future__ import annotations

from normgeo.geometry.graph import Node
from normgeo.geometry.operations.elementwise import scale, shift
from normgeo.geometry.reading import Meaning, Mixed, Operation, Weight, of_weights
from normgeo.geometry.registry import operation


@operation("layer_norm", "rms_norm")
def layer_norm(op: Operation) -> Meaning:
    return _affine(op, op.result(op.data(0, "input")), op.argument(2, "weight"), op.argument(3, "bias"))


@operation("group_norm", "native_group_norm")
def group_norm(op: Operation) -> Meaning:
    out = op.result(op.data(0, "input"))
    return _affine(op, out, op.argument(2, "weight"), op.argument(3, "bias"))


@operation("batch_norm", "instance_norm")
def batch_norm(op: Operation) -> Meaning:
    out = op.result(op.data(0, "input"))
    return _affine(op, out, op.argument(3, "weight"), op.argument(4, "bias"))


@operation("normalize", "local_response_norm", "cosine_similarity")
def normalize(op: Operation) -> Meaning:
    return of_weights(op) or op.result(*op.nodes)


@operation("weight_norm", "weight_norm_interface")
def weight_norm(op: Operation) -> Meaning:
    """g·v/|v|: a matrix and a gain."""
    parts = [m for x in op.call.inputs if isinstance(m := op.meaning(x), Weight | Mixed)]
    return Mixed("mul", tuple(parts))


def _affine(op: Operation, x: Node, weight: object, bias: object) -> Meaning:
    out: Meaning = x
    if op.meaning(weight) is not None:
        out = scale(op, x, weight)
    return shift(op, out, bias) if op.meaning(bias) is not None else out
