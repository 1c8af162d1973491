"""The plan of a model whose modules declare their geometry."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normgeo.geometry import Factor, GeometryError, Graph, Input, Leaf, Node, bound, trace, unwrapped
from normgeo.geometry.measure import undisturbed
from normgeo.norms import Norm
from normgeo.plan.leaves import Named, by_name, leaf_of, some_parameters, ways
from normgeo.plan.overrides import Overrides
from normgeo.plan.plan import Plan

__all__ = ["declared", "declares", "inputs_of"]


def declares(model: nn.Module, example_inputs: Sequence[Any] | None) -> bool:
    """Whether all modules inside declare their geometry; if they do not, there must be inputs."""
    try:
        drawn(model, [bound(1.0)] * (1 if example_inputs is None else len(example_inputs)))
    except GeometryError as error:
        if example_inputs is None:
            raise GeometryError(
                f"{error}; or give an input to record it with: normgeo.compile(model, example_inputs=(x,))"
            ) from None
        return False
    return True


def declared(model: nn.Module, inputs: Sequence[Input], given: Overrides) -> Plan:
    inner = unwrapped(model)
    parameters = some_parameters(inner)
    sizes = [bound(x.size) for x in inputs]
    graph, output = drawn(inner, sizes)
    named = by_name(graph.uses, parameters)
    leaves = given.applied(leaves_of(graph, output, parameters, named, given.norms_of(named)))
    given.check(leaves, "the sensitivity is assumed; register the modules behind it")
    again = functools.partial(declared, inputs=inputs, given=given)
    identity = {name: weakref.ref(p) for name, p in parameters.items()}
    steps = ways(graph, output, named)
    again_drawn, axis = functools.partial(drawn, sizes=sizes), output.layout.axis or -1
    return Plan(leaves, identity, again, inputs=tuple(inputs), axis=axis, ways=steps, graph=again_drawn)


def inputs_of(model: nn.Module, example_inputs: Sequence[Any] | None) -> list[Input]:
    """How large each input is, after a trial run of the model in evaluation mode that leaves no trace."""
    if example_inputs is None:
        return [Input()]
    try:
        with torch.no_grad(), undisturbed(model):
            model(*example_inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in example_inputs)
        raise ValueError(f"the model rejects example_inputs of shape {shapes}: {error}") from error
    # Sizes need the axis of the features, and the graph says which one that is.
    graph, _ = drawn(model, [bound(1.0)] * len(example_inputs))
    axes = [node.layout.axis or -1 for node in graph.nodes[: len(example_inputs)]]
    given = zip(example_inputs, axes, strict=True)
    return [Input(max(1.0, Input(axis=axis).measure(x)), axis) for x, axis in given]


def drawn(model: nn.Module, sizes: list[Factor]) -> tuple[Graph, Node]:
    graph = Graph()
    output = trace(model, graph, *(graph.input(size) for size in sizes))
    if not isinstance(output, Node):
        raise GeometryError(
            f"the model gives {len(output)} tensors; end it with a module that gives one, such as Add()"
        )
    return graph, output


def leaves_of(
    graph: Graph, output: Node, parameters: Iterable[str], named: Named, norms: Mapping[str, Norm]
) -> list[Leaf]:
    """One leaf per parameter, or per block of one, in the order of the parameters; its uses add."""
    mu = graph.sensitivities(output)
    covered = {name for name, _, _ in named.values()}
    for name in parameters:
        if name not in covered:
            raise GeometryError(
                f"parameter {name} has no geometry: no registered module uses it. If it belongs to a module of yours, "
                f"call graph.use(module.{name.rsplit('.', 1)[-1]}, node, role=..., norm=...) in its registered function"
            )
    return [
        leaf_of(leaf, name, parameter, each, [mu[use.node] for use in each], norms.get(leaf))
        for leaf, (name, parameter, each) in named.items()
    ]
