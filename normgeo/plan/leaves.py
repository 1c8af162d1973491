"""Leaves from uses: what each weight is for, in one line per weight or block of one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn import Parameter

from normgeo.geometry import Factor, GeometryError, Graph, Leaf, Node, Use
from normgeo.geometry.ways import Ways
from normgeo.norms import Norm
from normgeo.plan.names import named_parameters
from normgeo.plan.patterns import overrides

__all__ = ["Named", "by_name", "leaf_of", "some_parameters", "ways", "with_masses", "with_radii"]

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


def with_masses(leaves: Sequence[Leaf], masses: Mapping[str, float] | None) -> list[Leaf]:
    given = overrides("masses", masses, [leaf.name for leaf in leaves])
    for name, m in given.items():
        if not (math.isfinite(m) and m >= 0):
            raise ValueError(f"masses: the mass of {name} must be a finite number ≥ 0, got {m}")
    return [dataclasses.replace(leaf, mass=given.get(leaf.name, leaf.mass)) for leaf in leaves]


def with_radii(leaves: Sequence[Leaf], radii: Mapping[str, float] | None) -> list[Leaf]:
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


def ways(graph: Graph, output: Node, named: Named) -> dict[str, tuple[str, ...]]:
    found = Ways(graph, output)
    return {leaf: found.of_uses(uses) for leaf, (_, _, uses) in named.items()}
