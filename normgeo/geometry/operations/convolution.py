"""Convolutions of any dimension, plain and transposed."""

from __future__ import annotations

from normgeo.geometry.operations.contraction import matrices
from normgeo.geometry.operations.elementwise import large, shift
from normgeo.geometry.reading import Meaning, Mixed, Operation, Weight
from normgeo.geometry.registry import operation


@operation("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv(op: Operation) -> Meaning:
    x, w = op.data(0, "input"), op.argument(1, "weight")
    spatial = w.tensor.ndim - 2
    out = op.result(x, axis=-1 - spatial)
    weight = op.meaning(w)
    if isinstance(weight, Weight | Mixed):
        kernel = [(letter, [2 + i]) for i, letter in zip(range(spatial), "uvw", strict=False)]
        channels = [("i", [0]), ("o", [1])] if "transpose" in op.name else [("o", [0]), ("i", [1])]
        for part, _ in matrices(weight):
            if part.entries is not None and [n for n, _ in part.entries.axes] == list(w.shape):
                op.use(part, out, "convolution", [*channels, *kernel], -1 - spatial)
            else:
                op.use(part, out, "gain", [("d", large(part))])
    return shift(op, out, op.argument(2, "bias"))
