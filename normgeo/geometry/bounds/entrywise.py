"""Functions of single entries, of one tensor or several, broadcast: dy_i = Σ over arguments of slope_i·dx_i, with slopes
at the recorded point, found by differentiating the function itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from normgeo.geometry.bounds.local import Local, Measure, Root, Term, largest, merged
from normgeo.geometry.bounds.tracer import MOST_TERMS, Linearized, linearization
from normgeo.geometry.factor import assumed, bound
from normgeo.geometry.operations.elementwise import ELSEWHERE, PRODUCTS, STEEPEST, SUMS
from normgeo.geometry.operations.shape import COPIES
from normgeo.geometry.record import Call, Value

__all__ = ["combined"]

BETWEEN = {
    "maximum", "minimum", "where", "masked_fill", "lerp", "addcmul", "addcdiv", "logaddexp", "hypot", "fmax", "fmin",
}  # fmt: skip
ENTRYWISE = (STEEPEST.keys() | ELSEWHERE | SUMS | PRODUCTS | BETWEEN) - {"glu", "softmin", "gumbel_softmax"}
TIMES = {"mul", "rmul", "imul", "multiply"}


@linearization(*ENTRYWISE)
def entrywise(op: Linearized) -> Any:
    if op.name in TIMES and (made := _rms_norm(op)) is not None:
        return made
    shape = tuple(op.outputs[0].shape)
    moving = [x for x in op.moving if x.tensor.is_floating_point()]
    slopes = _slopes(op.call, moving, shape)
    parts = []
    for value, slope in zip(moving, slopes, strict=True):
        local = op.local(value)
        assert local is not None
        parts.append((local.expanded(shape), slope))
    return combined(op, parts, floored=op.name in TIMES)


def combined(
    op: Linearized, parts: Sequence[tuple[Local, Tensor | None]], floored: bool = False, output: int = 0
) -> Local:
    """Σ slope·part: entry by entry if all have one root, else a node. floored: a slope of a product with something that
    has another root counts as at least 1."""
    by_root: dict[int, list[tuple[Local, Tensor | None]]] = {}
    for local, slope in parts:
        by_root.setdefault(id(local.root), []).append((local, slope))
    whole = [merged([_scaled(local, slope) for local, slope in each]) for each in by_root.values()]
    steep = not all(slope is None or bool(slope.isfinite().all()) for _, slope in parts)
    if len(whole) == 1 and len(whole[0].terms) <= MOST_TERMS and not steep:
        return whole[0]
    measure = Measure(_features([local for local, _ in parts], op.tracer.is_node))
    if floored:
        bare = [merged([local for local, _ in each]) for each in by_root.values()]
        whole = [max(pair, key=lambda x: largest(x, measure)) for pair in zip(whole, bare, strict=True)]
    if steep:
        op.tracer.assumed[op.name] = op.tracer.assumed.get(op.name, 0) + 1
    return op.node(measure, [(x, measure, 1.0) for x in whole], known=assumed if steep else bound, output=output)


def _scaled(local: Local, slope: Tensor | None) -> Local:
    return local if slope is None else local.scaled(slope.nan_to_num(0.0, 0.0, 0.0))


def _features(locals_: list[Local], is_node: Callable[[Root], bool]) -> tuple[int, ...]:
    """The axes of the features of what is combined: those of the tensor that has most."""
    sums = [local for local in locals_ if is_node(local.root)] or locals_
    each = [(Measure(axes).count(local.shape), axes) for local in sums if (axes := local.features()) is not None]
    return max(each, key=lambda pair: pair[0])[1] if each else ()


def _slopes(call: Call, moving: list[Value], shape: tuple[int, ...]) -> list[Tensor | None]:
    """∂y/∂x of every argument that moves, entry by entry; None for 1."""
    given = [x.index for x in call.inputs]
    if call.name in {"add", "radd", "iadd"} and not call.kwargs and len(set(given)) == len(given):
        return [None] * len(moving)
    return _exact(call, moving, shape)


def _exact(call: Call, moving: list[Value], shape: tuple[int, ...]) -> list[Tensor | None]:
    points = {x.index: x.tensor.detach().expand(shape).clone().requires_grad_() for x in moving}

    def given(x: Any) -> Any:
        # A copy, since the function may write into it.
        return (points[x.index].clone() if x.index in points else x.tensor) if isinstance(x, Value) else x

    with torch.enable_grad():
        args, kwargs = tree_map(given, (call.args, call.kwargs))
        kwargs.pop("out", None)
        y = call.function(*args, **kwargs)
        found = torch.autograd.grad(y.sum(), list(points.values()), allow_unused=True, materialize_grads=True)
    return list(found)


def _rms_norm(op: Linearized) -> Local | None:
    """x·(mean of x² + ε)^(-1/2), written out: (1/RMS)·(I - x̂x̂ᵀ/n), at most 1/√(RMS² + ε) in RMS over the same axes."""
    values = [x for x in op.call.inputs if isinstance(x, Value)]
    for x, scale in (values, values[::-1]) if len(values) == 2 else ():
        if (found := _root_mean_square(scale)) is None:
            continue
        inside, axes = found
        if _source(inside) is not _source(x) or (local := op.local(x)) is None:
            continue
        measure = Measure(tuple(sorted({a % x.tensor.ndim for a in axes})))
        return op.node(measure, [(local, measure, float(scale.tensor.detach().abs().max()))])
    return None


def _root_mean_square(value: Value) -> tuple[Value, tuple[int, ...]] | None:
    """x and the axes, if a value is 1/√(mean of x² + ε)."""
    mean = _before(_before(value, {"rsqrt"}), SUMS)
    mean = mean if mean is not None else _before(value, {"rsqrt"})
    if mean is None or (mean := _source(mean)).call is None or mean.call.name != "mean":
        return None
    call = mean.call
    axes = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim")
    square = _source(call.args[0])
    if axes is None or square.call is None or mean.tensor.ndim != square.tensor.ndim:
        return None
    args, name = square.call.args, square.call.name
    if (name == "pow" and args[1] == 2) or name == "square" or (name == "mul" and args[0] is args[1]):
        return args[0], tuple(axes) if isinstance(axes, tuple | list) else (axes,)
    return None


def _before(value: Value | None, names: set[str]) -> Value | None:
    """The tensor behind a function of one tensor and numbers."""
    value = None if value is None else _source(value)
    if value is None or value.call is None or value.call.name not in names:
        return None
    return value.call.inputs[0] if len(value.call.inputs) == 1 else None


def _source(value: Value) -> Value:
    """A value before it was copied."""
    while value.call is not None and value.call.name in COPIES:
        value = value.call.inputs[0]
    return value


@linearization("prelu")
def prelu(op: Linearized) -> Local:
    """x where it is positive, else w·x with a w for all or for each channel."""
    x, w = op.tensor(0), op.tensor(1, "weight")
    shape = tuple(x.shape)
    local, weight = op.local(0), op.local(1, "weight")
    wide = w.reshape([-1 if a == 1 else 1 for a in range(x.ndim)]).expand(shape) if x.ndim > 1 else w.expand(shape)
    parts: list[tuple[Local, Tensor | None]] = [] if local is None else [(local, torch.where(x > 0, 1.0, wide))]
    if weight is not None:
        spread = weight.along(shape, 1) if x.ndim > 1 and w.numel() > 1 else weight.expanded(shape)
        parts.append((spread, x.clamp_max(0)))
    return combined(op, parts)


@linearization("glu")
def glu(op: Linearized) -> Local:
    """a·σ(b) of the two halves of a tensor."""
    local = op.local(0)
    assert local is not None
    x, dim = op.tensor(0), op.argument(1, "dim", -1)
    (a, b), halves = x.chunk(2, dim), []
    for k, slope in enumerate((b.sigmoid(), a * b.sigmoid() * (1 - b.sigmoid()))):
        terms = [
            Term(local.numbers(t).chunk(2, dim)[k], None if t.slope is None else t.slope.chunk(2, dim)[k])
            for t in local.terms
        ]
        halves.append((Local(local.root, tuple(a.shape), tuple(terms)), slope))
    return combined(op, halves)
