"""A plan on paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normgeo.geometry.measure import CAP, FLOOR
from normgeo.geometry.shares import REASONS
from normgeo.plan.names import some
from normgeo.plan.table import table

if TYPE_CHECKING:
    from normgeo.plan.plan import Plan

__all__ = ["page", "why"]


def page(plan: Plan, markdown: bool = False) -> str:
    """The table, and what there is to know beside it."""
    typical = sum(leaf.known != "bound" for leaf in plan.leaves)
    if not any(leaf.trainable for leaf in plan.leaves):
        return f"{table(plan.leaves, markdown)}\n{len(plan.leaves)} leaves, all frozen"
    where = (
        "at the traced weights and inputs"
        if any(leaf.at is not None for leaf in plan.leaves)
        else "inside the unit balls"
    )
    promise = (
        f"all factors are bounds: η bounds the change of the output to first order, {where}"
        if not typical
        else f"{typical} of {len(plan.leaves)} leaves rest on typical factors: η is typical, not a bound"
    )
    lines = [f"{len(plan.leaves)} leaves, mass {plan.mass:.4g}; {promise}"]
    if plan.assumed:
        each = ", ".join(f"{name} ({times})" for name, times in plan.assumed.items())
        lines.append(f"assumed, because no rule says what they do: {each}")
    if plan.unused:
        lines.append(f"frozen and not used: {some(plan.unused)}")
    for direction in dict.fromkeys(map(str, plan.directions.values())):
        names = [name for name, one in plan.directions.items() if str(one) == direction]
        lines.append(f"{some(names)}: {direction}")
    if measured := sum(leaf.source.startswith("measured") for leaf in plan.leaves):
        limits = f"radii from floor {FLOOR:g} to cap {CAP:g}"
        lines.append(f"{measured} leaves measured: x·μ is a lower estimate, the largest found; {limits}")
    return "\n".join([table(plan.leaves, markdown), *[""] * markdown, *lines])


def why(plan: Plan, name: str) -> str:
    """Where a leaf's numbers come from, and the operations between it and the output."""
    leaves = {leaf.name: leaf for leaf in plan.leaves}
    if name not in leaves:
        raise ValueError(f"the plan has no leaf {name!r}; leaves are {some(leaves, 8)}")
    leaf = leaves[name]
    group = leaf.source.removeprefix("by role: ")
    seen = f", seen as {leaf.view}" if leaf.view else ""
    lines = [
        f"{name}: {leaf.role}, {'×'.join(map(str, leaf.shape))}{seen}, in {leaf.norm}",
        f"radius {leaf.radius:.4g} = {leaf.mass:.4g}/{plan.mass:.4g} / ({leaf.input_norm:.4g}·{leaf.sensitivity:.4g}), "
        f"{leaf.source}, {leaf.known}" + (f": {REASONS[group]}" if group in REASONS else ""),
        " → ".join([*plan.ways.get(name, ()), "output"]) if leaf.role != "unused" else "no way leads to the output",
    ]
    return "\n".join(lines)
