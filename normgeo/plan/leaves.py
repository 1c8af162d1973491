"""Leaves from uses: what each weight is for, in one line per weight or block of one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn import Parameter

from normgeo.geometry import Factor, GeometryError, Graph, Leaf, Node, Use
from normgeo.geometry.ways import Ways
from normgeo.norms import Norm
from normgeo.plan.names import named_parameters

__all__ = ["Named", "by_name", "leaf_of", "some_parameters", "ways"]

Named = dict[str, tuple[str, Parameter, list[Use]]]
"""leaf name -> parameter name, parameter, uses"""


def some_parameters(model: nn.Module) -> dict[str, Parameter]:
    parameters = named_parameters(model)
    if not parameters:
        raise GeometryError(f"{type(model).__name__} has no parameters, so there is nothing to optimize")
    return parameters


def by_name(all_uses: Sequence[Use], parameters: Mapping[str, Parameter]) -> Named:
    """The uses of each parameter, or of each block of one."""
    uses: dict[tuple[int, str], list[Use]] = {}
    for use in all_uses:
        uses.setdefault((id(use.parameter), use.block), []).append(use)
    if foreign := {key for key, _ in uses} - {id(p) for p in parameters.values()}:
        raise GeometryError(
            f"{len(foreign)} parameters are used but do not belong to the model; assign them to a module"
        )
    out: Named = {}
    for name, parameter in parameters.items():
        mine = {block: each for (key, block), each in uses.items() if key == id(parameter)}
        out |= {f"{name}[{block}]" if block else name: (name, parameter, each) for block, each in mine.items()}
    return out


def leaf_of(
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


def ways(graph: Graph, output: Node, named: Named) -> dict[str, tuple[str, ...]]:
    found = Ways(graph, output)
    return {leaf: found.of_uses(uses) for leaf, (_, _, uses) in named.items()}
