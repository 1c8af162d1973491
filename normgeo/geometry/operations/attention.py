"""Attention and its parts."""

from __future__ import annotations

from normgeo.geometry.graph import Node
from normgeo.geometry.reading import Meaning, Operation, of_weights, parameters
from normgeo.geometry.registry import operation


@operation("scaled_dot_product_attention")
def attention(op: Operation) -> Meaning:
    q, k, v = (op.data(i, name) for i, name in enumerate(("query", "key", "value")))
    mask = op.meaning(op.argument(3, "attn_mask"))
    out = op.result(q, k, v, mask if isinstance(mask, Node) else None)
    for weight in parameters(mask):
        op.use(weight, out, "bias table", whole=True)
    return out


@operation("softmax", "log_softmax", "softmax_", "logsumexp")
def softmax(op: Operation) -> Meaning:
    return of_weights(op) or op.result(*op.nodes)
