"""The plan of a model that was recorded: coverage, and what a person says about roles and blocks."""

from __future__ import annotations

import dataclasses
import functools
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import Parameter

from normgeo.geometry import GeometryError, Graph, Leaf, Node, Use, assumed, bound, typical, unwrapped
from normgeo.geometry.outputs import Wanted
from normgeo.geometry.reading import Reader
from normgeo.geometry.record import record
from normgeo.geometry.roles import ROLES, place, shaped
from normgeo.geometry.shares import Share, reaching, shares
from normgeo.geometry.splits import blocks
from normgeo.norms import Norm
from normgeo.plan.leaves import by_name, leaf_of, some_parameters, ways
from normgeo.plan.lost import lost_message
from normgeo.plan.overrides import Overrides
from normgeo.plan.patterns import overrides
from normgeo.plan.plan import Plan

__all__ = ["Example", "recorded"]


@dataclass(frozen=True)
class Example:
    """What a model is called with, and which of the tensors that it gives counts."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] | None = None
    output: Wanted = None


def recorded(model: nn.Module, example: Example, given: Overrides) -> Plan:
    inner = unwrapped(model)
    parameters = some_parameters(inner)
    found = _run(inner, parameters, example, given)
    if given.strict and found.assumed:
        raise GeometryError(_assumed(found))
    named = by_name(found.graph.uses, parameters)
    by_role = shares(found.graph, found.output, {leaf: each for leaf, (_, _, each) in named.items()})
    norms = given.norms_of(named)
    leaves = [_shared(leaf, *named[leaf], by_role[leaf], norms.get(leaf)) for leaf in named]
    given.check(leaves, "what they are is assumed; say it with roles={...}")
    again = functools.partial(recorded, example=example, given=given)
    identity = {name: weakref.ref(p) for name, p in parameters.items()}
    axis = found.output.layout.axis or -1
    steps = ways(found.graph, found.output, named)
    return Plan(given.applied(leaves), identity, again, found.assumed, found.unused, axis=axis, ways=steps)


def _shared(leaf: str, name: str, parameter: Parameter, uses: Sequence[Use], share: Share, given: Norm | None) -> Leaf:
    out = leaf_of(leaf, name, parameter, uses, [bound(1.0)] * len(uses), given)
    source = f"by role: {share.group}" if given is None else "norm given"
    return dataclasses.replace(
        out, mass=share.mass, input_norm=1.0, sensitivity=share.reach.value, known=share.reach.known, source=source
    )


@dataclass(frozen=True)
class Found:
    """What a recording found: the graph with its uses, the node of the output, and what has no leaf."""

    graph: Graph
    output: Node
    unused: tuple[str, ...]
    """frozen parameters that the output does not depend on"""
    assumed: dict[str, int]


def _run(model: nn.Module, parameters: Mapping[str, Parameter], example: Example, given: Overrides) -> Found:
    """Record one forward, find every weight's role, and check that none is missing."""
    roles = overrides("roles", given.roles, list(parameters))
    if wrong := [role for role in roles.values() if role not in ROLES]:
        raise ValueError(f"roles: there is no role {wrong[0]!r}; there are {', '.join(ROLES)}")
    splits = overrides("splits", given.splits, list(parameters))
    reader = Reader(record(model, example.args, example.kwargs, example.output))
    end = reader.read()
    cut = {name: blocks(pattern, name, parameters[name].shape) for name, pattern in splits.items()}
    place(reader, {id(p): name for name, p in parameters.items()}, roles, cut)
    known = reaching(reader.graph, end)
    graph = reader.graph
    graph.uses = [use for use in graph.uses if use.node in known]
    used = {id(use.parameter): use for use in graph.uses}
    if wrong := [name for name, role in roles.items() if role == "unused" and id(parameters[name]) in used]:
        op = graph.nodes[used[id(parameters[wrong[0]])].node].op
        raise GeometryError(
            f"roles: {wrong[0]} is called unused, but the output depends on it, through {op}; to leave it as it is, "
            f'give it no mass: masses={{"{wrong[0]}": 0.0}}'
        )
    missing = [name for name, p in parameters.items() if id(p) not in used]
    for name in list(missing):
        if _as_told(graph, end, roles.get(name), parameters[name]) or _like_sibling(graph, name, parameters):
            missing.remove(name)
    if lost := [name for name in missing if parameters[name].requires_grad]:
        raise GeometryError(lost_message(reader, lost, parameters))
    return Found(graph, end, tuple(missing), reader.assumed)


def _assumed(found: Found) -> str:
    each = ", ".join(f"{name} ({times} times)" for name, times in found.assumed.items())
    first = next(iter(found.assumed))
    node = next((node for node in found.graph.nodes if node.op == first), None)
    place = f", first in {node.path}," if node and node.path else ""
    rule = f'operation("{first}")'
    if first[:1].isupper():  # a module that no mode can look into
        rule = f"register({first})"
    return (
        f"no rule says what {each}{place} does to sizes, so it is assumed; write @normgeo.geometry.{rule} above a rule, or "
        f"drop strict=True"
    )


def _as_told(graph: Graph, end: Node, role: str | None, parameter: Parameter) -> bool:
    """A parameter that no operation was seen to use, with a role from the user."""
    if role is None:
        return False
    norm, view = shaped(role, tuple(parameter.shape))
    node = graph.op("nothing", size=typical(1.0)) if role == "unused" else end
    graph.use(parameter, node, role=role, norm=norm, input_norm=typical(1.0), view=view)
    return True


def _like_sibling(graph: Graph, name: str, parameters: Mapping[str, Parameter]) -> bool:
    """An expert that this input was not routed to is what its siblings are: same name but for a number, same shape."""
    shape = parameters[name].shape
    for position in re.finditer(r"(?<=\.)\d+(?=\.)", name):
        start, stop = position.span()
        pattern = re.compile(re.escape(name[:start]) + r"\d+" + re.escape(name[stop:]))
        for other, p in parameters.items():
            if pattern.fullmatch(other) and p.shape == shape and (uses := [u for u in graph.uses if u.parameter is p]):
                for use in uses:
                    options = {"view": use.view, "block": use.block, "input_norm": assumed(use.input_norm.value)}
                    graph.use(parameters[name], graph.nodes[use.node], role=use.role, norm=use.norm, **options)  # type: ignore[arg-type]
                return True
    return False
