"""Attention as a bond: q, k, v in, mixtures of v out."""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor
from torch.nn import functional

from normgeo.geometry import Factor, Graph, Node, bound, register, typical
from normgeo.nn.algebra import Module
from normgeo.nn.atoms import features

__all__ = ["Attention"]


class Attention(Module):
    """softmax(s·q kᵀ) v per head, for q, k, v (..., t, heads·d). The scale is s = 1/d unless given.

    With RMS per head and the maximum over tokens, a change of q changes the output by at most s·d·x_k·x_v times as much:
    the weights p respond by Σⱼ pⱼ|zⱼ - z̄| ≤ max|zⱼ|, zⱼ = s·⟨δq, kⱼ⟩ ≤ s·d·RMS(δq)·x_k. Likewise s·d·x_q·x_v for k, and
    1 for v. The RMS over all heads together can hide one head, so with several heads these numbers are typical.

    >>> import torch
    >>> x = torch.randn(2, 5, 8)
    >>> Attention(heads=2)(x, x, x).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, heads: int, *, scale: float | None = None, causal: bool = True) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"Attention: heads must be ≥ 1, got {heads}")
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"Attention: scale must be a finite number > 0, got {scale}")
        self.heads, self.scale, self.causal = heads, scale, causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[-1] % self.heads:
            raise ValueError(f"Attention: {q.shape[-1]} features do not divide into {self.heads} heads")
        q, k, v = (rearrange(x, "... t (h d) -> ... h t d", h=self.heads) for x in (q, k, v))
        scale = 1 / q.shape[-1] if self.scale is None else self.scale
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=scale)
        return rearrange(out, "... h t d -> ... t (h d)")

    def extra_repr(self) -> str:
        return f"heads={self.heads}, scale={self.scale or '1/d'}, causal={self.causal}"


@register(Attention)
def _(module: Attention, graph: Graph, q: Node, k: Node, v: Node) -> Node:
    q, k, v = (features(module, graph, x) for x in (q, k, v))
    one = bound(1.0)
    shared = one if module.heads == 1 else typical(1.0)
    xq, xk, xv = (x.size.at_least(one) for x in (q, k, v))
    logits = shared * _scale_times_width(module, q)
    return graph.op(
        "attention",
        q,
        k,
        v,
        slots=(logits * xk * xv, logits * xq * xv, shared),
        size=shared * v.size,
        features=v.features,
    )


def _scale_times_width(module: Attention, q: Node) -> Factor:
    if module.scale is None:
        return bound(1.0)
    if q.features is None:
        raise ValueError("Attention with a given scale needs to know the width of q; put a Linear before it")
    return bound(module.scale * q.features / module.heads)
