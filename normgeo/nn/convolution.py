"""Convolutions as atoms: images (batch, channels, *space) in and out, measured as the largest RMS of a pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from normgeo.geometry import LINEAR, Graph, Node, register
from normgeo.nn.atoms import Atom, features, slot_of, used
from normgeo.norms import Conv, ConvTransposed, Norm

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]

Ints = int | tuple[int, ...]


def each(n: Ints, spatial: int) -> tuple[int, ...]:
    """A number for every spatial axis."""
    return (n,) * spatial if isinstance(n, int) else tuple(n)


class _Convolution(Atom):
    spatial: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints | str = 0,
        dilation: Ints = 1,
        groups: int = 1,
        *,
        zero: bool = False,
        norm: Norm | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        _check_groups(self, in_channels, out_channels, groups)
        shape = (out_channels, in_channels // groups, *each(kernel_size, self.spatial))
        options = {"dtype": dtype, "device": device}
        norm = norm or Conv(self.spatial, groups)
        super().__init__(shape, "convolution", norm, 0.0 if zero else None, options)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.stride, self.padding, self.dilation = stride, padding, dilation

    def forward(self, x: Tensor) -> Tensor:
        function: Any = (functional.conv1d, functional.conv2d, functional.conv3d)[self.spatial - 1]
        out: Tensor = function(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"


class _Transposed(Atom):
    spatial: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Ints = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        *,
        zero: bool = False,
        norm: Norm | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        _check_groups(self, in_channels, out_channels, groups)
        shape = (in_channels, out_channels // groups, *each(kernel_size, self.spatial))
        options = {"dtype": dtype, "device": device}
        norm = norm or ConvTransposed(self.spatial, groups, stride=each(stride, self.spatial))
        super().__init__(shape, "convolution", norm, 0.0 if zero else None, options)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.stride, self.padding, self.output_padding = stride, padding, output_padding

    def forward(self, x: Tensor) -> Tensor:
        functions = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
        function: Any = functions[self.spatial - 1]
        out: Tensor = function(x, self.weight, None, self.stride, self.padding, self.output_padding, self.groups)
        return out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}"


class Conv1d(_Convolution):
    """Kernels (out, in/groups, k) on sequences (batch, channels, n), without bias; see `normgeo.norms.Conv`.

    >>> Conv1d(3, 8, 5, padding=2)(torch.zeros(2, 3, 10)).shape
    torch.Size([2, 8, 10])
    """

    spatial = 1


class Conv2d(_Convolution):
    """Kernels (out, in/groups, k, k) on images (batch, channels, h, w), without bias; see `normgeo.norms.Conv`.

    >>> Conv2d(4, 8, 3, stride=2, padding=1, groups=4)(torch.zeros(2, 4, 8, 8)).shape
    torch.Size([2, 8, 4, 4])
    """

    spatial = 2


class Conv3d(_Convolution):
    """Kernels (out, in/groups, k, k, k) on volumes (batch, channels, d, h, w), without bias; see `normgeo.norms.Conv`.

    >>> Conv3d(2, 4, (1, 3, 3))(torch.zeros(1, 2, 4, 8, 8)).shape
    torch.Size([1, 4, 4, 6, 6])
    """

    spatial = 3


class ConvTranspose1d(_Transposed):
    """Kernels (in, out/groups, k) that spread every entry of a sequence; see `normgeo.norms.ConvTransposed`.

    >>> ConvTranspose1d(3, 8, 4, stride=2, padding=1)(torch.zeros(2, 3, 10)).shape
    torch.Size([2, 8, 20])
    """

    spatial = 1


class ConvTranspose2d(_Transposed):
    """Kernels (in, out/groups, k, k) that spread every pixel of an image; see `normgeo.norms.ConvTransposed`.

    >>> ConvTranspose2d(3, 8, 4, stride=2, padding=1)(torch.zeros(2, 3, 5, 5)).shape
    torch.Size([2, 8, 10, 10])
    """

    spatial = 2


class ConvTranspose3d(_Transposed):
    """Kernels (in, out/groups, k, k, k) that spread every voxel of a volume; see `normgeo.norms.ConvTransposed`.

    >>> ConvTranspose3d(3, 8, 2, stride=2)(torch.zeros(1, 3, 2, 2, 2)).shape
    torch.Size([1, 8, 4, 4, 4])
    """

    spatial = 3


def _check_groups(module: Atom, in_channels: int, out_channels: int, groups: int) -> None:
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ValueError(
            f"{type(module).__name__}: {in_channels} channels in and {out_channels} out do not divide into {groups} groups"
        )


@register(_Convolution)
def _(module: _Convolution, graph: Graph, x: Node) -> Node:
    return _conv(module, graph, x, Conv(module.spatial, module.groups))


@register(_Transposed)
def _(module: _Transposed, graph: Graph, x: Node) -> Node:
    steps = each(module.stride, module.spatial)
    return _conv(module, graph, x, ConvTransposed(module.spatial, module.groups, stride=steps))


def _conv(module: _Convolution | _Transposed, graph: Graph, x: Node, natural: Norm) -> Node:
    axis, slot = -1 - module.spatial, slot_of(module.norm, natural)
    x = features(module, graph, x, module.in_channels, axis)
    out = graph.op("conv", x, slots=slot, features=module.out_channels, axis=axis, curvature=LINEAR)
    return used(module, graph, out, x, slot)
