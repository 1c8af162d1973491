"""Operations that move entries about, and those that put tensors together: what they do to the numbers of entries is what
they do to the entries, so they are run on the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from normgeo.geometry.bounds.entrywise import combined
from normgeo.geometry.bounds.local import Local, Term
from normgeo.geometry.bounds.tracer import Linearized, linearization
from normgeo.geometry.operations.shape import COPIES, CUTS, MOVES
from normgeo.geometry.record import Value

STILL = COPIES | {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "alias"}
STILL |= {"requires_grad", "pin_memory", "positive", "nan_to_num", "resolve_conj", "conj"}
JOINS = ("cat", "concat", "concatenate", "stack", "hstack", "vstack", "column_stack")
PICKS = ("gather", "take", "take_along_dim", "index_select", "index", "masked_select")
WRITES = ("index_put", "index_copy", "scatter", "masked_scatter", "copy", "slice_scatter", "select_scatter")
FILLS = {"pad": 3, "constant_pad_nd": 2}
"""how many arguments come before the number that is filled in"""


@linearization(*STILL)
def still(op: Linearized) -> Local | None:
    return op.local(0, "input")


@linearization(*(MOVES - STILL - {"fold", "as_strided"}), *PICKS, *JOINS, *WRITES)
def moves(op: Linearized) -> Any:
    return rearranged(op, lambda args, kwargs: tree_flatten(op.call.function(*args, **kwargs))[0])


@linearization("setitem")
def setitem(op: Linearized) -> Any:
    """x[key] = y; or x, after a view of it was changed."""

    def run(args: Any, kwargs: Any) -> list[Tensor]:
        base = args[0].contiguous().clone() if args[0].numel() else args[0]
        if getattr(op.call.function, "__name__", "") == "__setitem__":
            base[args[1]] = args[2]
            return [base]
        whole, *views = (x.tensor for x in op.call.args)
        laid = torch.empty_strided(whole.shape, whole.stride(), dtype=base.dtype).copy_(base)
        for view, numbers in zip(views, args[1:], strict=True):
            offset = view.storage_offset() - whole.storage_offset()
            laid.as_strided(view.shape, view.stride(), offset).copy_(numbers)
        return [laid]

    return rearranged(op, run)


@linearization("index_add", "scatter_add")
def index_add(op: Linearized) -> Any:
    """Sums at places given by an index, if no place gets two."""
    index, x = op.tensor(2, "index"), op.tensor(0)
    places = index if op.name == "index_add" else _places(x, op.argument(1, "dim"), index)
    if op.call.kwargs or len(op.call.args) != 4 or len(places.unique()) < places.numel():
        return op.tracer.unknown(op)
    return moves(op)


def _places(x: Tensor, dim: int, index: Tensor) -> Tensor:
    numbers = torch.arange(x.numel()).reshape(x.shape)
    return numbers[tuple(slice(0, n) if a != dim % x.ndim else slice(None) for a, n in enumerate(index.shape))].gather(
        dim, index
    )


@linearization("topk", "sort", "kthvalue", "median", "mode", "cummax", "cummin")
def ordered(op: Linearized) -> Any:
    """The entries that were chosen, where the order is strict."""
    dim = op.argument(2 if op.name in ("topk", "kthvalue") else 1, "dim", -1)
    index = op.outputs[-1].tensor
    if len(op.outputs) != 2 or not isinstance(dim, int):
        return op.tracer.unknown(op)
    gone = index.ndim < op.tensor(0).ndim
    index = index.unsqueeze(dim) if gone else index

    def run(args: Any, kwargs: Any) -> list[Tensor]:
        found = args[0].gather(dim, index)
        return [found.squeeze(dim) if gone else found] * 2

    return rearranged(op, run)


@linearization("max", "min", "amax", "amin")
def extremes(op: Linearized) -> Any:
    """The largest entries along axes, where there is one; of two tensors, the larger."""
    from normgeo.geometry.bounds.entrywise import entrywise

    if len(op.call.inputs) == 2:
        return entrywise(op)
    dim, keep = op.argument(1, "dim", None), op.argument(2, "keepdim", False)
    x = op.tensor(0)
    axes = sorted(a % x.ndim for a in ((dim,) if isinstance(dim, int) else dim or range(x.ndim)))
    rest = [a for a in range(x.ndim) if a not in axes]
    flat = x.permute(*rest, *axes).flatten(len(rest))
    at = (flat.argmax(-1) if "max" in op.name else flat.argmin(-1)).unsqueeze(-1)

    def run(args: Any, kwargs: Any) -> list[Tensor]:
        found = args[0].permute(*rest, *axes).flatten(len(rest)).gather(-1, at).squeeze(-1)
        return [found.reshape(op.outputs[0].shape) if keep or dim is None else found] * len(op.outputs)

    return rearranged(op, run)


@linearization(*CUTS, "zero", "fill", "argmax", "argmin", "sign", "round", "floor", "ceil", "trunc")
def cuts(op: Linearized) -> None:
    """No derivative passes."""


Run = Callable[[Any, Any], list[Tensor]]


def rearranged(op: Linearized, run: Run) -> Any:
    """What becomes of the entries of every argument that moves; the others are 0 meanwhile."""
    found: list[list[tuple[Local, Tensor | None]]] = [[] for _ in op.outputs]
    for value in op.moving:
        local = op.local(value)
        assert local is not None
        terms: list[list[Term]] = [[] for _ in op.outputs]
        for term in local.terms:
            # From 1, since padding gives 0; in float64, which holds them and which everything can move.
            numbers = _run(op, run, value, (local.numbers(term) + 1).double())
            slopes = None if term.slope is None else _run(op, run, value, term.slope.expand(local.shape).double())
            for k, moved in enumerate(numbers):
                index = moved.detach().round().long() - 1
                if bool((index >= 0).any()):
                    slope = None if slopes is None else slopes[k].to(op.outputs[k].tensor.dtype)
                    terms[k].append(Term(index, slope))
        for k, each in enumerate(terms):
            if each:
                found[k].append((Local(local.root, tuple(op.outputs[k].shape), tuple(each)), None))
    out = tuple(combined(op, parts, output=k) if parts else None for k, parts in enumerate(found))
    return out if len(out) > 1 else out[0]


def _run(op: Linearized, run: Run, value: Value, numbers: Tensor) -> list[Tensor]:
    def given(x: Any) -> Any:
        if not isinstance(x, Value):
            return x
        if x is value or x.index == value.index:
            return _laid_out(numbers, x.tensor)
        return torch.zeros(x.shape, dtype=torch.float64) if x.tensor.is_floating_point() else x.tensor

    args, kwargs = tree_map(given, (op.call.args, op.call.kwargs))
    if op.name in FILLS:
        args, kwargs = args[: FILLS[op.name]], {key: x for key, x in kwargs.items() if key != "value"}
    if op.name in ("setitem", *WRITES):  # with a number in place of a tensor
        kwargs = {key: 0.0 if key == "value" and not isinstance(x, Tensor) else x for key, x in kwargs.items()}
        args = (*args[:-1], 0.0) if isinstance(args[-1], int | float) else args
    return run(args, kwargs)


def _laid_out(numbers: Tensor, like: Tensor) -> Tensor:
    """In the memory layout of a tensor, so that its views are possible ones."""
    if 0 in like.stride() or not like.numel():
        return numbers.contiguous()
    return torch.empty_strided(like.shape, like.stride(), dtype=numbers.dtype).copy_(numbers)
