"""What a plan promises at given weights: whether it applies, and how far off it can be for a step that is not small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from normgeo.geometry import Factor, Leaf, Sharpness, sharpness, unwrapped
from normgeo.geometry.factor import Known
from normgeo.plan.verdict import Verdict

if TYPE_CHECKING:
    from normgeo.plan.plan import Plan

__all__ = ["judge", "sharpness_of"]


def judge(plan: Plan, model: nn.Module, batch: Sequence[Any]) -> Verdict:
    found = plan.find(model)
    moving = [leaf for leaf in plan.leaves if found[leaf.parameter].requires_grad]
    reasons = [f"{leaf.name}: x·μ is {_how(leaf)}" for leaf in moving if leaf.known != "bound"]
    sizes, traced = plan.sizes(model), {leaf.name: leaf.at for leaf in plan.leaves if leaf.at is not None}
    reasons += [
        f"{n}: its norm is {sizes[n]:.4g}, and it was traced at {at:.4g}; compile again"
        for n, at in traced.items()
        if not abs(sizes[n] - at) <= 1e-5 * at
    ]
    rest = {n: s for n, s in sizes.items() if n not in traced}
    reasons += [f"{n}: its norm is {s:.4g}, outside the unit ball" for n, s in rest.items() if not s <= 1 + 1e-5]
    if traced and batch:
        return Verdict((*reasons, "the plan was traced at its example inputs; compile again with these"))
    return Verdict((*reasons, *_larger(plan, batch)))


def _how(leaf: Leaf) -> str:
    return "measured, a lower estimate" if leaf.source.startswith("measured") else leaf.known


def _larger(plan: Plan, batch: Sequence[Any]) -> list[str]:
    if batch and len(batch) != len(plan.inputs):
        return [f"{len(batch)} inputs, but the plan is for {len(plan.inputs)}"]
    sizes = [(i, x.measure(given), x.size) for i, (x, given) in enumerate(zip(plan.inputs, batch, strict=False))]
    return [
        f"input {i}: its size is {s:.4g}, and the plan is for {most:.4g}"
        for i, s, most in sizes
        if not s <= most * (1 + 1e-5)
    ]


def sharpness_of(plan: Plan, model: nn.Module) -> Sharpness:
    if plan.graph is None:
        raise ValueError(
            "second derivatives are declared by modules, and this plan was recorded from a forward pass, loaded or "
            "copied; write normgeo.compile(model).sharpness(model), with modules of normgeo.nn or registered ones"
        )
    names = {id(parameter): name for name, parameter in plan.find(model).items()}
    leaves = {leaf.name: leaf for leaf in plan.leaves}
    graph, output = plan.graph(unwrapped(model))
    radii = []
    for use in graph.uses:
        name = names[id(use.parameter)]
        leaf = leaves[f"{name}[{use.block}]" if use.block else name]
        # What a module declares holds for the norm that it declares it in.
        known: Known = "bound" if leaf.norm == use.norm else "typical"
        radii.append(Factor(leaf.radius if leaf.trainable else 0.0, known))
    return sharpness(graph, output, radii)
