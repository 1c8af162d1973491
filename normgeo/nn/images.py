"""Bonds between images (batch, channels, *space), whose size is the largest RMS over channels of a pixel, and vectors."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional

from normgeo.geometry import LINEAR, PIECEWISE_LINEAR, Graph, Node, bound, register
from normgeo.nn.algebra import Module
from normgeo.nn.atoms import features
from normgeo.nn.convolution import Ints, each

__all__ = [
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Flatten",
    "GlobalAverage",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "TokenAverage",
    "Tokens",
]


class Flatten(Module):
    """(batch, ...) ↦ (batch, everything else). Bound 1: the mean square of all entries is a mean over pixels of mean
    squares over channels, at most the largest of them.

    >>> import torch
    >>> Flatten()(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 48])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Tokens(Module):
    """Images (batch, channels, *space) ↦ one token per pixel (batch, pixels, channels); sizes stay as they are.

    >>> import torch
    >>> Tokens()(torch.zeros(2, 3, 4, 5)).shape
    torch.Size([2, 20, 3])
    """

    def __init__(self, spatial: int = 2) -> None:
        super().__init__()
        self.spatial = spatial

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(-self.spatial).mT

    def extra_repr(self) -> str:
        return f"spatial={self.spatial}"


class GlobalAverage(Module):
    """Images (batch, channels, *space) ↦ their mean pixel (batch, channels); bound 1, as for every average.

    >>> import torch
    >>> GlobalAverage()(torch.ones(2, 3, 4, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(self, spatial: int = 2) -> None:
        super().__init__()
        self.spatial = spatial

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(-self.spatial).mean(-1)

    def extra_repr(self) -> str:
        return f"spatial={self.spatial}"


class TokenAverage(Module):
    """Tokens (..., t, features) ↦ their mean (..., features); bound 1.

    >>> import torch
    >>> TokenAverage()(torch.ones(2, 5, 3)).shape
    torch.Size([2, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-2)


class _Pool(Module):
    spatial: int

    def __init__(self, kernel_size: Ints, stride: Ints | None = None, padding: Ints = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    @property
    def taps(self) -> int:
        """How many pixels a window has."""
        return math.prod(each(self.kernel_size, self.spatial))

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride or self.kernel_size}, padding={self.padding}"


class _AvgPool(_Pool):
    def forward(self, x: Tensor) -> Tensor:
        function: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[self.spatial - 1]
        out: Tensor = function(x, self.kernel_size, self.stride, self.padding)
        return out


class _MaxPool(_Pool):
    def forward(self, x: Tensor) -> Tensor:
        function: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[self.spatial - 1]
        out: Tensor = function(x, self.kernel_size, self.stride, self.padding)
        return out


class AvgPool1d(_AvgPool):
    """The mean of every window; bound 1.

    >>> import torch
    >>> AvgPool1d(2)(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]))
    tensor([[[2., 6.]]])
    """

    spatial = 1


class AvgPool2d(_AvgPool):
    """The mean of every window; bound 1.

    >>> import torch
    >>> AvgPool2d(2)(torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 3, 2, 2])
    """

    spatial = 2


class AvgPool3d(_AvgPool):
    """The mean of every window; bound 1.

    >>> import torch
    >>> AvgPool3d(2)(torch.ones(1, 3, 4, 4, 4)).shape
    torch.Size([1, 3, 2, 2, 2])
    """

    spatial = 3


class MaxPool1d(_MaxPool):
    """The largest entry of every window, for each channel; bound √min(channels, taps), see `MaxPool2d`.

    >>> import torch
    >>> MaxPool1d(2)(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]))
    tensor([[[3., 7.]]])
    """

    spatial = 1


class MaxPool2d(_MaxPool):
    """The largest entry of every window, for each channel; bound √min(channels, taps).

    Each of C channels picks a pixel of its own. The squares of an output pixel's change are then a sum over the m ≤
    min(C, taps) pixels that are picked, each contributing at most C·size². It is reached when m pixels have all their
    change in a channel that picks them.

    >>> import torch
    >>> MaxPool2d(2)(torch.eye(4).reshape(1, 1, 4, 4))
    tensor([[[[1., 0.],
              [0., 1.]]]])
    """

    spatial = 2


class MaxPool3d(_MaxPool):
    """The largest entry of every window, for each channel; bound √min(channels, taps), see `MaxPool2d`.

    >>> import torch
    >>> MaxPool3d(2)(torch.ones(1, 3, 4, 4, 4)).shape
    torch.Size([1, 3, 2, 2, 2])
    """

    spatial = 3


@register(Flatten)
def _(module: Flatten, graph: Graph, x: Node) -> Node:
    return graph.op("flatten", x, features=0, axis=-1, curvature=LINEAR)


@register(Tokens)
def _(module: Tokens, graph: Graph, x: Node) -> Node:
    return graph.op(
        "tokens", features(module, graph, x, axis=-1 - module.spatial), axis=-1, peak=x.peak, curvature=LINEAR
    )


@register(GlobalAverage)
def _(module: GlobalAverage, graph: Graph, x: Node) -> Node:
    return graph.op(
        "average", features(module, graph, x, axis=-1 - module.spatial), axis=-1, peak=x.peak, curvature=LINEAR
    )


@register(TokenAverage)
def _(module: TokenAverage, graph: Graph, x: Node) -> Node:
    return graph.op("average", features(module, graph, x), peak=x.peak, curvature=LINEAR)


@register(_AvgPool)
def _(module: _AvgPool, graph: Graph, x: Node) -> Node:
    x = features(module, graph, x, axis=-1 - module.spatial)
    return graph.op("average pool", x, peak=x.peak, curvature=LINEAR)


@register(_MaxPool)
def _(module: _MaxPool, graph: Graph, x: Node) -> Node:
    x = features(module, graph, x, axis=-1 - module.spatial)
    picked = min(x.features or module.taps, module.taps)
    return graph.op("max pool", x, slots=bound(math.sqrt(picked)), peak=x.peak, curvature=PIECEWISE_LINEAR)
