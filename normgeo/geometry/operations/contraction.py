"""Products that sum over an axis: matrices, and whatever einsum can write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normgeo.geometry.graph import Node
from normgeo.geometry.operations.elementwise import shift
from normgeo.geometry.reading import Meaning, Mixed, Operation, Weight, changed
from normgeo.geometry.record import Value
from normgeo.geometry.registry import operation

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def contract(op: Operation, a: Value, b: Value, letters: tuple[str, str, str], *, data_first: bool = False) -> Meaning:
    """out = Σ a·b over the letters that out does not have. Letters of a weight that are summed over are its in-axes,
    those that only it has are its out-axes, and those that everything has count blocks."""
    first, second = op.meaning(a), op.meaning(b)
    if isinstance(first, Weight | Mixed) and isinstance(second, Weight | Mixed):
        if not data_first:
            return Mixed("matmul", (first, second))
        first = op.data(a)
    if isinstance(first, Node) and isinstance(second, Node):
        return op.result(first, second)
    x, w = (a, b) if isinstance(second, Weight | Mixed) else (b, a)
    node = op.data(x)
    weight = op.meaning(w)
    if not isinstance(weight, Weight | Mixed):
        return op.result(op.data(a), op.data(b))
    if node is None and not data_first:  # a function of weights alone
        part = weight.parts[0] if isinstance(weight, Mixed) else weight
        return changed(replace(part, entries=None), op.name) if isinstance(part, Weight) else weight
    out = op.result(node, name="linear", axis=-1)
    _use(op, weight, out, (letters[0], letters[1]) if w is b else (letters[1], letters[0]), letters[2])
    return out


def _use(op: Operation, weight: Weight | Mixed, out: Node, letters: tuple[str, str], given: str) -> None:
    x, w = letters
    inside = [i for i, letter in enumerate(w) if letter in x and letter not in given]
    outside = [i for i, letter in enumerate(w) if letter not in x]
    blocks = [i for i, letter in enumerate(w) if letter in x and letter in given]
    groups = [("b", blocks)] if blocks else []
    axis = given.index(w[outside[0]]) - len(given) if len(outside) == 1 else None
    if isinstance(weight, Weight):
        blocks = [i for i in blocks if weight.entries is None or weight.entries.axes[i][1]]
        groups = [("b", blocks)] if blocks else []
        op.use(weight, out, "linear", [*groups, ("o", outside), ("i", inside)], axis)
        return
    transposed = bool(inside and outside and inside[0] < outside[0])
    for part, role in matrices(weight):
        large = [i for i, (n, s) in enumerate(part.entries.axes) if n > 1 and s] if part.entries else []
        if len(large) == 2:
            o, i = reversed(large) if transposed else large
            op.use(part, out, role, [("o", [o]), ("i", [i])])
        else:
            op.use(part, out, "gain", [("d", large)])


def matrices(weight: Weight | Mixed) -> list[tuple[Weight, str]]:
    """The parameters that a matrix is made of, each once: W + BA, g·v/|v|."""
    if isinstance(weight, Weight):
        return [(weight, "linear")]
    found = [pair for part in weight.parts for pair in matrices(part)]
    if weight.how == "matmul" and len(found) == 2:
        found = [(part, role) for (part, _), role in zip(found, ("lora B", "lora A"), strict=True)]
    known = {id(part.parameter): (part, role) for part, role in reversed(found)}
    known |= {id(part.parameter): (part, role) for part, role in reversed(found) if part.entries is not None}
    return list(known.values())


@operation("linear")
def linear(op: Operation) -> Meaning:
    x, w, bias = op.argument(0, "input"), op.argument(1, "weight"), op.argument(2, "bias")
    lead = LETTERS[: x.tensor.ndim - 1]
    letters = (f"{lead}i", "oi", f"{lead}o") if w.tensor.ndim == 2 else (f"{lead}i", "i", lead)
    out = contract(op, x, w, letters, data_first=True)
    return out if bias is None else shift(op, out, bias, known=True)


@operation("matmul", "rmatmul", "mm", "bmm", "mv", "dot", "inner", "vdot", "chain_matmul")
def matmul(op: Operation) -> Meaning:
    return _matmul(op, op.argument(0, "input"), op.argument(1, "other") or op.argument(1, "mat2"))


@operation("addmm", "baddbmm", "addbmm", "addmv")
def addmm(op: Operation) -> Meaning:
    bias, a, b = op.call.inputs
    return shift(op, _matmul(op, a, b), bias, known=True)


@operation("grouped_mm", "grouped_mm_fallback")
def grouped(op: Operation) -> Meaning:
    """Each row times the matrix of its group, (groups, in, out): experts."""
    x, w = op.argument(0, "input"), op.argument(1, "mat2")
    weight = op.meaning(w)
    out = op.result(op.data(x), name="experts")
    if isinstance(weight, Weight) and w.tensor.ndim == 3:
        op.use(weight, out, "expert", [("b", [0]), ("o", [2]), ("i", [1])], -1)
        return out
    return op.result(*op.nodes)


@operation("bilinear")
def bilinear(op: Operation) -> Meaning:
    """W (out, i, j) times the product of two inputs, whose RMS is the product of theirs."""
    out = op.result(op.data(0), op.data(1))
    weight = op.meaning(op.argument(2, "weight"))
    if isinstance(weight, Weight):
        op.use(weight, out, "linear", [("o", [0]), ("i", [1, 2])], -1)
    return shift(op, out, op.argument(3, "bias"), known=True)


@operation("einsum")
def einsum(op: Operation) -> Meaning:
    equation, *operands = op.call.args
    values: list[Value] = list(operands[0]) if operands and isinstance(operands[0], list | tuple) else list(operands)
    if not isinstance(equation, str) or len(values) != 2:
        return op.result(*op.nodes)
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    dots = [LETTERS[: v.tensor.ndim - len(t.replace("...", ""))] for t, v in zip(terms, values, strict=True)]
    longest = max(dots, key=len)
    letters = [t.replace("...", longest[len(longest) - len(d) :]) for t, d in zip(terms, dots, strict=True)]
    if "->" not in equation:
        right = "".join(sorted(c for c in set("".join(letters)) if "".join(letters).count(c) == 1))
    return contract(op, values[0], values[1], (letters[0], letters[1], right.replace("...", longest)))


def _matmul(op: Operation, a: Value, b: Value) -> Meaning:
    return contract(op, a, b, _letters(a.tensor.ndim, b.tensor.ndim))


def _letters(m: int, n: int) -> tuple[str, str, str]:
    """Of a matrix product of tensors with m and n axes."""
    lead: Sequence[str] = LETTERS[: max(m, n) - 2] if max(m, n) > 2 else ""
    a = "k" if m == 1 else f"{lead[len(lead) - (m - 2) :] if m > 2 else ''}mk"
    b = "k" if n == 1 else f"{lead[len(lead) - (n - 2) :] if n > 2 else ''}kn"
    return a, b, f"{lead}{'m' if m > 1 else ''}{'n' if n > 1 else ''}"
