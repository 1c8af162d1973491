"""compile: record the graph, find every weight's place in it, and lay it out as a plan."""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from normgeo.geometry import Factor, GeometryError, Graph, Input, Leaf, Node, Use, bound, trace, unwrapped
from normgeo.geometry.measure import undisturbed
from normgeo.norms import Norm
from normgeo.optim import Optimizer
from normgeo.plan.names import named_parameters, some
from normgeo.plan.patterns import overrides
from normgeo.plan.plan import Plan

__all__ = ["compile", "optimizer"]


def compile(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    sensitivity: str = "declared",
    masses: Mapping[str, float] | None = None,
    norms: Mapping[str, Norm] | None = None,
    radii: Mapping[str, float] | None = None,
    strict: bool = False,
) -> Plan:
    """The plan of a model made of `normgeo.nn` modules and of modules registered with `normgeo.geometry.register`.

    example_inputs: run once to see that the model takes them; floating inputs also set the input sizes (largest RMS over
    features, at least 1), which are 1 otherwise. sensitivity: "declared" by the modules, or "measured" at the example
    inputs (`Plan.refresh`). masses, norms, radii: values by pattern of leaf or module names; a mass is that of each leaf.
    strict=True makes an assumed factor an error. Nothing is JIT-compiled and no weight is touched.

    >>> import normgeo as ng
    >>> plan = ng.compile(ng.nn.MLP(784, 256, 10), masses={"4": 2.0})
    >>> [round(leaf.radius, 4) for leaf in plan.leaves]
    [0.25, 0.25, 0.5]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compile takes a torch.nn.Module, got {model!r}")
    if sensitivity not in ("declared", "measured"):
        raise ValueError(f'sensitivity={sensitivity!r} is not known here; write sensitivity="declared" or "measured"')
    inputs = _inputs(unwrapped(model), example_inputs)
    plan = _compile(model, inputs=inputs, masses=masses, norms=norms, radii=radii, strict=strict)
    if sensitivity == "declared":
        return plan
    if example_inputs is None:
        raise ValueError('sensitivity="measured" needs inputs to measure at; write example_inputs=(x,)')
    return plan.refresh(model, example_inputs)


def _compile(
    model: nn.Module,
    *,
    inputs: list[Input],
    masses: Mapping[str, float] | None,
    norms: Mapping[str, Norm] | None,
    radii: Mapping[str, float] | None,
    strict: bool,
) -> Plan:
    inner = unwrapped(model)
    parameters = named_parameters(inner)
    if not parameters:
        raise GeometryError(f"{type(inner).__name__} has no parameters, so there is nothing to optimize")
    graph, output = _record(inner, [bound(x.size) for x in inputs])
    leaves = _with_radii(_with_masses(_leaves(graph, output, parameters, norms), masses), radii)
    if strict and (unknown := [leaf.name for leaf in leaves if leaf.known == "assumed"]):
        raise GeometryError(
            f"{some(unknown)}: the sensitivity is assumed; register the modules behind it or drop strict=True"
        )
    again = functools.partial(_compile, inputs=inputs, masses=masses, norms=norms, radii=radii, strict=strict)
    identity = {name: weakref.ref(p) for name, p in parameters.items()}
    return Plan(tuple(leaves), identity, again, tuple(inputs), output.layout.axis or -1)


def optimizer(model: nn.Module, example_inputs: Sequence[Any] | None = None, **options: Any) -> Optimizer:
    """compile and plan.optimizer in one line; options are those of `Plan.optimizer`.

    >>> import normgeo as ng
    >>> opt = optimizer(ng.nn.MLP(784, 256, 10), lr=0.2)
    """
    made: Optimizer = compile(model, example_inputs).optimizer(model, **options)
    return made


def _inputs(model: nn.Module, example_inputs: Sequence[Any] | None) -> list[Input]:
    """How large each input is, after a trial run of the model in evaluation mode that leaves no trace."""
    if example_inputs is None:
        return [Input()]
    if isinstance(example_inputs, Tensor):
        raise TypeError("example_inputs is a tuple of the model's arguments; write example_inputs=(x,)")
    try:
        with torch.no_grad(), undisturbed(model):
            model(*example_inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in example_inputs)
        raise ValueError(f"the model rejects example_inputs of shape {shapes}: {error}") from error
    # Sizes need the axis of the features, and the graph says which one that is.
    graph, _ = _record(model, [bound(1.0)] * len(example_inputs))
    axes = [node.layout.axis or -1 for node in graph.nodes[: len(example_inputs)]]
    given = zip(example_inputs, axes, strict=True)
    return [Input(max(1.0, Input(axis=axis).measure(x)), axis) for x, axis in given]


def _record(model: nn.Module, sizes: list[Factor]) -> tuple[Graph, Node]:
    graph = Graph()
    output = trace(model, graph, *(graph.input(size) for size in sizes))
    if not isinstance(output, Node):
        raise GeometryError(
            f"the model gives {len(output)} tensors; end it with a module that gives one, such as Add()"
        )
    return graph, output


def _leaves(
    graph: Graph, output: Node, parameters: Mapping[str, Parameter], norms: Mapping[str, Norm] | None
) -> list[Leaf]:
    """One leaf per parameter, or per block of one, in the order of the parameters; its uses add."""
    mu = graph.sensitivities(output)
    uses: dict[tuple[int, str], list[Use]] = {}
    for use in graph.uses:
        uses.setdefault((id(use.parameter), use.block), []).append(use)
    if foreign := {key for key, _ in uses} - {id(p) for p in parameters.values()}:
        raise GeometryError(
            f"{len(foreign)} parameters are used but do not belong to the model; assign them to a module"
        )
    found: dict[str, tuple[str, Parameter, list[Use]]] = {}
    for name, parameter in parameters.items():
        mine = {block: each for (key, block), each in uses.items() if key == id(parameter)}
        if not mine:
            raise GeometryError(
                f"parameter {name} has no geometry: no registered module uses it. If it belongs to a module of yours, "
                f"call graph.use(module.{name.rsplit('.', 1)[-1]}, node, role=..., norm=...) in its registered function"
            )
        found |= {f"{name}[{block}]" if block else name: (name, parameter, each) for block, each in mine.items()}
    given = overrides("norms", norms, list(found))
    return [
        _leaf(leaf, name, parameter, each, [mu[use.node] for use in each], given.get(leaf))
        for leaf, (name, parameter, each) in found.items()
    ]


def _leaf(
    leaf: str, name: str, parameter: Parameter, uses: Sequence[Use], mus: Sequence[Factor], given: Norm | None
) -> Leaf:
    first = uses[0]
    if any(use.view != first.view for use in uses) or (given is None and any(use.norm != first.norm for use in uses)):
        roles = " and ".join(use.role for use in uses)
        raise GeometryError(f"{leaf} is used as {roles} in different norms; give it one: norms={{{leaf!r}: ...}}")
    x = functools.reduce(Factor.at_least, (use.input_norm for use in uses))
    reach = functools.reduce(Factor.__add__, (use.input_norm * mu for use, mu in zip(uses, mus, strict=True)))
    if reach.value == 0:
        raise GeometryError(
            f"{leaf} does not reach the output (its sensitivity is 0), so no radius bounds it; "
            f"remove it, freeze it outside the model, or replace the factor 0 behind it"
        )
    norm, shape = given or first.norm, tuple(first.seen().shape)
    as_declared = all(use.norm == norm for use in uses)
    if len(shape) != norm.ndim:
        raise GeometryError(f"{leaf} has shape {shape}, but {norm} is for {norm.ndim} axes; give it a view or a norm")
    return Leaf(
        name=leaf,
        parameter=name,
        shape=shape,
        role=first.role,
        norm=norm,
        mass=max(use.mass for use in uses),
        input_norm=x.value,
        sensitivity=reach.value / x.value,
        # What a module declares holds for the norm that it declares it in.
        known=reach.known if as_declared or reach.known == "assumed" else "typical",
        source="declared" if as_declared else "norm given",
        view=first.view,
        trainable=parameter.requires_grad,
    )


def _with_masses(leaves: Sequence[Leaf], masses: Mapping[str, float] | None) -> list[Leaf]:
    given = overrides("masses", masses, [leaf.name for leaf in leaves])
    for name, m in given.items():
        if not (math.isfinite(m) and m >= 0):
            raise ValueError(f"masses: the mass of {name} must be a finite number ≥ 0, got {m}")
    return [dataclasses.replace(leaf, mass=given.get(leaf.name, leaf.mass)) for leaf in leaves]


def _with_radii(leaves: Sequence[Leaf], radii: Mapping[str, float] | None) -> list[Leaf]:
    """r = (m/M)/(x·μ); a radius that is given is kept by the μ that would have led to it."""
    total = sum(leaf.mass for leaf in leaves if leaf.trainable)
    given = overrides("radii", radii, [leaf.name for leaf in leaves])
    out = []
    for leaf in leaves:
        share = leaf.mass / total if total else 0.0
        if leaf.name in given:
            radius = given[leaf.name]
            if not (math.isfinite(radius) and radius > 0 and share > 0):
                raise ValueError(
                    f"radii: {leaf.name} needs a finite radius > 0 and a mass > 0; for no movement use masses"
                )
            mu = share / (radius * leaf.input_norm)
            leaf = dataclasses.replace(leaf, sensitivity=mu, source="radius given", known="typical")
        out.append(dataclasses.replace(leaf, radius=share * leaf.reach))
    return out
