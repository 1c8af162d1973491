"""From what was found at work to the uses of the graph: roles, norms, views and blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch.nn import Parameter

from normgeo.geometry.blocks import Part, parts, spread, way
from normgeo.geometry.declare import GeometryError
from normgeo.geometry.entries import Axis, Entries, view_of
from normgeo.geometry.factor import typical
from normgeo.geometry.leaf import View
from normgeo.geometry.reading import Found, Reader
from normgeo.geometry.record import Call
from normgeo.geometry.walks import follows_map, is_head, is_lora, is_router, reaches_scores
from normgeo.norms import RMS, Absolute, Blocks, Conv, ConvTransposed, L1ToRMS, Linf, Norm, RMSToRMS

__all__ = ["ROLES", "place", "shaped"]

Groups = tuple[tuple[str, tuple[Axis, ...]], ...]
TABLES = {"embedding", "positions", "token"}
ROLES = (
    *("linear", "head", "router", "gate", "recurrent", "expert", "lora A", "lora B", "convolution", "embedding"),
    *("positions", "token", "bias", "gain", "scalar", "bias table", "state space", "unused"),
)
ALIGNMENT = 1 / 8
"""a cosine between what a tied head is given and a step of its rows: chosen so that nothing changes at d = 64, where √d
trains well; GPT-2 of width 256, 150 steps, came to 2.172 with √d and to 2.133 with d/8"""
VECTORS: dict[str, Norm] = {"bias": RMS(), "gain": Linf(), "state space": Linf(), "bias table": Linf()}


def place(
    reader: Reader,
    names: Mapping[int, str],
    roles: Mapping[str, str] | None = None,
    splits: Mapping[str, Sequence[tuple[str, View, int]]] | None = None,
) -> None:
    """Put every weight that was found at work into the graph. names: of parameters, by id. roles: by name, in place of
    what is found. splits: by name, the blocks as (name, view, axes of each) in place of those that are found."""
    founds: dict[int, list[Found]] = {}
    for found in reader.found:
        founds.setdefault(id(found.weight.parameter), []).append(found)
    for key, mine in founds.items():
        if key not in names:
            raise GeometryError("a parameter is used that does not belong to the model; assign it to a module")
        name = names[key]
        if roles and name in roles:
            _given_role(reader, mine, roles[name])
            continue
        refined = [replace(found, role=_role(reader, found)) for found in mine]
        if splits and name in splits:
            _given_split(reader, refined, splits[name])
            continue
        tables = [found for found in refined if found.role in TABLES or found.whole]
        if tables:
            _table(reader, tables, [found for found in refined if found not in tables])
        elif refined[0].role == "assumed":
            _by_shape(reader, refined)
        else:
            _matrices(reader, refined)


def _given_role(reader: Reader, founds: Sequence[Found], role: str) -> None:
    given = [replace(found, role=role) for found in founds]
    matrix = role not in TABLES and role not in VECTORS and given[0].weight.parameter.ndim > 1
    if matrix and all(found.groups for found in given):
        return _matrices(reader, given)
    return _by_shape(reader, given)


def _given_split(reader: Reader, founds: Sequence[Found], blocks: Sequence[tuple[str, View, int]]) -> None:
    for block, view, axes in blocks:
        norm = VECTORS.get(founds[0].role) or RMSToRMS()
        for _ in range(axes - norm.ndim):
            norm = Blocks(norm)
        for found in founds:
            role, node = found.role, found.node
            reader.graph.use(
                found.weight.parameter, node, role=role, norm=norm, input_norm=typical(1.0), view=view, block=block
            )


def _role(reader: Reader, found: Found) -> str:
    if found.role == "linear":
        if is_router(reader, found):
            return "router"
        if is_head(reader, found):
            return "head"
        return is_lora(reader, found) or "linear"
    if found.role in ("embedding", "positions", "token", "bias") and reaches_scores(reader, found):
        return "bias table"
    if found.role == "embedding" and found.call.name != "embedding" and follows_map(reader, found):
        return "bias"
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
    if len(shape) == 1 and role == "embedding":
        norm = Linf()  # its rows are single entries
    if any(found.role == "head" for found in others):
        role = f"{role}, head"
    for found in tables:
        reader.graph.use(parameter, found.node, role=role, norm=norm, input_norm=typical(1.0), view=view)
    for found in others:
        # |⟨Δ_i, x⟩| = d·|cos|·RMS(Δ_i)·RMS(x). The cosine is d^-½ for a random x, but rows follow gradients, which are
        # means of such x: in a tied GPT-2 it was .4 (RMS) at widths 64, 128 and 256 alike.
        logits = max(math.sqrt(shape[axis]), ALIGNMENT * shape[axis])
        size = typical(1.0 if found.role in VECTORS else logits)
        reader.graph.use(parameter, found.node, role=role, norm=norm, input_norm=size, view=view)


def _matrices(reader: Reader, founds: Sequence[Found]) -> None:
    """Linear maps, convolutions, biases, gains: one leaf, or one for each block."""
    parameter = founds[0].weight.parameter
    shape = tuple(parameter.shape)
    first = founds[0]
    places = {(found.groups, found.offset) for found in founds}
    if first.weight.entries is None or (not first.groups and first.role != "scalar"):
        return _by_shape(reader, founds)
    if _is_partition(founds, math.prod(shape)):
        order = sorted(places, key=lambda place: place[1])
        for groups, offset in order:
            mine = [found for found in founds if (found.groups, found.offset) == (groups, offset)]
            name = "" if len(order) == 1 else way(reader, mine[0]) or str(order.index((groups, offset)))
            for block, its, start in _split(mine[0], parts(reader, mine[0])) or [(name, groups, offset)]:
                for found in mine:
                    _use(reader, found, block, its, start)
    elif _same_entries(founds) and _is_partition(founds[:1], math.prod(shape)):
        for found in founds:
            _use(reader, found, "", first.groups, first.offset)
    else:
        whole = _whole(first)
        if whole[0][0] == "b" and first.role == "linear":
            founds = [replace(found, role="expert") for found in founds]
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


def _same_entries(founds: Sequence[Found]) -> bool:
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
    """The last resort, and what roles= asks for: the norm of the role, for the shape that there is."""
    parameter: Parameter = founds[0].weight.parameter
    norm, view = shaped(founds[0].role, tuple(parameter.shape))
    for found in founds:
        reader.graph.use(parameter, found.node, role=found.role, norm=norm, input_norm=typical(1.0), view=view)


def shaped(role: str, shape: tuple[int, ...]) -> tuple[Norm, View | None]:
    """The norm of a role for a parameter of this shape, and how it is seen."""
    letters = "abcdefgh"[: len(shape)]
    if role == "scalar" or not shape:
        return Absolute(), View(" ".join("1" * len(shape)) + " -> ") if shape else None
    if role in VECTORS or len(shape) == 1:
        return VECTORS.get(role, RMS()), _flat_view(shape)
    if role in TABLES:
        return L1ToRMS(), View(f"{' '.join(letters)} -> ({' '.join(letters[:-1])}) {letters[-1]}") if len(
            shape
        ) > 2 else None
    if role == "convolution":
        return Conv(len(shape) - 2), None
    if len(shape) == 2:
        return RMSToRMS(), None
    if len(shape) == 3:
        return Blocks(RMSToRMS()), None
    return RMSToRMS(), View(f"{' '.join(letters)} -> a ({' '.join(letters[1:])})")


def _flat_view(shape: tuple[int, ...]) -> View | None:
    if len(shape) == 1:
        return None
    letters = " ".join("abcdefgh"[: len(shape)])
    return View(f"{letters} -> ({letters})", tuple(zip("abcdefgh", shape, strict=False)))
