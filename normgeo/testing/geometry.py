"""The promise of the modular norm, searched for its worst case."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from normgeo.geometry import unwrapped
from normgeo.linalg import SVD, steepest_gain
from normgeo.norms import with_polar
from normgeo.plan import Plan
from normgeo.plan import compile as compile_plan
from normgeo.plan.compile import output_axis
from normgeo.plan.names import named_parameters

__all__ = ["check_geometry"]

Weights = dict[str, Tensor]


def check_geometry(
    model: nn.Module,
    inputs: Sequence[Any],
    *,
    plan: Plan | None = None,
    starts: int = 5,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> float:
    """max ‖J Δ‖ over ‖Δ‖ ≤ 1 found by the power method in the plan's own norms; the output is measured as RMS over
    features (channels of images), maximum over everything else. If the plan consists of bounds and holds at the model's
    weights, more than 1 is an error. Returns the maximum found: near 1 means tight, far below means loose, above 1 a
    typical plan's overshoot.

    >>> import normgeo as ng
    >>> model = ng.nn.Linear(3, 2).double()
    >>> bool(0.9 < check_geometry(model, (torch.ones(1, 3, dtype=torch.float64),)) <= 1 + 1e-6)
    True
    """
    model = unwrapped(model)
    plan = plan or compile_plan(model, tuple(inputs))
    weights = {name: p.detach() for name, p in named_parameters(model).items()}

    with sdpa_kernel(SDPBackend.MATH):  # flash attention has no forward derivative on CPU
        worst = _search(
            function_of_weights(model, inputs), weights, exact(plan), starts, seed, output_axis(model, inputs)
        )
    if not plan.holds(model):
        # Weights may be outside their balls by the rounding of their dtype, which each layer passes on.
        slack = math.prod(max(1.0, size) for size in plan.sizes(model).values())
        assert worst <= slack * (1 + tolerance), f"‖J Δ‖ reaches {worst:.6f} for a Δ of modular norm 1"
    return worst


def _search(f: Callable[[Weights], Tensor], weights: Weights, unit: Plan, starts: int, seed: int, axis: int) -> float:
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
    )


def exact(plan: Plan) -> Plan:
    """The plan with polar factors from the SVD, so that its duality maps are exact."""
    return Plan(tuple(dataclasses.replace(leaf, norm=with_polar(leaf.norm, SVD())) for leaf in plan.leaves))


def function_of_weights(model: nn.Module, inputs: Sequence[Any]) -> Callable[[Weights], Tensor]:
    """The output as a function of the weights by name. A module that is used twice is given its weights once: torch's own
    tying would put them in twice and restore the second time what it had put in the first."""
    names = {id(p): name for name, p in named_parameters(model).items()}
    places = {
        f"{path}.{own}" if path else own: names[id(p)]
        for path, module in model.named_modules()
        for own, p in module.named_parameters(recurse=False)
    }

    def f(weights: Weights) -> Tensor:
        given = {place: weights[name] for place, name in places.items()}
        out: Tensor = torch.func.functional_call(model, given, tuple(inputs), tie_weights=False)
        return out

    return f


def norming(y: Tensor, axis: int = -1) -> Tensor:
    """u with ⟨u, y⟩ = max RMS(y_t) and dual norm 1: the worst token's, or pixel's, own direction."""
    last = y.movedim(axis, -1)
    rows = last.reshape(-1, last.shape[-1])
    sizes = rows.square().mean(-1).sqrt()
    worst = int(sizes.argmax())
    u = torch.zeros_like(rows)
    u[worst] = rows[worst] / (sizes[worst].clamp_min(torch.finfo(y.dtype).tiny) * rows.shape[-1])
    return u.reshape(last.shape).movedim(-1, axis)
