"""Bonds that act on entries and on the features of one token. Their sensitivities are bounds in RMS over features."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from normgeo.geometry import (
    LINEAR,
    PIECEWISE_LINEAR,
    Curvature,
    Factor,
    Graph,
    Node,
    assumed,
    bound,
    entrywise,
    register,
)
from normgeo.geometry.graph import ONE
from normgeo.nn.algebra import Module
from normgeo.nn.atoms import features

__all__ = ["Abs", "Mask", "MeanSubtract", "Product", "SiLU", "Sigmoid", "Softmax", "Tanh"]


class Abs(Module):
    """|x|, entry by entry: it keeps every RMS exactly; bound 1.

    >>> Abs()(torch.tensor([-1.0, 2.0]))
    tensor([1., 2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class SiLU(Module):
    """x·σ(x); bound 1.09984, its steepest slope (at x ≈ 2.3994), and |x·σ(x)| ≤ |x|. Its second derivative is at most 1/2.

    >>> SiLU()(torch.tensor([0.0, 50.0]))
    tensor([ 0., 50.])
    """

    SLOPE, SECOND = 1.09984, 0.5

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x)


class Tanh(Module):
    """tanh x; bound 1, and no entry is larger than 1. Its second derivative is at most 4/(3√3).

    >>> Tanh()(torch.tensor([0.0, 50.0]))
    tensor([0., 1.])
    """

    SECOND = 4 / (3 * math.sqrt(3))

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


class Sigmoid(Module):
    """σ(x) = 1/(1 + exp(-x)); bound 1/4. σ(0) = 1/2, so its size is 1 however small x is. |σ''| ≤ 1/(6√3).

    >>> Sigmoid()(torch.tensor([0.0, 50.0]))
    tensor([0.5000, 1.0000])
    """

    SECOND = 1 / (6 * math.sqrt(3))

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


class Softmax(Module):
    """p = softmax(s·x) over features; bound s/2 from RMS to RMS, since the eigenvalues of diag(p) - ppᵀ are at most 1/2.

    From the largest entry of a change of x to the sum |δp₁| + ... + |δpₙ| it is s: the mean distance from the mean is at
    most half the range. Tensors here are measured in RMS, hence s/2; the RMS of p itself is at most 1/√n.

    Second derivatives are third cumulants, ⟨u, D²p[a, b]⟩ = s²·κ₃(u, a, b) under p, symmetric in u, a, b; so the worst
    have u = a = b, and a third central moment is at most range³/(6√3) with range ≤ √2·‖u‖₂: √6/9·s²·√n in RMS.

    >>> Softmax(scale=2.0)(torch.zeros(4))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    SECOND = math.sqrt(6) / 9

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"Softmax: scale must be a finite number > 0, got {scale}")
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x).softmax(-1)

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


class MeanSubtract(Module):
    """x minus its mean over features, an orthogonal projection; bound 1. LayerNorm is RMSNorm @ MeanSubtract.

    >>> MeanSubtract()(torch.tensor([3.0, 5.0]))
    tensor([-1.,  1.])
    """

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(self.axis, keepdim=True)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class Mask(Module):
    """x where the mask holds, 0 elsewhere, for a mask that broadcasts to x; bound 1.

    >>> Mask(torch.tensor([True, False]))(torch.ones(2, 2))
    tensor([[1., 0.],
            [1., 0.]])
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise TypeError(f"Mask takes a tensor of bool, got {mask.dtype}")
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, x, 0)


class Product(Module):
    """(a, b) ↦ a ⊙ b. A change of a passes on as max|b| times as much and one of b as max|a|.

    These are bounds of √features·size, which one entry that has all the size reaches, and 1 behind Sigmoid, Tanh and
    Softmax. Unless gates are bounded, `Typical(Product())` is what trains: its radii do not depend on the width.

    >>> Product()(torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0]))
    tensor([10., 21.])
    """

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


@register(Abs)
def _(module: Abs, graph: Graph, x: Node) -> Node:
    return graph.op("abs", x, peak=x.peak, curvature=PIECEWISE_LINEAR)


@register(SiLU)
def _(module: SiLU, graph: Graph, x: Node) -> Node:
    bent = entrywise(module.SECOND, x.features)
    return graph.op("silu", x, slots=bound(module.SLOPE), size=x.size, peak=x.peak, curvature=bent)


@register(Tanh)
def _(module: Tanh, graph: Graph, x: Node) -> Node:
    size = x.size if x.size.value < 1 else ONE
    return graph.op("tanh", x, size=size, peak=ONE, curvature=entrywise(module.SECOND, x.features))


@register(Sigmoid)
def _(module: Sigmoid, graph: Graph, x: Node) -> Node:
    bent = entrywise(module.SECOND, x.features)
    return graph.op("sigmoid", x, slots=bound(0.25), size=ONE, peak=ONE, curvature=bent)


@register(Softmax)
def _(module: Softmax, graph: Graph, x: Node) -> Node:
    x = features(module, graph, x)
    size = bound(1 / math.sqrt(x.features or 1))
    bent = entrywise(module.SECOND * module.scale**2, x.features)
    return graph.op("softmax", x, slots=bound(module.scale / 2), size=size, peak=ONE, curvature=bent)


@register(MeanSubtract)
def _(module: MeanSubtract, graph: Graph, x: Node) -> Node:
    return graph.op("mean subtract", features(module, graph, x, axis=module.axis), curvature=LINEAR)


@register(Mask)
def _(module: Mask, graph: Graph, x: Node) -> Node:
    return graph.op("mask", x, peak=x.peak, curvature=LINEAR)


@register(Product)
def _(module: Product, graph: Graph, a: Node, b: Node) -> Node:
    peak_a, peak_b = _peak(a), _peak(b)
    size = min(peak_a * b.size, peak_b * a.size, key=lambda factor: factor.value)
    root = math.sqrt(a.features or 0)
    bent = Curvature(((0, 1, bound(root)),), dimension=root) if root else None
    return graph.op("product", a, b, slots=(peak_b, peak_a), size=size, peak=peak_a * peak_b, curvature=bent)


def _peak(x: Node) -> Factor:
    """How large one entry can be."""
    if x.peak is not None:
        return x.peak
    size = x.size.at_least(ONE)
    return size * bound(math.sqrt(x.features)) if x.features else assumed(size.value)
