"""Softmax and attention. For p = softmax(s), Σ|dp| ≤ max|ds|: dp = p ⊙ (ds - ⟨p, ds⟩), a mean absolute deviation of numbers
in [-1, 1]. With scores s = scale·⟨q, k⟩ over d_h entries, per head,

    RMS(dy) ≤ scale·d_h·x_k·x_v·RMS(dq) + scale·d_h·x_q·x_v·RMS(dk) + RMS(dv),

x the largest RMS of a query, key or value, at least 1; for keys and values the largest change of any token."""

from __future__ import annotations

import math

from normgeo.geometry.bounds.local import Local, Measure
from normgeo.geometry.bounds.tracer import Linearized, Piece, linearization


@linearization("scaled_dot_product_attention")
def attention(op: Linearized) -> Local:
    q, k, v = (op.tensor(i, name) for i, name in enumerate(("query", "key", "value")))
    last = Measure((q.ndim - 1,))
    scale = op.argument(6, "scale", None)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else abs(scale)
    xq, xk, xv = (max(1.0, last.size(x)) for x in (q, k, v))
    width = q.shape[-1]
    pieces: list[Piece] = [
        (op.local(0, "query"), last, scale * width * xk * xv),
        (op.local(1, "key"), last, scale * width * xq * xv),
        (op.local(2, "value"), last, 1.0),
    ]
    mask = op.argument(3, "attn_mask")
    if mask is not None and (local := op.local(mask)) is not None:
        pieces.append((local, Measure(), xv))
    return op.node(last, pieces)


@linearization("softmax")
def softmax(op: Linearized) -> Local:
    dim = op.argument(1, "dim", -1) % max(op.tensor(0).ndim, 1)
    return op.node(Measure((dim,), "sum"), [(op.local(0, "input"), Measure(), 1.0)])


@linearization("log_softmax")
def log_softmax(op: Linearized) -> Local:
    """dy = ds - ⟨p, ds⟩."""
    return op.node(Measure(), [(op.local(0, "input"), Measure(), 2.0)])


@linearization("logsumexp")
def logsumexp(op: Linearized) -> Local:
    """An average of ds."""
    return op.node(Measure(), [(op.local(0, "input"), Measure(), 1.0)])
