"""Bonds that see the heads in a vector of heads·d features."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from normgeo.geometry import LINEAR, Graph, Node, bound, register, typical
from normgeo.nn.algebra import Module
from normgeo.nn.atoms import features
from normgeo.nn.bonds import NORMALISED

__all__ = ["HeadNorm", "MergeHeads", "Rotary", "SplitHeads"]


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


class SplitHeads(Module):
    """(..., t, heads·d) ↦ (..., heads, t, d). Bound √heads: one head may have all of a token's RMS.

    >>> SplitHeads(2)(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 2, 5, 4])
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "... t (h d) -> ... h t d", h=self.heads)

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


class MergeHeads(Module):
    """(..., heads, t, d) ↦ (..., t, heads·d). Bound 1: the mean square of a token is the mean over its heads.

    >>> MergeHeads()(torch.zeros(3, 2, 5, 4)).shape
    torch.Size([3, 5, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "... h t d -> ... t (h d)")


@register(HeadNorm)
def _(module: HeadNorm, graph: Graph, x: Node) -> Node:
    return graph.op("head norm", features(module, graph, x), slots=typical(1.0), size=bound(1.0), curvature=NORMALISED)


@register(Rotary)
def _(module: Rotary, graph: Graph, x: Node) -> Node:
    return graph.op("rotary", features(module, graph, x), curvature=LINEAR)


@register(SplitHeads)
def _(module: SplitHeads, graph: Graph, x: Node) -> Node:
    width = (features(module, graph, x).features or 0) // module.heads
    return graph.op(
        "split heads", x, slots=bound(math.sqrt(module.heads)), features=width, peak=x.peak, curvature=LINEAR
    )


@register(MergeHeads)
def _(module: MergeHeads, graph: Graph, x: Node) -> Node:
    return graph.op("merge heads", features(module, graph, x), features=0, peak=x.peak, curvature=LINEAR)
