"""Attention and its parts."""

from __future__ import annotations

from normgeo.geometry.operations.elementwise import shift
from normgeo.geometry.reading import Meaning, Mixed, Operation, Weight, of_weights
from normgeo.geometry.registry import operation


@operation("scaled_dot_product_attention")
def attention(op: Operation) -> Meaning:
    q, k, v = (op.data(i, name) for i, name in enumerate(("query", "key", "value")))
    mask = op.argument(3, "attn_mask")
    meaning = op.meaning(mask)
    if isinstance(meaning, Weight | Mixed):
        return shift(op, op.result(q, k, v), mask)
    return op.result(q, k, v, meaning)


@operation("softmax", "log_softmax", "softmax_", "logsumexp")
def softmax(op: Operation) -> Meaning:
    return of_weights(op) or op.result(*op.nodes)
