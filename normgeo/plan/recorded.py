"""The leaves of a model that was recorded: coverage, and the numbers by role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import Parameter

from normgeo.geometry import GeometryError, Graph, Node
from normgeo.geometry.reading import Reader
from normgeo.geometry.record import record
from normgeo.geometry.roles import place
from normgeo.geometry.shares import reaching
from normgeo.plan.names import some

__all__ = ["Recorded", "run"]


@dataclass(frozen=True)
class Recorded:
    """What a recording found: the graph with its uses, the node of the output, and what has no leaf."""

    graph: Graph
    output: Node
    unused: tuple[str, ...]
    """frozen parameters that the output does not depend on"""
    assumed: dict[str, int]


def run(
    model: nn.Module,
    parameters: Mapping[str, Parameter],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    output: str | int | Callable[[Any], Any] | None,
) -> Recorded:
    """Record one forward, find every weight's role, and check that none is missing."""
    reader = Reader(record(model, args, kwargs, output))
    end = reader.read()
    place(reader, {id(p): name for name, p in parameters.items()})
    known = reaching(reader.graph, end)
    reader.graph.uses = [use for use in reader.graph.uses if use.node in known]
    used = {id(use.parameter) for use in reader.graph.uses}
    missing = [name for name, p in parameters.items() if id(p) not in used]
    if lost := [name for name in missing if parameters[name].requires_grad]:
        raise GeometryError(_lost(reader, lost, parameters))
    return Recorded(reader.graph, end, tuple(missing), reader.assumed)


def _lost(reader: Reader, lost: Sequence[str], parameters: Mapping[str, Parameter]) -> str:
    name = lost[0]
    seen = {id(found.weight.parameter) for found in reader.found}
    what = (
        "is used, but not on the way to the output" if id(parameters[name]) in seen else "is not used in this forward"
    )
    others = f" (so are {some(lost[1:])})" if len(lost) > 1 else ""
    return (
        f"parameter {name} {what}{others}: choose an output that depends on it with output=..., give example inputs that "
        f'reach it, or freeze it: model.get_parameter("{name}").requires_grad_(False)'
    )
