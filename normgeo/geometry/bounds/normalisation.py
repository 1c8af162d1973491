"""Normalisation, (x - mean)/√(var + ε): its derivative is (1/σ)·(I - 11ᵀ/n - x̂x̂ᵀ/n), a projection over σ, so that RMS over
the axes that are normalised grows by 1/σ at most; σ is the smallest that was recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normgeo.geometry.bounds.local import Local, Measure
from normgeo.geometry.bounds.tracer import Linearized, Piece, linearization


@linearization("layer_norm", "rms_norm")
def layer_norm(op: Linearized) -> Local:
    x, shape = op.tensor(0, "input"), op.argument(1, "normalized_shape")
    count = len(shape) if isinstance(shape, tuple | list | torch.Size) else 1
    axes = tuple(range(x.ndim - count, x.ndim))
    if op.name == "layer_norm":
        eps = op.argument(4, "eps", 1e-5)
        deviation = (x.var(axes, correction=0, keepdim=True) + eps).sqrt()
        normal = (x - x.mean(axes, keepdim=True)) / deviation
    else:
        eps = op.argument(3, "eps", None)
        deviation = (x.square().mean(axes, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).sqrt()
        normal = x / deviation
    measure = Measure(axes)
    weight, bias = op.argument(2, "weight"), op.argument(3, "bias") if op.name == "layer_norm" else None
    gain = 1.0 if weight is None else max(1.0, float(op.tensor(weight).abs().amax()))
    return _affine(op, measure, gain / float(deviation.amin()), normal, weight, bias, x.ndim - 1)


@linearization("group_norm", "instance_norm")
def group_norm(op: Linearized) -> Any:
    """In RMS over channels, maximum over pixels: what is taken away is the mean of a group, at most 1, and x̂ times a mean,
    at most the largest RMS of x̂ over the channels that a group has at a pixel."""
    x = op.tensor(0, "input")
    instance = op.name == "instance_norm"
    groups = x.shape[1] if instance else op.argument(1, "num_groups")
    if instance and not op.argument(5, "use_input_stats", True):
        return op.tracer.unknown(op)
    eps = op.argument(7 if instance else 4, "eps", 1e-5)
    at = 3 if instance else 2
    parts = x.reshape(len(x), groups, x.shape[1] // groups, -1)
    deviation = (parts.var((2, 3), correction=0, keepdim=True) + eps).sqrt()
    normal = (parts - parts.mean((2, 3), keepdim=True)) / deviation
    most = 2 + float(normal.square().mean(2).sqrt().amax())
    weight, bias = op.argument(at, "weight"), op.argument(at + 1, "bias")
    gain = 1.0 if weight is None else max(1.0, float(op.tensor(weight).abs().amax()))
    return _affine(op, Measure((1,)), most * gain / float(deviation.amin()), normal.reshape(x.shape), weight, bias, 1)


@linearization("batch_norm")
def batch_norm(op: Linearized) -> Any:
    """With running statistics every channel is scaled by γ/√(var + ε)."""
    x, mean, var = op.tensor(0, "input"), op.argument(1, "running_mean"), op.argument(2, "running_var")
    if mean is None or op.argument(5, "training", False):
        return op.tracer.unknown(op)
    eps = op.argument(7, "eps", 1e-5)
    shape = [-1 if a == 1 else 1 for a in range(x.ndim)]
    scale = (op.tensor(var) + eps).rsqrt()
    normal = (x - op.tensor(mean).reshape(shape)) * scale.reshape(shape)
    weight, bias = op.argument(3, "weight"), op.argument(4, "bias")
    gains = scale if weight is None else scale * op.tensor(weight).abs().clamp_min(1.0)
    local = op.local(0, "input")
    pieces: list[Piece] = []
    if local is not None:
        pieces.append((local.scaled(gains.reshape(shape).expand(x.shape)), Measure((1,)), 1.0))
    return _affine(op, Measure((1,)), 0.0, normal, weight, bias, 1, pieces)


@linearization("normalize")
def normalize(op: Linearized) -> Any:
    """x/max(‖x‖₂, ε)."""
    p, dim, eps = op.argument(1, "p", 2.0), op.argument(2, "dim", 1), op.argument(3, "eps", 1e-12)
    if p != 2 or not isinstance(dim, int):
        return op.tracer.unknown(op)
    x = op.tensor(0)
    measure = Measure((dim % x.ndim,))
    return op.node(measure, [(op.local(0), measure, 1 / max(float(x.norm(dim=dim).amin()), eps))])


def _affine(
    op: Linearized,
    measure: Measure,
    slot: float,
    normal: Tensor,
    weight: Any,
    bias: Any,
    axis: int,
    pieces: list[Piece] | None = None,
) -> Local:
    """normal·γ + β, with γ and β along an axis."""
    pieces = [(op.local(0, "input"), measure, slot)] if pieces is None else pieces
    shape = tuple(normal.shape)
    for given, slope in ((weight, normal), (bias, None)):
        local = None if given is None else op.local(given)
        if local is not None:
            wide = local.expanded(shape) if len(local.shape) > 1 else local.along(shape, axis)
            pieces.append((wide if slope is None else wide.scaled(slope), measure, 1.0))
    return op.node(measure, pieces)
