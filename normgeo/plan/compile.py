"""compile: find every weight's place in the graph, declared or recorded, and lay it out as a plan."""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from normgeo.budgets import Budget, DataMetric
from normgeo.geometry import Factor, GeometryError, Graph, Leaf, Node, Use, bound, trace, unwrapped
from normgeo.geometry.shares import Share, shares
from normgeo.geometry.splits import Split
from normgeo.geometry.ways import Ways
from normgeo.norms import Norm
from normgeo.optim import Direction, Operate, Optimizer
from normgeo.plan.names import named_parameters, some
from normgeo.plan.patterns import overrides
from normgeo.plan.plan import Plan
from normgeo.plan.recorded import run

__all__ = ["compile", "optimizer"]


def compile(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    output: str | int | Callable[[Any], Any] | None = None,
    sensitivity: str = "declared",
    masses: Mapping[str, float] | None = None,
    norms: Mapping[str, Norm] | None = None,
    radii: Mapping[str, float] | None = None,
    roles: Mapping[str, str] | None = None,
    splits: Mapping[str, Split] | None = None,
    budgets: Mapping[str, Budget | DataMetric | Direction] | None = None,
    strict: bool = False,
) -> Plan:
    """The plan of any `torch.nn.Module`.

    A model whose modules all declare their geometry (those of `normgeo.nn`, and what `normgeo.geometry.register` was told)
    needs no inputs: example_inputs then set the input sizes (largest RMS over features, at least 1), which are 1 otherwise.
    Any other model is recorded: it runs once on example_inputs and example_kwargs, every weight gets its role from the
    operation that uses it, and its radius from its role (`normgeo.geometry.shares` says how).

    output: which of the tensors that the model gives counts, by name, position or function; by default the tensor itself,
    .logits, .last_hidden_state or the only floating tensor. masses, norms, radii: values by pattern of leaf or module
    names; a mass is that of each leaf. budgets: by pattern of parameter names, operators on gradients in place of the dual
    of the leaf's norm, `optim.Operate(budget)`; or an Operate. roles: what parameters are used as, by pattern,
    in place of what is found. splits: blocks of fused parameters, as `{"*.qkv": "(three h d) i -> three h d i"}`.
    strict=True makes an assumed factor an error. Nothing is JIT-compiled, and the model is left as it was.

    >>> import normgeo as ng
    >>> plan = ng.compile(ng.nn.MLP(784, 256, 10), masses={"4": 2.0})
    >>> [round(leaf.radius, 4) for leaf in plan.leaves]
    [0.25, 0.25, 0.5]
    >>> [leaf.role for leaf in ng.compile(nn.Linear(8, 4), (torch.ones(1, 8),)).leaves]
    ['head', 'bias']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compile takes a torch.nn.Module, got {model!r}")
    if sensitivity != "declared":
        raise ValueError(f'sensitivity={sensitivity!r} is not known here; write sensitivity="declared"')
    if isinstance(example_inputs, Tensor):
        raise TypeError("example_inputs is a tuple of the model's arguments; write example_inputs=(x,)")
    inner = unwrapped(model)
    options: dict[str, Any] = {"masses": masses, "norms": norms, "radii": radii, "strict": strict}
    recording = {"kwargs": example_kwargs, "output": output, "roles": roles, "splits": splits}
    if all(option is None for option in recording.values()) and _declares(inner, example_inputs):
        plan = _compile(model, sizes=_sizes(inner, example_inputs), **options)
    else:
        plan = _recorded(model, {"args": example_inputs or (), **recording}, **options)
    return _with_budgets(plan, budgets) if budgets else plan


def _with_budgets(plan: Plan, budgets: Mapping[str, Budget | DataMetric | Direction]) -> Plan:
    """The plan with directions of their own for the parameters that a pattern names, also when it is extended."""
    given = {pattern: _direction(pattern, budget) for pattern, budget in budgets.items()}
    directions = overrides("budgets", given, list(dict.fromkeys(leaf.parameter for leaf in plan.leaves)))
    rebuild = plan.rebuild
    again = None if rebuild is None else functools.partial(_again, rebuild, budgets)
    return dataclasses.replace(plan, directions=directions, rebuild=again)


def _again(
    rebuild: Callable[[nn.Module], Plan], budgets: Mapping[str, Budget | DataMetric | Direction], model: nn.Module
) -> Plan:
    return _with_budgets(rebuild(model), budgets)


def _direction(pattern: str, budget: Budget | DataMetric | Direction) -> Direction:
    if isinstance(budget, Direction):
        return budget
    if not isinstance(budget, Budget | DataMetric):
        raise TypeError(f"budgets: {pattern!r} takes a normgeo.Budget, got {budget!r}; norms go to norms={{...}}")
    return Operate(budget)


def _declares(model: nn.Module, example_inputs: Sequence[Any] | None) -> bool:
    """Whether all modules inside declare their geometry; if they do not, there must be inputs."""
    try:
        _record(model, [bound(1.0)] * (1 if example_inputs is None else len(example_inputs)))
    except GeometryError as error:
        if example_inputs is None:
            raise GeometryError(
                f"{error}; or give an input to record it with: normgeo.compile(model, example_inputs=(x,))"
            ) from None
        return False
    return True


def _recorded(
    model: nn.Module,
    recording: Mapping[str, Any],
    *,
    masses: Mapping[str, float] | None,
    norms: Mapping[str, Norm] | None,
    radii: Mapping[str, float] | None,
    strict: bool,
) -> Plan:
    inner = unwrapped(model)
    parameters = _some_parameters(inner)
    found = run(inner, parameters, **recording)
    if strict and found.assumed:
        unknown = ", ".join(f"{name} ({times} times)" for name, times in found.assumed.items())
        raise GeometryError(
            f"no rule says what {unknown} does to sizes, so it is assumed; write "
            f'@normgeo.geometry.operation("{next(iter(found.assumed))}") above a rule, or drop strict=True'
        )
    named = _named(found.graph.uses, parameters)
    by_role = shares(found.graph, found.output, {leaf: each for leaf, (_, _, each) in named.items()})
    given = overrides("norms", norms, list(named))
    leaves = [_shared(leaf, *named[leaf], by_role[leaf], given.get(leaf)) for leaf in named]
    leaves = _with_radii(_with_masses(leaves, masses), radii)
    again = functools.partial(_recorded, recording=recording, masses=masses, norms=norms, radii=radii, strict=strict)
    identity = {name: weakref.ref(p) for name, p in parameters.items()}
    ways = _ways(found.graph, found.output, named)
    return Plan(tuple(leaves), identity, again, found.assumed, found.unused, ways=ways)


def _ways(
    graph: Graph, output: Node, named: Mapping[str, tuple[str, Parameter, list[Use]]]
) -> dict[str, tuple[str, ...]]:
    ways = Ways(graph, output)
    return {leaf: ways.of_uses(uses) for leaf, (_, _, uses) in named.items()}


def _shared(leaf: str, name: str, parameter: Parameter, uses: Sequence[Use], share: Share, given: Norm | None) -> Leaf:
    out = _leaf(leaf, name, parameter, uses, [bound(1.0)] * len(uses), given)
    source = f"by role: {share.group}" if given is None else "norm given"
    return dataclasses.replace(
        out, mass=share.mass, input_norm=1.0, sensitivity=share.reach.value, known=share.reach.known, source=source
    )


def _some_parameters(model: nn.Module) -> dict[str, Parameter]:
    parameters = named_parameters(model)
    if not parameters:
        raise GeometryError(f"{type(model).__name__} has no parameters, so there is nothing to optimize")
    return parameters


def _compile(
    model: nn.Module,
    *,
    sizes: list[Factor],
    masses: Mapping[str, float] | None,
    norms: Mapping[str, Norm] | None,
    radii: Mapping[str, float] | None,
    strict: bool,
) -> Plan:
    inner = unwrapped(model)
    parameters = _some_parameters(inner)
    graph, output = _record(inner, sizes)
    leaves = _with_radii(_with_masses(_leaves(graph, output, parameters, norms), masses), radii)
    if strict and (unknown := [leaf.name for leaf in leaves if leaf.known == "assumed"]):
        raise GeometryError(
            f"{some(unknown)}: the sensitivity is assumed; register the modules behind it or drop strict=True"
        )
    again = functools.partial(_compile, sizes=sizes, masses=masses, norms=norms, radii=radii, strict=strict)
    identity = {name: weakref.ref(p) for name, p in parameters.items()}
    ways = _ways(graph, output, _named(graph.uses, parameters))
    return Plan(tuple(leaves), identity, again, ways=ways, graph=functools.partial(_record, sizes=sizes))


def optimizer(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Optimizer:
    """compile and plan.optimizer in one line; options are those of `Plan.optimizer`.

    >>> import normgeo as ng
    >>> opt = optimizer(ng.nn.MLP(784, 256, 10), lr=0.2)
    """
    made: Optimizer = compile(model, example_inputs, example_kwargs).optimizer(model, **options)
    return made


def output_axis(model: nn.Module, inputs: Sequence[Any]) -> int:
    """The axis of the features of what the model gives, counted from the end: the last if nobody has said otherwise."""
    return _record(unwrapped(model), [bound(1.0)] * len(inputs))[1].layout.axis or -1


def _sizes(model: nn.Module, example_inputs: Sequence[Any] | None) -> list[Factor]:
    """How large each input is, after a trial run of the model in evaluation mode that leaves no trace."""
    if example_inputs is None:
        return [bound(1.0)]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.eval()(*example_inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in example_inputs)
        raise ValueError(f"the model rejects example_inputs of shape {shapes}: {error}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    # Sizes need the axis of the features, and the graph says which one that is.
    graph, _ = _record(model, [bound(1.0)] * len(example_inputs))
    return [_size(x, node.layout.axis or -1) for x, node in zip(example_inputs, graph.nodes, strict=False)]


def _size(x: Any, axis: int) -> Factor:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return bound(1.0)
    largest = float(x.detach().float().square().mean(axis).sqrt().max())
    if not math.isfinite(largest):
        raise ValueError("example_inputs contain NaN or Inf; give inputs as they come in training")
    return bound(max(1.0, largest))


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
    found = _named(graph.uses, parameters)
    covered = {name for name, _, _ in found.values()}
    for name in parameters:
        if name not in covered:
            raise GeometryError(
                f"parameter {name} has no geometry: no registered module uses it. If it belongs to a module of yours, "
                f"call graph.use(module.{name.rsplit('.', 1)[-1]}, node, role=..., norm=...) in its registered function"
            )
    given = overrides("norms", norms, list(found))
    return [
        _leaf(leaf, name, parameter, each, [mu[use.node] for use in each], given.get(leaf))
        for leaf, (name, parameter, each) in found.items()
    ]


def _named(all_uses: Sequence[Use], parameters: Mapping[str, Parameter]) -> dict[str, tuple[str, Parameter, list[Use]]]:
    """Leaf name -> parameter name, parameter, uses."""
    uses: dict[tuple[int, str], list[Use]] = {}
    for use in all_uses:
        uses.setdefault((id(use.parameter), use.block), []).append(use)
    if foreign := {key for key, _ in uses} - {id(p) for p in parameters.values()}:
        raise GeometryError(
            f"{len(foreign)} parameters are used but do not belong to the model; assign them to a module"
        )
    out: dict[str, tuple[str, Parameter, list[Use]]] = {}
    for name, parameter in parameters.items():
        mine = {block: each for (key, block), each in uses.items() if key == id(parameter)}
        out |= {f"{name}[{block}]" if block else name: (name, parameter, each) for block, each in mine.items()}
    return out


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
