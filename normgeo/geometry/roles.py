"""From what was found at work to the uses of the graph: roles, norms, views and blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn import Parameter

from normgeo.geometry.blocks import Part, parts, spread
from normgeo.geometry.declare import GeometryError
from normgeo.geometry.entries import Axis, Entries, view_of
from normgeo.geometry.factor import typical
from normgeo.geometry.leaf import View
from normgeo.geometry.reading import Found, Reader
from normgeo.geometry.record import Call
from normgeo.geometry.walks import is_head, is_lora, is_router, reaches_scores
from normgeo.norms import RMS, Absolute, Blocks, Conv, ConvTransposed, L1ToRMS, Linf, Norm, RMSToRMS

__all__ = ["place"]

Groups = tuple[tuple[str, tuple[Axis, ...]], ...]
TABLES = {"embedding", "positions", "token"}
VECTORS: dict[str, Norm] = {"bias": RMS(), "gain": Linf(), "state space": Linf(), "bias table": Linf()}


def place(reader: Reader, names: Mapping[int, str]) -> None:
    """Put every weight that was found at work into the graph. names: of parameters, by id."""
    founds: dict[int, list[Found]] = {}
    for found in reader.found:
        founds.setdefault(id(found.weight.parameter), []).append(found)
    for key, mine in founds.items():
        if key not in names:
            raise GeometryError("a parameter is used that does not belong to the model; assign it to a module")
        refined = [replace(found, role=_role(reader, found)) for found in mine]
        tables = [found for found in refined if found.role in TABLES or found.whole]
        if tables:
            _table(reader, tables, [found for found in refined if found not in tables])
        elif refined[0].role == "assumed":
            _by_shape(reader, refined)
        else:
            _matrices(reader, refined)


def _role(reader: Reader, found: Found) -> str:
    if found.role == "linear":
        if is_router(reader, found):
            return "router"
        if is_head(reader, found):
            return "head"
        return is_lora(reader, found) or "linear"
    if found.role in ("embedding", "positions", "bias") and reaches_scores(reader, found):
        return "bias table"
    return found.role


def _table(reader: Reader, tables: Sequence[Found], others: Sequence[Found]) -> None:
    """Rows of features, whichever of them are used; uses as a matrix (tied heads) add."""
    parameter = tables[0].weight.parameter
    shape = tuple(parameter.shape)
    if any(found.role == "bias table" for found in tables) and not others:
        view = _flat_view(shape)
        for found in tables:
            reader.graph.use(parameter, found.node, role="bias table", norm=Linf(), input_norm=typical(1.0), view=view)
        return
    axis = len(shape) + (reader.axis.get(tables[0].node.index) or -1)
    large = [i for i, n in enumerate(shape) if n > 1 and i != axis]
    norm: Norm = L1ToRMS() if large else RMS()
    letters = "abcdefgh"
    left = " ".join(letters[i] if i == axis or i in large else "1" for i in range(len(shape)))
    rows = " ".join(letters[i] for i in large)
    right = f"({rows}) {letters[axis]}" if len(large) > 1 else f"{rows} {letters[axis]}".strip()
    view = None if left == right else View(f"{left} -> {right}", tuple((letters[i], shape[i]) for i in large[1:]))
    role = "embedding" if any(found.role == "embedding" for found in tables) else tables[0].role
    if any(found.role == "head" for found in others):
        role = f"{role}, head"
    for found in tables:
        reader.graph.use(parameter, found.node, role=role, norm=norm, input_norm=typical(1.0), view=view)
    for found in others:
        # |⟨Δ_i, x⟩| is √d·RMS(Δ_i)·RMS(x) for a random x, and at most √d times as much.
        size = typical(math.sqrt(shape[axis]))
        reader.graph.use(parameter, found.node, role=role, norm=norm, input_norm=size, view=view)


def _matrices(reader: Reader, founds: Sequence[Found]) -> None:
    """Linear maps, convolutions, biases, gains: one leaf, or one for each block."""
    parameter = founds[0].weight.parameter
    shape = tuple(parameter.shape)
    first = founds[0]
    places = {(found.groups, found.offset) for found in founds}
    if first.weight.entries is None or (not first.groups and first.role != "scalar"):
        return _by_shape(reader, founds)
    if len(places) == 1:
        found_parts = parts(reader, first)
        for name, groups, offset in _split(first, found_parts) or [("", first.groups, first.offset)]:
            for found in founds:
                _use(reader, found, name, groups, offset)
    elif _is_partition(founds, math.prod(shape)):
        order = sorted({found.offset for found in founds})
        for found in founds:
            _use(reader, found, str(order.index(found.offset)), found.groups, found.offset)
    elif _transposed(founds):
        for found in founds:
            _use(reader, found, "", first.groups, first.offset)
    else:
        whole = _whole(first)
        for name, groups, offset in _split(replace(first, groups=whole), parts(reader, first), 0) or [("", whole, 0)]:
            for found in founds:
                _use(reader, found, name, groups, offset)
    return None


def _split(found: Found, its: Sequence[Part], offset: int | None = None) -> list[tuple[str, Groups, int]]:
    """The groups and offsets of the parts of a weight along its outputs."""
    out = []
    base = found.offset if offset is None else offset
    for part in its:
        groups: Groups = ()
        start = base
        for letter, axes in found.groups:
            if letter in ("o", "d") and len(axes) == 1:
                axes, more = spread(part, axes[0])
                start += more
                if not part.name:
                    groups = (("b", axes[:1]), *groups)
                    axes = axes[1:]
            groups = (*groups, (letter, axes))
        out.append((part.name, groups, start))
    return out


def _use(reader: Reader, found: Found, block: str, groups: Groups, offset: int) -> None:
    parameter = found.weight.parameter
    groups = tuple((letter, axes) for letter, axes in groups if letter != "b" or axes)
    try:
        view = None if found.role == "scalar" else view_of(parameter.shape, groups, offset)
    except ValueError:
        return _by_shape(reader, [found])
    if found.role == "scalar" and parameter.ndim:
        view = View(" ".join("1" * parameter.ndim) + " -> ")
    role, norm = found.role, _norm(found, groups)
    reader.graph.use(parameter, found.node, role=role, norm=norm, input_norm=typical(1.0), view=view, block=block)
    return None


def _norm(found: Found, groups: Groups) -> Norm:
    letters = [letter for letter, _ in groups]
    norm: Norm
    if found.role == "scalar":
        return Absolute()
    if found.role in VECTORS:
        norm = VECTORS[found.role]
    elif found.role == "convolution":
        norm = _convolution(found.call)
    else:
        norm = RMSToRMS()
    return Blocks(norm) if "b" in letters else norm


def _convolution(call: Call) -> Norm:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    if transposed := "transpose" in call.name:
        names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups")
    given = dict(zip(names, call.args, strict=False)) | call.kwargs
    spatial, groups, stride = given["weight"].tensor.ndim - 2, int(given.get("groups", 1)), given.get("stride", 1)
    if not transposed:
        return Conv(spatial, groups)
    each = tuple(stride) if isinstance(stride, tuple | list) else (stride,)
    return ConvTransposed(spatial, groups, stride=each * (spatial // len(each)))


def _is_partition(founds: Sequence[Found], numel: int) -> bool:
    """Whether the uses share no entry, leave none out, and are few."""
    each = {(found.groups, found.offset) for found in founds}
    if len(each) > 4 or sum(math.prod(n for _, axes in g for n, _ in axes) for g, _ in each) != numel:
        return False
    seen = torch.zeros(numel, dtype=torch.bool)
    for groups, offset in each:
        axes = [axis for _, its in groups for axis in its]
        view = seen.as_strided([n for n, _ in axes], [s for _, s in axes], offset)
        if view.any():
            return False
        view.fill_(True)
    return True


def _transposed(founds: Sequence[Found]) -> bool:
    """Whether all uses are of the same entries, in other orders."""
    return len({(frozenset(axis for _, its in f.groups for axis in its), f.offset) for f in founds}) == 1


def _whole(found: Found) -> Groups:
    """The axes of the whole parameter, each with the letter of the group that runs along it; b where none does."""
    stored = Entries.all(found.weight.parameter.shape).axes
    letters = []
    for n, t in stored:
        owner = [letter for letter, axes in found.groups for m, s in axes if m > 1 and t <= s < t * n]
        letters.append(owner[0] if owner else "b")
    order = ["b", *(letter for letter, _ in found.groups if letter != "b")]
    out = []
    for letter in order:
        axes = tuple(axis for axis, its in zip(stored, letters, strict=True) if its == letter and axis[0] > 1)
        if axes or letter != "b":
            out.append((letter, axes))
    return tuple(out)


def _by_shape(reader: Reader, founds: Sequence[Found]) -> None:
    """The last resort: a norm that fits the shape, said to be assumed."""
    parameter: Parameter = founds[0].weight.parameter
    role = founds[0].role
    norms: dict[int, Norm] = {0: Absolute(), 1: Linf() if role in ("gain", "state space") else RMS(), 2: RMSToRMS()}
    norm = norms.get(parameter.ndim) or Blocks(RMSToRMS())
    view = None
    if parameter.ndim > 3:
        view = View(f"{' '.join('abcdefgh'[: parameter.ndim])} -> a ({' '.join('bcdefgh'[: parameter.ndim - 1])})")
        norm = RMSToRMS()
    for found in founds:
        reader.graph.use(parameter, found.node, role=role, norm=norm, input_norm=typical(1.0), view=view)


def _flat_view(shape: tuple[int, ...]) -> View | None:
    if len(shape) == 1:
        return None
    letters = " ".join("abcdefgh"[: len(shape)])
    return View(f"{letters} -> ({letters})", tuple(zip("abcdefgh", shape, strict=False)))
