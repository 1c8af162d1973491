"""The laws of the parts of an optimizer: a stack of leaves is the same as its leaves one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normgeo.constraints import Constraint, Rate
from normgeo.norms import Norm, RMSToRMS
from normgeo.rules import Rule
from normgeo.rules.base import State
from normgeo.steps import Stats, StepSize, StepState

__all__ = ["check_constraint", "check_rule", "check_step"]


def check_rule(rule: Rule, shape: tuple[int, ...] = (3, 2), *, steps: int = 5, seed: int = 0) -> None:
    """Zero gradients from the start give zero; a stack is its leaves one by one; G is left as it was.

    >>> from normgeo.rules import Momentum
    >>> check_rule(Momentum(0.9))
    """
    W, Gs = _stack(shape, seed), [_stack(shape, seed + 1 + t) for t in range(steps)]
    zero = rule.update(torch.zeros_like(W), rule.init(W))
    assert not zero.any(), "a zero gradient from the start does not give zero"
    together, alone = rule.init(W), [rule.init(W[i : i + 1]) for i in range(len(W))]
    for name, tensor in together.items():
        assert tensor.shape[0] == len(W), (
            f"state {name!r} of shape {tuple(tensor.shape)} has no leading axis for leaves"
        )
    for G in Gs:
        before = G.clone()
        M = rule.update(G, together)
        parts = [rule.update(G[i : i + 1], state) for i, state in enumerate(alone)]
        assert torch.equal(G, before), "the rule changes the gradient that it is given"
        assert M.shape == G.shape, f"M has shape {tuple(M.shape)}, G has {tuple(G.shape)}"
        torch.testing.assert_close(M, torch.cat(parts))


def check_step(step: StepSize, *, total: int = 100) -> None:
    """At every count the value is a finite 0-D tensor ≥ 0 (for step sizes that look only at the count).

    >>> from normgeo.steps import Cosine
    >>> check_step(Cosine(total=100, warmup=10))
    """
    for t in range(2 * total):
        value = step.value(Stats(torch.tensor(float(t))), StepState())
        assert isinstance(value, Tensor), f"at step {t} the value is {value!r}, not a tensor"
        assert value.ndim == 0, f"at step {t} the value has shape {tuple(value.shape)}"
        assert value.isfinite(), f"at step {t} the value is {value}"
        assert value >= 0, f"at step {t} the value is {value}"


def check_constraint(
    constraint: Constraint,
    shape: tuple[int, ...] = (3, 2),
    *,
    norm: Norm | None = None,
    excess: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-5,
    dtype: torch.dtype = torch.float32,
    steps: int = 1000,
    seed: int = 0,
) -> None:
    """A stack is its leaves one by one, state too; weights and gradients are left as they were; at η = 0 weights that have
    not moved stay where the constraint put them; NaN stays in its leaf and zero weights stay finite.

    With `excess`, W (n, *shape) -> (n,) how far each leaf is outside what the constraint promises, `steps` steps are taken
    against it: gradients push each leaf outward along itself, along a fixed matrix and at random, with η going up and down
    and the weights rounded to `dtype`; the excess may never pass `tolerance`. The leaf's norm is `norm`, or RMS→RMS.

    >>> from normgeo.constraints import Ball
    >>> from normgeo.norms import RMSToRMS
    >>> check_constraint(Ball(2.0), excess=lambda W: RMSToRMS().norm(W) / 2 - 1, steps=10)
    """
    norm = RMSToRMS() if norm is None else norm
    constraint = constraint.bind(norm)
    rate, still = Rate(torch.tensor(0.1), torch.tensor(0.5)), Rate(torch.tensor(0.0), torch.tensor(0.0))
    old, push = _stack(shape, seed), 0.1 * _stack(shape, seed + 1)
    W, G, state = _constrained(constraint, old, push, rate)
    alone = [_constrained(constraint, old[i : i + 1], push[i : i + 1], rate) for i in range(len(old))]
    torch.testing.assert_close(W, torch.cat([one[0] for one in alone]))
    torch.testing.assert_close(G, torch.cat([one[1] for one in alone]))
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, torch.cat([one[2][name] for one in alone]))
    torch.testing.assert_close(constraint.retract(W, W, still, state), W)

    poisoned = old.clone()
    poisoned[1] = torch.nan
    there = constraint.retract(poisoned, old, rate, constraint.init(old))
    assert there[1].isnan().all(), "NaN in a weight is hidden"
    assert there[[0, 2]].isfinite().all(), "NaN in one leaf reaches the others"
    assert constraint.retract(0 * old, old, rate, constraint.init(old)).isfinite().all(), (
        "zero weights become NaN or Inf"
    )
    if excess is not None:
        _attack(constraint, norm, norm.init((3, *shape)), excess, tolerance, dtype, steps, seed)


def _constrained(constraint: Constraint, old: Tensor, push: Tensor, rate: Rate) -> tuple[Tensor, Tensor, State]:
    """New weights, the tangent, and the state after a step that comes out of nowhere."""
    state, given = constraint.init(old), (old.clone(), push.clone())
    G = constraint.tangent(old, push, state)
    moved = old + push
    W = constraint.retract(moved, old, rate, state)
    untouched = torch.equal(old, given[0]) and torch.equal(push, given[1]) and torch.equal(moved, old + push)
    assert untouched, "the constraint changes the weights or gradients that it is given"
    assert G.shape == W.shape == old.shape, (
        f"weights {tuple(old.shape)} become {tuple(W.shape)}, their tangent {G.shape}"
    )
    return W, G, state


def _attack(
    constraint: Constraint,
    norm: Norm,
    W: Tensor,
    excess: Callable[[Tensor], Tensor],
    tolerance: float,
    dtype: torch.dtype,
    steps: int,
    seed: int,
) -> None:
    """Three leaves: along itself, along a fixed matrix, anew at random each time."""
    generator = torch.Generator().manual_seed(seed)
    W = W.to(dtype).to(torch.float32)
    fixed = torch.randn(W.shape[1:], generator=generator)
    state = constraint.init(W)
    for t in range(steps):
        eta = torch.tensor(0.1 if t % 200 < 100 else 0.02)
        G = -torch.stack([W[0], fixed, torch.randn(W.shape[1:], generator=generator)])
        D = norm.dualize(constraint.tangent(W, G, state))
        W = constraint.retract(W - eta * D, W, Rate(eta, eta), state).to(dtype).to(torch.float32)
        far = excess(W)
        assert bool((far <= tolerance).all()), f"after {t + 1} steps leaves are outside by {far.tolist()}"


def _stack(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
