"""Convolutions: at an output pixel a matrix times a patch with an RMS of at most that of the largest pixel."""

from __future__ import annotations

import math
from typing import Any

from normgeo.geometry.bounds.ball import unscaled
from normgeo.geometry.bounds.local import Measure, stretch
from normgeo.geometry.bounds.tracer import Linearized, linearization
from normgeo.norms import Conv, ConvTransposed


@linearization("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv(op: Linearized) -> Any:
    x, w = op.tensor(0, "input"), op.tensor(1, "weight")
    spatial, transposed = w.ndim - 2, "transpose" in op.name
    groups = op.argument(6, "groups", 1)
    stride = op.argument(3, "stride", 1)
    stride = tuple(stride) if isinstance(stride, tuple | list) else (stride,)
    stride = stride * (spatial // len(stride))
    norm = ConvTransposed(spatial, groups, stride=stride) if transposed else Conv(spatial, groups)
    measure = Measure((x.ndim - 1 - spatial,))
    bias = op.local(2, "bias")
    shape = tuple(op.outputs[0].shape)
    pieces = [(op.local(0, "input"), measure, max(1.0, float(norm.norm(w.double()))))]
    if bias is not None:
        # A vector of channels, which are not on the last axis.
        pieces += [(bias.along(shape, measure.axes[0]), measure, 1.0)]
    uses = []
    weight = op.local(1, "weight")
    if weight is not None:
        size = max(1.0, measure.size(x))
        same = weight.plain and weight.terms[0].slope is None
        for each in weight.root.sources:
            leaf = next((leaf for leaf in op.tracer.leaves if leaf.name == each[0].name), None)
            inner, several, c = unscaled(leaf.norm) if leaf is not None else (None, True, 1.0)
            if same and leaf is not None and leaf.view is None and inner == norm and not several:
                uses.append((leaf.name, size / c))
            elif not transposed:
                # ‖ΔW‖_F ≤ √numel·RMS of all its entries, and a patch has √taps·in entries of no more than its RMS.
                every = Measure(tuple(range(w.ndim)))
                f = min(stretch(weight, s, every) for s in each) * math.sqrt(w.numel())
                uses.append((each[0].name, f * math.sqrt(w[0].numel() * groups / w.shape[0]) * size))  # type: ignore[arg-type]
            else:
                return op.tracer.unknown(op)
    return op.node(measure, pieces, uses)
