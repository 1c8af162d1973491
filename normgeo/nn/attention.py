"""Attention as a bond: q, k, v in, mixtures of v out."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from normgeo.geometry import Curvature, Factor, Graph, Node, bound, register, typical
from normgeo.nn.algebra import Module
from normgeo.nn.atoms import features

__all__ = ["Attention"]


class Attention(Module):
    """softmax(s·q kᵀ) v per head, for q, k, v (..., t, heads·d). The scale is s = 1/d unless given.

    With RMS per head and the maximum over tokens, a change of q changes the output by at most s·d·x_k·x_v times as much:
    the weights p respond by Σⱼ pⱼ|zⱼ - z̄| ≤ max|zⱼ|, zⱼ = s·⟨δq, kⱼ⟩ ≤ s·d·RMS(δq)·x_k. Likewise s·d·x_q·x_v for k, and
    1 for v. The RMS over all heads together can hide one head, so with several heads these numbers are typical.

    Query i sees key j if j ≤ i (causal), |i - j| < window, and the mask says so: a bool tensor, True where it may look,
    or numbers added to the logits, -inf where it may not; it broadcasts to (..., heads, t, t) and is cut to shorter
    inputs. None of these changes the numbers above. A query that sees nothing gets 0.

    >>> x = torch.randn(2, 5, 8)
    >>> Attention(heads=2, window=3)(x, x, x).shape
    torch.Size([2, 5, 8])
    """

    mask: Tensor | None

    def __init__(
        self,
        heads: int,
        *,
        scale: float | None = None,
        causal: bool = True,
        window: int | None = None,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"Attention: heads must be ≥ 1, got {heads}")
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"Attention: scale must be a finite number > 0, got {scale}")
        if window is not None and window < 1:
            raise ValueError(f"Attention: window counts the tokens on each side, itself included, got {window}")
        if mask is not None:
            _check_mask(mask)
        self.heads, self.scale, self.causal, self.window = heads, scale, causal, window
        self.register_buffer("mask", mask)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[-1] % self.heads:
            raise ValueError(f"Attention: {q.shape[-1]} features do not divide into {self.heads} heads")
        q, k, v = (rearrange(x, "... t (h d) -> ... h t d", h=self.heads) for x in (q, k, v))
        scale = 1 / q.shape[-1] if self.scale is None else self.scale
        if self.mask is None and self.window is None:
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=scale)
        else:
            mask = self._mask(q, k)
            blind = ~(mask if mask.dtype == torch.bool else mask > -torch.inf).any(-1, keepdim=True)
            # Blind queries look everywhere (True, or 0 on the logits), so that no backend computes 0/0.
            mask = mask.masked_fill(blind, mask.dtype == torch.bool)
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).masked_fill(blind, 0)
        return rearrange(out, "... h t d -> ... t (h d)")

    def _mask(self, q: Tensor, k: Tensor) -> Tensor:  # (..., t, d), (..., s, d) -> (..., t, s)
        rows, columns = q.shape[-2], k.shape[-2]
        ahead = torch.arange(columns, device=q.device) - torch.arange(rows, device=q.device).unsqueeze(1)
        seen = ahead <= 0 if self.causal else torch.ones_like(ahead, dtype=torch.bool)
        if self.window is not None:
            seen = seen & (ahead.abs() < self.window)
        if self.mask is None:
            return seen
        given = self.mask[..., :rows, :columns]
        if given.shape[-2] not in (1, rows) or given.shape[-1] not in (1, columns):
            raise ValueError(
                f"Attention: {rows}×{columns} tokens do not fit a mask of {'×'.join(map(str, self.mask.shape))}; "
                f"build it for the longest context"
            )
        return seen & given if given.dtype == torch.bool else given.to(q.dtype).masked_fill(~seen, -torch.inf)

    def extra_repr(self) -> str:
        mask = None if self.mask is None else tuple(self.mask.shape)
        seen = f"causal={self.causal}, window={self.window}, mask={mask}"
        return f"heads={self.heads}, scale={self.scale or '1/d'}, {seen}"


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
        curvature=_curvature(logits, shared, xq, xk, xv),
    )


def _curvature(logits: Factor, shared: Factor, xq: Factor, xk: Factor, xv: Factor) -> Curvature:
    """A logit z changes by at most l = logits·(x_k·δq + x_q·δk) and bends by at most logits·(δq·δ'k + δk·δ'q). Weights p
    change by at most max|δz| (in ℓ1, the norm that sees Σ pⱼvⱼ) and bend by at most max|δz|·max|δ'z|: with a and b of size
    1, less their means A and B, E|AB - E AB| ≤ √Var(AB) ≤ 1, reached by independent signs.
    """
    squared = logits * logits
    return Curvature(
        (
            (0, 0, squared * xk * xk * xv),
            (0, 1, squared * xk * xq * xv + logits * xv),
            (1, 1, squared * xq * xq * xv),
            (0, 2, logits * xk * shared),
            (1, 2, logits * xq * shared),
        )
    )


def _check_mask(mask: Tensor) -> None:
    if not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(f"Attention: a mask is a tensor of bool, or of floats to add to the logits, got {mask.dtype}")
    if mask.ndim < 2:
        raise ValueError(f"Attention: a mask has axes (..., queries, keys), got shape {tuple(mask.shape)}")
    if mask.is_floating_point() and not (mask < torch.inf).all():
        raise ValueError("Attention: a mask of floats has finite entries and -inf, no inf or NaN")


def _scale_times_width(module: Attention, q: Node) -> Factor:
    if module.scale is None:
        return bound(1.0)
    if q.features is None:
        raise ValueError("Attention with a given scale needs to know the width of q; put a Linear before it")
    return bound(module.scale * q.features / module.heads)
