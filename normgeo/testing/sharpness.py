"""The second-order bound of a network, searched for its worst case."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from normgeo.geometry import unwrapped
from normgeo.plan import Plan
from normgeo.plan import compile as compile_plan
from normgeo.plan.names import named_parameters
from normgeo.testing.geometry import Weights, exact, function_of_weights, norming

__all__ = ["check_sharpness"]


def check_sharpness(
    model: nn.Module,
    inputs: Sequence[Any],
    *,
    plan: Plan | None = None,
    starts: int = 5,
    rounds: int = 10,
    seed: int = 0,
    tolerance: float = 1e-6,
) -> float:
    """max ‖D²f[Δ, Δ']‖ over ‖Δ‖, ‖Δ'‖ ≤ 1, by turns in Δ, Δ' and the functional that sees the output; no turn lowers it.
    If α is a bound and the weights are in their unit balls, more than α is an error. Returns the maximum found.

    >>> import normgeo as ng
    >>> model = (ng.nn.Linear(3, 2) @ ng.nn.Linear(3, 3)).double()
    >>> bool(0.49 < check_sharpness(model, (torch.ones(1, 3, dtype=torch.float64),)) <= 0.5 + 1e-6)
    True
    """
    model = unwrapped(model)
    plan = plan or compile_plan(model, tuple(inputs))
    found, unit = plan.sharpness(model), exact(plan)
    if found.alpha is None:
        raise ValueError(found.unknown)
    weights = {name: p.detach() for name, p in named_parameters(model).items()}
    f = function_of_weights(model, inputs)
    axis, random = plan.axis, torch.Generator().manual_seed(seed)

    worst = 0.0
    for _ in range(starts):
        a, b = (
            unit.dualize({n: torch.randn(w.shape, generator=random, dtype=w.dtype) for n, w in weights.items()})
            for _ in range(2)
        )
        for _ in range(rounds):
            with sdpa_kernel(SDPBackend.MATH):  # flash attention has no forward derivative on CPU
                bent, pull = _second(f, weights, a)
                y = bent(b)
                worst = max(worst, float(y.movedim(axis, -1).square().mean(-1).sqrt().max()))
                a, b = unit.dualize(pull(norming(y, axis))), a
    if found.alpha.known == "bound" and plan.holds(model):
        slack = math.prod(max(1.0, size) for size in plan.sizes(model).values())
        assert worst <= slack * found.alpha.value * (1 + tolerance), (
            f"‖D²f[Δ, Δ']‖ reaches {worst:.6g} for Δ, Δ' of modular norm 1, and α is {found.alpha.value:.6g}"
        )
    return worst


def _second(
    f: Callable[[Weights], Tensor], weights: Weights, a: Weights
) -> tuple[Callable[[Weights], Tensor], Callable[[Tensor], Weights]]:
    """Δ' ↦ D²f[a, Δ'], and its transpose, by reverse mode first: in torch 2.13 what forward mode gives for layer_norm is
    right, but has a wrong derivative."""

    def pull(u: Tensor) -> Weights:
        out: Weights = torch.func.jvp(lambda ws: torch.func.vjp(f, ws)[1](u)[0], (weights,), (a,))[1]
        return out

    push = torch.func.vjp(pull, torch.zeros_like(f(weights)))[1]
    return lambda b: push(b)[0], pull
