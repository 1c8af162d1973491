"""Operations on each entry: sums, products, activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from normgeo.geometry.factor import bound
from normgeo.geometry.graph import Node
from normgeo.geometry.reading import Meaning, Mixed, Operation, Weight, changed, of_weights, parameters
from normgeo.geometry.record import Value
from normgeo.geometry.registry import operation

STEEPEST = {
    **dict.fromkeys(("relu", "abs", "absolute", "tanh", "relu6", "hardtanh", "neg", "negative", "sin", "cos"), 1.0),
    **dict.fromkeys(
        ("softplus", "logsigmoid", "softsign", "threshold", "clamp", "clip", "clamp_min", "clamp_max"), 1.0
    ),
    "erf": 1.12838,
    "gelu": 1.12891,
    "silu": 1.09984,
    "mish": 1.08885,
    "sigmoid": 1 / 4,
    "hardsigmoid": 1 / 6,
    "hardswish": 1.5,
    "selu": 1.75810,
}
"""the largest slope of each function"""
ELSEWHERE = {
    "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "square", "pow", "rpow", "reciprocal", "exp2", "erfc",
    "elu", "celu", "leaky_relu", "rrelu", "softmin", "tan", "sinh", "cosh", "atan", "arctan", "log10", "asin",
    "acos", "float_power", "logit", "sign", "round", "floor", "ceil", "trunc", "hardshrink", "softshrink",
    "tanhshrink", "glu", "remainder", "fmod", "atan2", "gumbel_softmax",
}  # fmt: skip
"""functions whose slopes depend on where they are taken, or on an argument"""
SUMS = {"add", "radd", "iadd", "sub", "rsub", "isub", "subtract"}
PRODUCTS = {
    "mul", "rmul", "imul", "multiply", "div", "rdiv", "idiv", "divide", "true_divide", "truediv", "rtruediv",
    "itruediv",
}  # fmt: skip


@operation(*STEEPEST, *ELSEWHERE)
def activation(op: Operation) -> Meaning:
    if (weight := of_weights(op)) is not None:
        return weight
    return op.result(*op.nodes, slots=bound(STEEPEST[op.name]) if op.name in STEEPEST else None)


@operation(*SUMS)
def add(op: Operation) -> Meaning:
    return _of_two(op, shift)


@operation(*PRODUCTS)
def mul(op: Operation) -> Meaning:
    return _of_two(op, scale)


@operation(
    "maximum", "minimum", "where", "masked_fill", "lerp", "addcmul", "addcdiv", "logaddexp", "hypot", "fmax", "fmin"
)
def several(op: Operation) -> Meaning:
    return _both(op, *op.call.inputs)


@operation("prelu")
def prelu(op: Operation) -> Meaning:
    return scale(op, op.data(0), op.argument(1, "weight"))


def shift(op: Operation, x: Meaning, bias: Any, known: bool = False) -> Meaning:
    """x + b: a bias, a scalar, or positions if it has rows and is not `known` to be a bias."""
    meaning = op.meaning(bias)
    if not isinstance(x, Node) or meaning is None:
        return x
    if isinstance(meaning, Node):
        return op.result(x, meaning, name="add")
    out = op.result(x, name="bias")
    for weight in parameters(meaning):
        axes = large(weight)
        if len(axes) < 2:
            role = "bias" if axes else "scalar"
            op.use(weight, out, role, [("d", axes)] if axes else [], axes[0] - bias.tensor.ndim if axes else None)
        elif known or (bias.tensor.ndim == 2 < op.call.outputs[0].tensor.ndim - 1):  # of heads, not of tokens
            op.use(weight, out, "bias", [("b", axes[:-1]), ("d", axes[-1:])])
        else:
            op.use(weight, out, "positions", whole=True)
    return out


def scale(op: Operation, x: Node | None, gain: Any) -> Node:
    """x ⊙ γ: a gain, a scalar, or the decay of a state space if γ is an exponential."""
    meaning = op.meaning(gain)
    out = op.result(x, name="gain" if isinstance(meaning, Weight | Mixed) else "mul")
    for weight in parameters(meaning):
        axes = large(weight)
        role = "state space" if "exp" in weight.changed and axes else "gain" if axes else "scalar"
        op.use(weight, out, role, [("d", axes)] if axes else [], axes[0] - gain.tensor.ndim if len(axes) == 1 else None)
    return out


def large(weight: Weight) -> list[int]:
    """The axes along which the weight is not the same everywhere."""
    return (
        [] if weight.entries is None else [i for i, (n, stride) in enumerate(weight.entries.axes) if n > 1 and stride]
    )


def _of_two(op: Operation, by_weight: Callable[[Operation, Node, Any], Meaning]) -> Meaning:
    """Of data and a weight, in either order; of anything else as `_both` says."""
    a, b = op.argument(0, "input"), op.argument(1, "other")
    first, second = op.meaning(a), op.meaning(b)
    if isinstance(first, Node) and isinstance(second, Weight | Mixed):
        return by_weight(op, first, b)
    if isinstance(second, Node) and isinstance(first, Weight | Mixed):
        return by_weight(op, second, a)
    return _both(op, a, b)


def _both(op: Operation, *values: Any) -> Meaning:
    """Of data and data, data and constants, weights and constants, or weights and weights."""
    meanings = [m for v in values if isinstance(v, Value) and (m := op.meaning(v)) is not None]
    if any(isinstance(m, Node) for m in meanings):
        return op.result(*op.nodes)
    if len(meanings) == 1:
        weight = meanings[0]
        value = next(v for v in values if isinstance(v, Value) and op.meaning(v) is weight)
        if isinstance(weight, Weight) and op.call.outputs[0].shape != value.shape:
            weight = Weight(weight.parameter, _broadcast(weight, op.call.outputs[0].shape), weight.changed)
        return changed(weight, op.name)  # type: ignore[arg-type]
    return Mixed(
        "mul" if op.name in ("mul", "div") else "add", tuple(m for m in meanings if isinstance(m, Weight | Mixed))
    )


def _broadcast(weight: Weight, shape: Any) -> Any:
    if weight.entries is None or len(weight.entries.axes) > len(shape):
        return None
    missing = len(shape) - len(weight.entries.axes)
    axes = [(n, 0) for n in shape[:missing]]
    axes += [(n, s if m == n else 0) for n, (m, s) in zip(shape[missing:], weight.entries.axes, strict=True)]
    return type(weight.entries)(tuple(axes), weight.entries.offset)
