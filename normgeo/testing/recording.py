"""A second opinion on what the weights of a recorded model are for: `torch.export` sees the same model another way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from normgeo.plan import Plan
from normgeo.plan import compile as compile_plan
from normgeo.plan.names import canonical

__all__ = ["check_recording"]

PASSES = {
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "slice", "select",
    "split", "split_with_sizes", "chunk", "unbind", "getitem", "clone", "contiguous", "_to_copy", "to", "alias", "detach",
    "flatten", "unflatten", "movedim", "numpy_T", "exp", "neg", "repeat", "narrow",
}  # fmt: skip
"""what is done to a weight before it is used"""
SLOTS = {
    **dict.fromkeys(("linear", "bilinear"), ("", "contraction", "sum", "sum")),
    **dict.fromkeys(("addmm", "baddbmm"), ("sum", "contraction", "contraction")),
    **dict.fromkeys(("mm", "bmm", "matmul", "_grouped_mm"), ("contraction", "contraction")),
    **dict.fromkeys(("einsum",), ("", "contraction")),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose2d"), ("", "convolution", "sum")),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "group_norm", "rms_norm"), ("", "", "product", "sum")),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), ("", "product", "sum")),
    **dict.fromkeys(("embedding", "index", "index_select", "gather"), ("lookup",)),
    **dict.fromkeys(("add", "add_", "sub"), ("sum", "sum")),
    **dict.fromkeys(("mul", "mul_", "div"), ("product", "product")),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), ("", "", "recurrence", "recurrence")),
    **dict.fromkeys(("cat", "stack"), ("join",)),
}
"""operation -> what a weight is used for in each of its arguments"""
MATRICES = {"contraction", "recurrence"}
KINDS = {
    **dict.fromkeys(("linear", "head", "router", "gate", "recurrent", "expert", "lora A", "lora B"), MATRICES),
    "convolution": {"convolution"},
    "embedding": {"lookup"},
    "embedding, head": {"lookup", *MATRICES},
    "positions": {"lookup", "sum", "join"},
    "token": {"sum", "join"},
    "bias": {"sum", "recurrence"},
    "gain": {"product"},
    "scalar": {"product", "sum"},
    "bias table": {"lookup", "sum", "join"},
    "state space": {"product"},
}
"""role -> what it may be used for"""


def check_recording(
    model: nn.Module, inputs: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, plan: Plan | None = None
) -> dict[str, frozenset[str]]:
    """Parameter -> what `torch.export` sees it used for: contraction, convolution, lookup, sum, product, join, recurrence.
    A leaf whose role is for something else is an error. What export shows inside no known operation is left out.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    >>> {name: sorted(kinds) for name, kinds in check_recording(model, (torch.ones(2, 4),)).items()}
    {'0.weight': ['contraction'], '0.bias': ['sum'], '1.weight': ['product'], '1.bias': ['sum']}
    """
    plan = plan or compile_plan(model, tuple(inputs), kwargs)
    training = model.training
    try:
        with torch.no_grad():
            exported = torch.export.export(model.eval(), tuple(inputs), dict(kwargs or {}), strict=False)
    finally:
        model.train(training)
    names = {id(p): canonical(name) for name, p in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, set[str]] = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in exported.graph_signature.inputs_to_parameters:
            parameter = every[exported.graph_signature.inputs_to_parameters[node.name]]
            found.setdefault(names[id(parameter)], set()).update(_kinds(node))
    for leaf in plan.leaves:
        seen = found.get(leaf.parameter, set())
        if wrong := seen - KINDS.get(leaf.role, seen):
            raise AssertionError(
                f"{leaf.name} is recorded as {leaf.role}, but torch.export sees it in a {' and a '.join(sorted(wrong))}"
            )
    return {name: frozenset(found[name]) for name in names.values() if found.get(name)}


def _kinds(node: fx.Node) -> Iterator[str]:
    """What the users of a weight, or of a view or function of it, do with it."""
    for user in node.users:
        name = getattr(user.target, "_schema", user.target)
        name = str(getattr(name, "name", getattr(user.target, "__name__", ""))).rsplit("::", 1)[-1]
        others = [x for x in user.all_input_nodes if x is not node]
        if name in PASSES or (name in ("add", "sub", "mul", "div") and not others):
            yield from _kinds(user)
            continue
        for kind, argument in zip(SLOTS.get(name, ()), user.args, strict=False):
            inside = argument if isinstance(argument, list | tuple) else (argument,)
            if kind and any(x is node for x in inside):
                yield kind
