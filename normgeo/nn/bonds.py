"""Bonds: modules without weights, with a sensitivity that is a bound or says that it is typical."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normgeo.geometry import (
    LINEAR,
    PIECEWISE_LINEAR,
    Curvature,
    Graph,
    Node,
    bound,
    curvature,
    entrywise,
    register,
    trace,
    typical,
)
from normgeo.geometry.graph import ZERO
from normgeo.linalg import exponent, shift
from normgeo.nn.algebra import Module
from normgeo.nn.atoms import features

__all__ = ["GELU", "Add", "Enumerate", "Identity", "LayerNorm", "RMSDivide", "RMSNorm", "ReLU", "Typical"]

NORMALISED = Curvature(((0, 0, typical(2 / math.sqrt(3))),))
"""Of z = x/ρ with ρ = √(RMS(x)² + ε), at ρ = 1 like its sensitivity. With means for products, ρ²·⟨u, D²z[a, b]⟩ is
-⟨u, a⟩⟨z, b⟩ - ⟨u, b⟩⟨z, a⟩ - ⟨u, z⟩⟨a, b⟩ + 3⟨u, z⟩⟨a, z⟩⟨b, z⟩, symmetric in u, a, b; so the worst have u = a = b, and
with c = ⟨z, a⟩ it is 3c(1 - c²) ≤ 2/√3."""


class Identity(Module):
    """x ↦ x.

    >>> Identity()(1)
    1
    """

    def forward(self, x: Any) -> Any:
        return x


class Add(Module):
    """A tuple of tensors ↦ their sum; sensitivity 1 to each.

    >>> Add()(torch.ones(2), torch.ones(2))
    tensor([2., 2.])
    """

    def forward(self, first: Tensor, *rest: Tensor) -> Tensor:
        return sum(rest, start=first)


class ReLU(Module):
    """max(x, 0), entry by entry; bound 1.

    >>> ReLU()(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x)


class GELU(Module):
    """x·Φ(x); bound 1.129, its steepest slope (at x = √2), and |x·Φ(x)| ≤ |x|. Its second derivative is at most √(2/π).

    >>> GELU()(torch.tensor([0.0, 10.0]))
    tensor([ 0., 10.])
    """

    SLOPE, SECOND = 1.12891, math.sqrt(2 / math.pi)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x)


class _Normalisation(Module):
    """Over the last axis, or for channels of images over axis=-3."""

    def __init__(self, eps: float = 1e-5, axis: int = -1) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(f"{type(self).__name__}: eps must be > 0, got {eps}")
        self.eps, self.axis = eps, axis

    def extra_repr(self) -> str:
        return f"eps={self.eps:g}, axis={self.axis}"


class LayerNorm(_Normalisation):
    """(x - mean)/√(var + ε) over the features, without weights: follow it with Gain and Bias if they are wanted.

    Typical sensitivity 1; the bound is 1/min √(var + ε) over tokens, which needs the activations.

    >>> LayerNorm()(torch.tensor([3.0, 5.0]))
    tensor([-1.0000,  1.0000])
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.axis, -1)
        return functional.layer_norm(x, x.shape[-1:], eps=self.eps).movedim(-1, self.axis)


class RMSNorm(_Normalisation):
    """x/√(RMS(x)² + ε) over the features, without weights. Typical sensitivity 1; the bound is 1/min √(RMS² + ε).

    >>> RMSNorm()(torch.tensor([3.0, -3.0]))
    tensor([ 1.0000, -1.0000])
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.axis, -1)
        return functional.rms_norm(x, x.shape[-1:], eps=self.eps).movedim(-1, self.axis)


class RMSDivide(Module):
    """x/RMS(x) over the features, and 0 for 0; without ε, so the same for x of any scale. Typical sensitivity 1; the bound
    is 1/min RMS(x) over tokens.

    >>> RMSDivide()(torch.tensor([[3e-30, 3e-30], [0.0, 0.0]])).round(decimals=4)
    tensor([[1., 1.],
            [0., 0.]])
    """

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.axis, -1)
        x = shift(x, -exponent(x, 1))
        # The largest entry of x is now at least 1/2, so the clamp only meets x = 0.
        return (x / x.square().mean(-1, keepdim=True).clamp_min(0.2 / x.shape[-1]).sqrt()).movedim(-1, self.axis)

    def extra_repr(self) -> str:
        return f"axis={self.axis}"


class Enumerate(Module):
    """Token ids (..., t) ↦ positions 0 ... t-1, the input of a position embedding.

    >>> Enumerate()(torch.tensor([[7, 7, 7]]))
    tensor([0, 1, 2])
    """

    def forward(self, ids: Tensor) -> Tensor:
        return torch.arange(ids.shape[-1], device=ids.device)


class Typical(Module):
    """A module without weights whose sensitivity to each input is declared as what it typically is, and its output as
    that much times the largest input.

    >>> from normgeo.nn import GELU
    >>> Typical(2**0.5 * GELU(), 1.0)(torch.zeros(1))
    tensor([0.])
    """

    def __init__(self, module: nn.Module, sensitivity: float = 1.0) -> None:
        super().__init__()
        if next(module.parameters(), None) is not None:
            raise ValueError(f"Typical is for modules without weights; {type(module).__name__} has some")
        self.module = module
        self.sensitivity = typical(sensitivity).value

    def forward(self, *x: Any) -> Any:
        return self.module(*x)

    def extra_repr(self) -> str:
        return f"sensitivity={self.sensitivity:g}"


@register(Identity)
def _(module: Identity, graph: Graph, x: Node) -> Node:
    return x


@register(Add)
def _(module: Add, graph: Graph, *x: Node) -> Node:
    return graph.op("add", *x, curvature=LINEAR)


@register(ReLU)
def _(module: ReLU, graph: Graph, x: Node) -> Node:
    return graph.op("relu", x, peak=x.peak, curvature=PIECEWISE_LINEAR)


@register(GELU)
def _(module: GELU, graph: Graph, x: Node) -> Node:
    bent = entrywise(module.SECOND, x.features)
    return graph.op("gelu", x, slots=bound(module.SLOPE), size=x.size, curvature=bent)


@register(LayerNorm)
def _(module: LayerNorm, graph: Graph, x: Node) -> Node:
    return _normalisation("layer norm", graph, features(module, graph, x, axis=module.axis))


def _normalisation(name: str, graph: Graph, x: Node) -> Node:
    return graph.op(name, x, slots=typical(1.0), size=bound(1.0), curvature=NORMALISED)


@register(RMSNorm)
def _(module: RMSNorm, graph: Graph, x: Node) -> Node:
    return _normalisation("rms norm", graph, features(module, graph, x, axis=module.axis))


@register(RMSDivide)
def _(module: RMSDivide, graph: Graph, x: Node) -> Node:
    return _normalisation("rms divide", graph, features(module, graph, x, axis=module.axis))


@register(Enumerate)
def _(module: Enumerate, graph: Graph, ids: Node) -> Node:
    return graph.op("enumerate", ids, slots=ZERO, size=ZERO, curvature=LINEAR)


@register(Typical)
def _(module: Typical, graph: Graph, *x: Node) -> Node:
    largest = max(node.size.value for node in x)
    name, each = f"typical {type(module.module).__name__}", typical(module.sensitivity)
    return graph.op(name, *x, slots=each, size=each * bound(largest), curvature=_inside(module.module, x))


def _inside(module: nn.Module, x: tuple[Node, ...]) -> Curvature | None:
    """How much a module bends that is declared as one operation; None if it does not say."""
    graph = Graph()
    try:
        out = trace(module, graph, *(graph.input(node.size, node.features) for node in x))
        return curvature(graph, out) if isinstance(out, Node) else None
    except ValueError:
        return None
