"""Means, sums, pools. A mean over axes A is at most the RMS over them (Jensen), so RMS over F - A of a mean is at most RMS
over F ∪ A of what goes in."""

from __future__ import annotations

import math
from typing import Any

from torch.nn import functional

from normgeo.geometry.bounds.local import Local, Measure
from normgeo.geometry.bounds.moves import rearranged
from normgeo.geometry.bounds.tracer import Linearized, linearization


def _reduced(op: Linearized, gain: float, position: int = 1) -> Any:
    """A node for a reduction whose derivative is `gain` times a mean, or at most that in RMS over the axes that go."""
    local, x = op.local(0, "input"), op.tensor(0, "input")
    if local is None:
        return None
    axes = _axes(op, position)
    features = local.features()
    left = [a for a in features if a not in axes]
    out = op.outputs[0].tensor
    if out.ndim != x.ndim:
        left = [a - sum(b < a for b in axes) for a in left]
    return op.node(Measure(tuple(left)), [(local, Measure(tuple({*features, *axes})), gain)])


def _axes(op: Linearized, position: int = 1) -> tuple[int, ...]:
    x, dim = op.tensor(0, "input"), op.argument(position, "dim", None)
    dim = op.call.kwargs.get("axis", dim)
    given = range(x.ndim) if dim is None or dim == () else (dim,) if isinstance(dim, int) else dim
    return tuple(a % max(x.ndim, 1) for a in given)


def _count(op: Linearized, position: int = 1) -> int:
    return math.prod(op.tensor(0).shape[a] for a in _axes(op, position))


@linearization("mean", "nanmean")
def mean(op: Linearized) -> Any:
    return _reduced(op, 1.0)


@linearization("sum", "nansum")
def sum_(op: Linearized) -> Any:
    local, axes = op.local(0, "input"), _axes(op)
    source = None if local is None else local.root.sources[0][0].measure
    if local is not None and source is not None and source.kind == "sum":
        return op.node(Measure(), [(local, Measure(axes, "sum"), 1.0)])
    return _reduced(op, _count(op))


@linearization("var")
def var(op: Linearized) -> Any:
    """d var = 2·mean of (x - mean)·dx ≤ 2·std·RMS(dx), times n/(n - 1)."""
    return _deviation(op, 2 * math.sqrt(float(op.outputs[0].tensor.amax())))


@linearization("std")
def std(op: Linearized) -> Any:
    """d std = d var/(2·std)."""
    return _deviation(op, 1.0)


def _deviation(op: Linearized, gain: float) -> Any:
    n, named = _count(op), op.call.kwargs
    correction = named.get("correction", 0 if named.get("unbiased") is False else 1)
    if isinstance(op.argument(1, "dim", None), bool) or len(op.call.args) > 2 or n <= correction:
        return op.tracer.unknown(op)
    return _reduced(op, gain * math.sqrt(n / (n - correction)))


@linearization("norm", "vector_norm", "linalg_vector_norm")
def norm(op: Linearized) -> Any:
    """|d‖x‖₂| ≤ ‖dx‖₂ = √n·RMS(dx)."""
    if op.argument(1, "ord" if "vector" in op.name else "p", 2) not in (2, 2.0, "fro", None):
        return op.tracer.unknown(op)
    return _reduced(op, math.sqrt(_count(op, 2)), 2)


@linearization("cumsum")
def cumsum(op: Linearized) -> Local:
    dim = op.argument(1, "dim") % op.tensor(0).ndim
    local = op.local(0, "input")
    axes = tuple(a for a in (() if local is None else local.features()) if a != dim)
    measure = Measure(axes)
    return op.node(measure, [(local, measure, op.tensor(0).shape[dim])])


POOLS = ("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")


@linearization(*POOLS, "interpolate", "upsample")
def averages(op: Linearized) -> Any:
    """Every entry is an average of some in its channel."""
    x = op.tensor(0, "input")
    cubic = op.argument(3, "mode", "nearest") == "bicubic" if op.name in ("interpolate", "upsample") else False
    if cubic or op.call.kwargs.get("divisor_override") is not None:
        return op.tracer.unknown(op)
    spatial = int(op.name[-2]) if op.name[-2].isdigit() else x.ndim - 2
    measure = Measure((x.ndim - 1 - spatial,))
    return op.node(measure, [(op.local(0, "input"), measure, 1.0)])


@linearization(*(f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)))
def max_pool(op: Linearized) -> Any:
    """The largest entry of every window, where there is one: at most √min(channels, pixels of a window) altogether."""
    spatial = int(op.name[-2])
    whole = getattr(functional, f"{op.name}_with_indices")
    options = {key: x for key, x in op.call.kwargs.items() if key not in ("input", "return_indices")}
    places = (
        ("kernel_size", "stride", "padding", "dilation", "ceil_mode") if "adaptive" not in op.name else ("output_size",)
    )
    options |= dict(zip(places, op.call.args[1:], strict=False))
    _, at = whole(op.tensor(0, "input"), **options)

    def run(args: Any, kwargs: Any) -> Any:
        x = args[0] if args else kwargs["input"]
        return [x.flatten(-spatial).gather(-1, at.flatten(-spatial)).reshape(at.shape)] * len(op.outputs)

    return rearranged(op, run)
