"""Two residual layers: an average whose sensitivity is a bound, and the plain sum whose sensitivity is typical."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from normgeo.geometry import LINEAR, Graph, Node, register, trace, typical
from normgeo.geometry.declare import single
from normgeo.nn.algebra import Module, Sum
from normgeo.nn.bonds import Identity

__all__ = ["Stream", "residual"]


def residual(share: float, block: Module) -> Module:
    """x ↦ (1 - share)·x + share·block(x): sensitivity 1 as a bound if that of the block is 1.

    >>> from normgeo.nn import Linear, Sequential
    >>> list(dict(residual(0.5, Sequential(mlp=Linear(4, 4))).named_parameters()))
    ['residue.mlp.weight']
    """
    if not 0 <= share <= 1:
        raise ValueError(f"residual: share is what the block contributes, in [0, 1], got {share}")
    return Sum(skip=(1 - share) * Identity(), residue=share * block)


class Stream(Module):
    """x ↦ x + block(x), on a stream that is normalised wherever it is read. Declared with the typical sensitivities of
    `residual(share, block)`: a sum of 1/share terms of one size and direction, once normalised, passes on the share of a
    change of one term. Unlike the average it needs no small factors, and its radii do not depend on the depth either.

    >>> import torch
    >>> from normgeo.nn import Linear
    >>> Stream(Linear(2, 2, zero=True), share=0.5)(torch.ones(2))
    tensor([1., 1.], grad_fn=<AddBackward0>)
    """

    def __init__(self, block: nn.Module, share: float) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"Stream: share is what one block contributes, in (0, 1), got {share}")
        self.block, self.share = block, share

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out

    def extra_repr(self) -> str:
        return f"share={self.share:g}"


@register(Stream)
def _(module: Stream, graph: Graph, x: Any) -> Node:
    out = single(trace(module.block, graph, x, name="block"), "Stream")
    slots = (typical(1 - module.share), typical(module.share))
    return graph.op("stream", x, out, slots=slots, size=typical(1.0), curvature=LINEAR)
