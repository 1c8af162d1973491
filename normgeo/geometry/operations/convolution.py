"""Convolutions of any dimension, plain and transposed."""

from __future__ import annotations

from normgeo.geometry.operations.elementwise import shift
from normgeo.geometry.reading import Meaning, Operation, Weight
from normgeo.geometry.registry import operation


@operation("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv(op: Operation) -> Meaning:
    x, w = op.data(0, "input"), op.argument(1, "weight")
    spatial = w.tensor.ndim - 2
    out = op.result(x, axis=-1 - spatial)
    weight = op.meaning(w)
    if isinstance(weight, Weight):
        kernel = [(letter, [2 + i]) for i, letter in zip(range(spatial), "uvw", strict=False)]
        channels = [("i", [0]), ("o", [1])] if "transpose" in op.name else [("o", [0]), ("i", [1])]
        op.use(weight, out, "convolution", [*channels, *kernel], -1 - spatial)
    return shift(op, out, op.argument(2, "bias"))
