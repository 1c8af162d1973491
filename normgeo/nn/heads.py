"""Bonds that see the heads in a vector of heads·d features."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from normgeo.geometry import Graph, Node, bound, register, typical
from normgeo.nn.algebra import Module

__all__ = ["HeadNorm", "Rotary"]


class HeadNorm(Module):
    """Each head over its RMS: with q and k normalised, a logit of scale s/d is s times a cosine, at any width.

    Typical sensitivity 1; the bound is 1/min √(RMS² + ε) over heads and tokens.

    >>> HeadNorm(heads=2)(torch.tensor([3.0, -3.0, 0.5, 0.5]))
    tensor([ 1.0000, -1.0000,  1.0000,  1.0000])
    """

    def __init__(self, heads: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps

    def forward(self, x: Tensor) -> Tensor:
        x = rearrange(x, "... (h d) -> ... h d", h=self.heads)
        return rearrange(functional.rms_norm(x, x.shape[-1:], eps=self.eps), "... h d -> ... (h d)")

    def extra_repr(self) -> str:
        return f"heads={self.heads}, eps={self.eps:g}"


class Rotary(Module):
    """Rotary positions (arXiv 2104.09864): at position t, features i and i + d/2 of each head turn by t·base^(-2i/d).
    A rotation, so sizes stay and the sensitivity is 1.

    >>> x = torch.ones(2, 4)
    >>> Rotary(heads=1, context=8)(x).norm(dim=-1)
    tensor([2.0000, 2.0000])
    """

    def __init__(self, heads: int, context: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.heads, self.context, self.base = heads, context, base

    def forward(self, x: Tensor) -> Tensor:  # (..., t, heads·d)
        t, width = x.shape[-2:]
        d = width // self.heads
        if t > self.context:
            raise ValueError(
                f"Rotary: {t} tokens are more than context={self.context}; build the model with a longer context"
            )
        if d % 2:
            raise ValueError(f"Rotary: heads of {d} features cannot be turned in pairs; choose an even width per head")
        rate = self.base ** (-torch.arange(0, d, 2, device=x.device, dtype=torch.float32) / d)
        angle = torch.arange(t, device=x.device, dtype=torch.float32).unsqueeze(1) * rate
        cos, sin = (f(angle).to(x.dtype).repeat(1, self.heads) for f in (torch.cos, torch.sin))
        first, second = rearrange(x, "... (h two d) -> two ... (h d)", h=self.heads, two=2)
        turned = torch.stack([first * cos - second * sin, first * sin + second * cos])
        return rearrange(turned, "two ... (h d) -> ... (h two d)", h=self.heads)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, context={self.context}, base={self.base:g}"


@register(HeadNorm)
def _(module: HeadNorm, graph: Graph, x: Node) -> Node:
    return graph.op("head norm", x, slots=typical(1.0), size=bound(1.0))


@register(Rotary)
def _(module: Rotary, graph: Graph, x: Node) -> Node:
    return graph.op("rotary", x)
