"""Plans whose radii are bounds, traced along a recorded forward."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from normgeo.geometry import Factor, GeometryError, Leaf, unwrapped
from normgeo.geometry.bounds import bounds
from normgeo.geometry.measure import CAP
from normgeo.geometry.outputs import Wanted
from normgeo.geometry.reading import Reader
from normgeo.geometry.record import record
from normgeo.plan.names import some
from normgeo.plan.plan import Plan

__all__ = ["traced"]


def traced(
    plan: Plan,
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    output: Wanted,
    strict: bool = False,
) -> Plan:
    """The plan with x·μ of every leaf from above, at these inputs and the present weights, and the radii that follow.
    Radii that were given stay. What an expert would do that the inputs were not routed to remains assumed."""
    recording = record(unwrapped(model), args, kwargs, output)
    reader = Reader(recording)
    reader.read()
    declared = {call.index: reader.graph.nodes[i].slots for i, call in reader.made.items()}
    found = plan.find(model)
    bound = bounds(recording, plan.leaves, found, plan.axis, declared)
    total, sizes = plan.mass, plan.sizes(model)
    leaves = tuple(
        _traced(leaf, bound.products[leaf.name], bound.sizes[leaf.name], total, sizes) for leaf in plan.leaves
    )
    if strict and (unknown := [leaf.name for leaf in leaves if leaf.known == "assumed"]):
        raise GeometryError(
            f"{some(unknown)}: the way to the output leads through operations without a rule ({some(bound.assumed)}); "
            f"declare them with @normgeo.geometry.linearization or drop strict=True"
        )
    again = plan.rebuild and functools.partial(
        _again, plan.rebuild, args=args, kwargs=kwargs, output=output, strict=strict
    )
    return dataclasses.replace(plan, leaves=leaves, assumed={**plan.assumed, **bound.assumed}, rebuild=again)


def _again(rebuild: Callable[[nn.Module], Plan], model: nn.Module, **options: Any) -> Plan:
    return traced(rebuild(model), model, **options)


def _traced(leaf: Leaf, product: Factor, x: float, total: float, sizes: Mapping[str, float]) -> Leaf:
    if leaf.source == "radius given":
        return leaf
    share = leaf.mass / total if total else 0.0
    reached = product.value > 0
    if not reached and leaf.known == "assumed":
        return leaf
    x = x or 1.0
    # No more than the cap, for a leaf that hardly matters here; that only keeps the promise better.
    least = share / CAP
    mu = max(product.value, least) / x or 1.0
    source = "traced" if product.value >= least else "traced (cap)"
    return dataclasses.replace(
        leaf,
        input_norm=x,
        sensitivity=mu,
        radius=share / (mu * x),
        known=product.known,
        source=source,
        at=sizes[leaf.name],
    )
