"""The promise of the modular norm, searched for its worst case."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normgeo.geometry import differentiable, norming, unwrapped
from normgeo.geometry.measure import function_of, undisturbed
from normgeo.linalg import SVD, steepest_gain
from normgeo.norms import with_polar
from normgeo.plan import Plan
from normgeo.plan import compile as compile_plan
from normgeo.plan.names import named_parameters

__all__ = ["check_geometry"]

Weights = dict[str, Tensor]


def check_geometry(
    model: nn.Module,
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    plan: Plan | None = None,
    output: str | int | Callable[[Any], Any] | None = None,
    starts: int = 5,
    iterations: int = 30,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> float:
    """max ‖J Δ‖ over ‖Δ‖ ≤ 1 found by the power method in the plan's own norms; the output is measured as RMS over
    features (channels of images), maximum over everything else. If the plan consists of bounds and holds at the model's
    weights, more than 1 is an error. Returns the maximum found: near 1 means tight, far below means loose, above 1 a
    typical plan's overshoot. The model is called with `inputs` and `kwargs`, in evaluation mode; `output` as in `compile`.
    In float32 the tolerance must be 1e-4.

    >>> import normgeo as ng
    >>> model = ng.nn.Linear(3, 2).double()
    >>> bool(0.9 < check_geometry(model, (torch.ones(1, 3, dtype=torch.float64),)) <= 1 + 1e-6)
    True
    """
    model = unwrapped(model)
    plan = plan or compile_plan(model, tuple(inputs), kwargs, output=output)
    weights = {name: p.detach() for name, p in named_parameters(model).items()}

    with undisturbed(model), differentiable():
        f = function_of(model, named_parameters(model), inputs, kwargs or {}, output)
        worst = _search(f, weights, exact(plan), starts, seed, plan.axis, iterations)
    if plan.holds(model):
        # Weights may be outside their balls by the rounding of their dtype, which each layer passes on.
        at = {leaf.name: 1.0 if leaf.at is None else leaf.at for leaf in plan.leaves}
        slack = math.prod(max(1.0, size / max(at[name], 1.0)) for name, size in plan.sizes(model).items())
        assert worst <= slack * (1 + tolerance), f"‖J Δ‖ reaches {worst:.6f} for a Δ of modular norm 1"
    return worst


def _search(
    f: Callable[[Weights], Tensor], weights: Weights, unit: Plan, starts: int, seed: int, axis: int, iterations: int
) -> float:
    _, pull, *_ = torch.func.vjp(f, weights)
    random = torch.Generator().manual_seed(seed)
    points = [
        unit.dualize({n: torch.randn(w.shape, generator=random, dtype=w.dtype) for n, w in weights.items()})
        for _ in range(starts)
    ]
    return steepest_gain(
        forward=lambda delta: torch.func.jvp(f, (weights,), (delta,))[1],
        backward=lambda u: pull(u)[0],
        norming=lambda y: norming(y, axis),
        dualize=unit.dualize,
        starts=points,
        iterations=iterations,
    )


def exact(plan: Plan) -> Plan:
    """The plan with polar factors from the SVD, so that its duality maps are exact."""
    return Plan(tuple(dataclasses.replace(leaf, norm=with_polar(leaf.norm, SVD())) for leaf in plan.leaves))


def function_of_weights(model: nn.Module, inputs: Sequence[Any]) -> Callable[[Weights], Tensor]:
    """The output as a function of the weights by name."""
    return function_of(model, named_parameters(model), inputs, {}, None)
