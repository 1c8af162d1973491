"""Products that sum over an axis, y = Σ_k a·b. With matrices A (m, k) and B (k, n) on axes that they do not share,
a change of A is measured by y in one of three ways, and each is a bound in the next:

    over n of B:   RMS_n(dA·B) ≤ √(|k|/|n|)·σ_max(B)·RMS_k(dA),   ≤ max_k RMS_n(B)·Σ_k|dA|,   ≤ Σ_k RMS_n(B)·max|dA|
    over m of A:   RMS_m(dA·B) ≤ max_n Σ_k|B|·RMS_m(dA)
    every entry:   |dA·B| ≤ |k|·max_n RMS_k(B)·RMS_k(dA),   ≤ max|B|·Σ_k|dA|,   ≤ max_n Σ_k|B|·max|dA|

So a linear map is √(in/out)·σ_max(W); scores q·k are d_h·RMS(k); probabilities that sum to 1 over keys times values are
RMS(v), and 1 for the values. For a change ΔW of a matrix in its own norm the first line needs no root: √(in/out)·σ_max(ΔW)
≤ c·‖ΔW‖ (`ball.matrix_gain`), times RMS_k(x) ≥ 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from normgeo.geometry.bounds.ball import matrix_gain, unscaled
from normgeo.geometry.bounds.local import Local, Measure, largest
from normgeo.geometry.bounds.tracer import Linearized, Piece, linearization
from normgeo.geometry.operations.contraction import LETTERS, _letters
from normgeo.geometry.record import Value
from normgeo.norms import RMSToRMS

__all__ = ["contract", "steepest"]


def steepest(w: Tensor, floor: bool = True) -> float:
    """√(in/out)·σ_max of the largest of some matrices (out, in), at least 1: from the smaller Gram matrix. Those with many
    entries are multiplied in float32, which is off by less than the 1e-4 that is added."""
    w = w.detach()
    big = w.shape[-1] * w.shape[-2] > 1 << 20
    w = w.float() if big else w.double()
    gram = w @ w.mT if w.shape[-2] <= w.shape[-1] else w.mT @ w
    top = float(torch.linalg.eigvalsh(gram)[..., -1].amax()) if gram.numel() else 0.0
    out = math.sqrt(max(top, 0.0) * w.shape[-1] / w.shape[-2]) * (1 + 1e-4 * big)
    return max(out, 1.0) if floor else out


@dataclass(frozen=True)
class Side:
    """One factor of a product: the value, its axes that are summed (k), its own (m), and its matrices (batch, m, k)."""

    value: Value
    local: Local | None
    shared: tuple[int, ...]
    own: tuple[int, ...]
    matrices: Tensor
    own_out: tuple[int, ...]
    """where its own axes are in the output"""


def contract(op: Linearized, a: Value, b: Value, letters: Sequence[str], bias: Value | None = None) -> Any:
    """y = Σ a·b over the letters that y does not have, plus a bias."""
    la, lb, lo = letters
    summed = [c for c in la if c in lb and c not in lo]
    if any((c not in lb and c not in lo) for c in la) or any((c not in la and c not in lo) for c in lb):
        return op.tracer.unknown(op)
    sides = [_side(op, x, mine, other, summed, lo) for x, mine, other in ((a, la, lb), (b, lb, la))]
    measure = Measure(_measured(op, sides))
    shift = None if bias is None else op.local(bias)
    pieces: list[Piece] = [] if shift is None else [(shift.expanded(op.outputs[0].shape), measure, 1.0)]
    uses: list[tuple[str, float]] = []
    for side, other in (sides, sides[::-1]):
        if side.local is None:
            continue
        found = _as_matrix(op, side, other, measure)
        uses += found
        rest = _without(side.local, {name for name, _ in found})
        if rest is not None:
            pieces.append(_best(rest, _options(side, other, measure)))
    return op.node(measure, pieces, uses)


def _side(op: Linearized, x: Value, mine: str, other: str, summed: Sequence[str], out: str) -> Side:
    own = [c for c in mine if c not in other and c in out]
    batch = [c for c in mine if c in other and c in out]
    k, m, b = ([mine.index(c) for c in group] for group in (summed, own, batch))
    t = x.tensor.detach()
    sizes = [math.prod(t.shape[a] for a in axes) for axes in (m, k)]
    return Side(
        x, op.local(x), tuple(k), tuple(m), t.permute(*b, *m, *k).reshape(-1, *sizes), tuple(out.index(c) for c in own)
    )


def _measured(op: Linearized, sides: Sequence[Side]) -> tuple[int, ...]:
    """The axes of y that hold its features. Those that a matrix makes; or those of a factor that keeps its own."""
    keeps = []
    for side in sides:
        features = set() if side.local is None else set(side.local.features())
        keeps.append(bool(features & set(side.own)) and not features & set(side.shared))
    matrices = [side.local is not None and _has_matrices(op, side.local) for side in sides]
    if op.name in ("linear", "addmm", "grouped_mm"):
        matrices = [False, True]
    fixed = [side.local is None for side in sides] if matrices[0] == matrices[1] else matrices
    if fixed[0] != fixed[1]:
        k = fixed.index(True)
        return sides[1 - k].own_out if keeps[1 - k] else sides[k].own_out
    sums = [_is_sum(side) for side in sides]
    for k in (0, 1):
        if keeps[k] and (sums[1 - k] or not keeps[1 - k]):
            return sides[k].own_out
    return ()


def _has_matrices(op: Linearized, local: Local) -> bool:
    names = {each[0].name for each in local.root.sources}
    return any(leaf.name in names and isinstance(unscaled(leaf.norm)[0], RMSToRMS) for leaf in op.tracer.leaves)


def _is_sum(side: Side) -> bool:
    source = None if side.local is None else side.local.root.sources[0][0].measure
    return source is not None and source.kind == "sum"


def _options(side: Side, other: Side, measure: Measure) -> list[tuple[Measure, float]]:
    """How a change of one side may be measured, and how much the other one stretches that."""
    b = other.matrices  # (batch, n, k)
    b = b if b.numel() > 1 << 20 else b.double()
    floor = 0.0 if other.local is None else 1.0
    count = b.shape[-1]
    rms = Measure(side.shared)
    none, total = Measure(), Measure(side.shared, "sum")
    if not b.numel():
        return [(none, 0.0)]
    rows = float(b.abs().sum(-1).amax())
    out = [
        (rms, count * max(floor, float(b.square().mean(-1).sqrt().amax()))),
        (total, max(floor, float(b.abs().amax()))),
        (none, max(floor, rows)),
    ]
    if set(measure.axes) == set(other.own_out) and other.own:
        columns = b.square().mean(-2).sqrt()
        out = [
            (rms, max(floor, steepest(other.matrices, floor=False))),
            (total, max(floor, float(columns.amax()))),
            (none, max(floor, float(columns.sum(-1).amax()))),
        ]
    elif set(measure.axes) == set(side.own_out) and side.own:
        out.append((Measure(side.own), max(floor, rows)))
    return out


def _best(local: Local, options: Sequence[tuple[Measure, float]]) -> Piece:
    measure, gain = min(options, key=lambda option: largest(local, option[0]) * option[1])
    return local, measure, gain


def _as_matrix(op: Linearized, side: Side, other: Side, measure: Measure) -> list[tuple[str, float]]:
    """Leaves whose norm is that of the matrices in a side, and how much the other side stretches their changes."""
    local = side.local
    assert local is not None
    if op.tracer.is_node(local.root) or not side.own:
        return []
    x = other.matrices.double()  # (batch, m, k)
    out, inside = side.matrices.shape[-2:]
    if not x.numel():
        return []
    if set(measure.axes) == set(side.own_out):
        size = max(1.0, float(x.square().mean(-1).sqrt().amax())) * math.sqrt(inside / out)
    elif set(measure.axes) == set(other.own_out) and other.own:
        size = max(1.0, float(torch.linalg.matrix_norm(x, 2).amax()) / math.sqrt(x.shape[-2]))
    else:
        size = max(1.0, float(x.square().mean(-1).sqrt().amax())) * math.sqrt(inside)
    found = []
    names = {each[0].name for each in local.root.sources}
    for leaf in op.tracer.leaves:
        if leaf.name in names and op.tracer.parameters[leaf.parameter] is op.tracer.owner(local.root):
            gain = matrix_gain(leaf, local.root.shape, local, side.shared, side.own)
            if gain is not None:
                found.append((leaf.name, gain * size))
    return found


def _without(local: Local, names: set[str]) -> Local | None:
    """The same without some of the leaves."""
    left = [each for each in local.root.sources if each[0].name not in names]
    return replace(local, root=replace(local.root, sources=left)) if left else None


@linearization("linear")
def linear(op: Linearized) -> Any:
    x, w, bias = op.argument(0, "input"), op.argument(1, "weight"), op.argument(2, "bias")
    lead = LETTERS[: x.tensor.ndim - 1]
    letters = (f"{lead}i", "oi", f"{lead}o") if w.tensor.ndim == 2 else (f"{lead}i", "i", lead)
    return contract(op, x, w, letters, bias)


@linearization("matmul", "rmatmul", "mm", "bmm", "mv", "dot", "inner", "vdot")
def matmul(op: Linearized) -> Any:
    a, b = op.argument(0, "input"), op.argument(1, "other") or op.argument(1, "mat2")
    a, b = (b, a) if op.name == "rmatmul" else (a, b)
    return _matmul(op, a, b)


@linearization("addmm", "baddbmm")
def addmm(op: Linearized) -> Any:
    if op.call.kwargs.keys() & {"alpha", "beta"} or len(op.call.inputs) != 3:
        return op.tracer.unknown(op)
    bias, a, b = op.call.inputs
    return _matmul(op, a, b, bias)


def _matmul(op: Linearized, a: Value, b: Value, bias: Value | None = None) -> Any:
    letters = [*_letters(a.tensor.ndim, b.tensor.ndim)]
    # An axis of one matrix for all is not shared.
    for c in letters[2]:
        if c in letters[0] and c in letters[1]:
            sizes = [x.shape[own.index(c)] for x, own in zip((a, b), letters, strict=False)]
            if sizes[0] != sizes[1]:
                return op.tracer.unknown(op)
    return contract(op, a, b, letters, bias)


@linearization("einsum")
def einsum(op: Linearized) -> Any:
    equation, *operands = op.call.args
    values: list[Value] = list(operands[0]) if operands and isinstance(operands[0], list | tuple) else list(operands)
    if not isinstance(equation, str) or len(values) != 2 or "->" not in equation:
        return op.tracer.unknown(op)
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    dots = [LETTERS[: v.tensor.ndim - len(t.replace("...", ""))] for t, v in zip(terms, values, strict=True)]
    longest = max(dots, key=len)
    letters = [t.replace("...", longest[len(longest) - len(d) :]) for t, d in zip(terms, dots, strict=True)]
    if any(len(set(each)) < len(each) for each in letters):
        return op.tracer.unknown(op)
    return contract(op, values[0], values[1], [*letters, right.replace("...", longest)])


@linearization("grouped_mm", "grouped_mm_fallback")
def grouped(op: Linearized) -> Any:
    """Each row times the matrix of its group, (groups, in, out)."""
    x, w = op.argument(0, "input"), op.argument(1, "mat2")
    local, weight = op.local(x), op.local(w)
    if x.tensor.ndim != 2 or w.tensor.ndim != 3 or (weight is not None and op.tracer.is_node(weight.root)):
        return op.tracer.unknown(op)
    measure = Measure((1,))
    pieces: list[Piece] = [(local, measure, steepest(w.tensor.mT))]
    uses = []
    if weight is not None:
        side = Side(w, weight, (1,), (2,), w.tensor.detach().mT, (1,))
        other = Side(x, local, (1,), (0,), x.tensor.detach()[None], (0,))
        uses = _as_matrix(op, side, other, measure)
        rest = _without(weight, {name for name, _ in uses})
        if rest is not None:
            return op.tracer.unknown(op)
    return op.node(measure, pieces, uses)
