"""The laws of the parts of an optimizer: a stack of leaves is the same as its leaves one by one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from normgeo.constraints import Constraint, Rate
from normgeo.norms import Norm, RMSToRMS
from normgeo.rules import Rule
from normgeo.rules.base import State
from normgeo.steps import StepSize, StepState
from normgeo.testing.bowl import Bowl, NoWaiting

__all__ = ["check_constraint", "check_rule", "check_step"]


def check_rule(rule: Rule, shape: tuple[int, ...] = (3, 2), *, steps: int = 5, seed: int = 0) -> None:
    """Zero gradients from the start give zero; a stack is its leaves one by one; G is left as it was, and state by the
    gradient that is said to leave it so.

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
    if (still := rule.still(together)) is not None:
        kept = {name: x.clone() for name, x in together.items()}
        rule.update(still.clone(), together)
        assert all(torch.equal(x, kept[name]) for name, x in together.items()), (
            "`still` does not leave the state as it is"
        )


def check_step(step: StepSize, *, total: int = 100) -> None:
    """In every step of descent on a bowl, and with a gradient of 0, the value is finite and ≥ 0: a 0-D tensor, or for each
    stack one that broadcasts against its weights. State keeps its names and shapes. The step size never waits for the
    device (no `.item()`, no truth value), unless it searches along a line. It is given whatever it needs.

    >>> from normgeo.steps import Cosine
    >>> check_step(Cosine(total=100, warmup=10))
    """
    bowl = Bowl()
    state = StepState({k: torch.tensor(v, dtype=torch.float64) for k, v in step.init_shared().items()})
    state.leaves = [step.init(W) for W in bowl.weights]
    for W, leaf in zip(bowl.weights, state.leaves, strict=True):
        for name, tensor in leaf.items():
            assert tensor.shape[:1] == W.shape[:1], f"state {name!r} has no leading axis for leaves"
    known = _shapes(state)
    for t in range(2 * total):
        flat = t % total == total - 1
        stats = bowl.stats(t, flat, step.needs)
        with nullcontext() if "closure" in step.needs else NoWaiting():
            value = step.value(stats, state)
        sizes = _sizes(value, bowl.weights, f"at step {t} the value")
        for each, W in zip(sizes, bowl.weights, strict=True):
            assert each.isfinite().all(), f"at step {t} the value is {each}"
            assert (each >= 0).all(), f"at step {t} the value is {each}"
            assert torch.broadcast_shapes(each.shape, W.shape) == W.shape, f"{tuple(each.shape)} for {tuple(W.shape)}"
        bowl.move(sizes, stats.moves)
        with NoWaiting():
            step.follow(stats.moves, state)
        assert _shapes(state) == known, f"at step {t} the state changes its names or shapes"
        for number in (x for d in (state.shared, *state.leaves) for x in d.values()):
            assert number.isfinite().all(), f"at step {t} the state is not finite"


def _sizes(value: object, weights: list[Tensor], what: str) -> list[Tensor]:
    if isinstance(value, Tensor):
        assert value.ndim == 0, f"{what} has shape {tuple(value.shape)}"
        return [value] * len(weights)
    assert isinstance(value, list | tuple), f"{what} is {value!r}, not a tensor"
    assert len(value) == len(weights), f"{what} has {len(value)} tensors for {len(weights)} stacks"
    return [v if v.ndim > 1 else v.reshape((-1,) + (1,) * (W.ndim - 1)) for v, W in zip(value, weights, strict=True)]


def _shapes(state: StepState) -> list[dict[str, torch.Size]]:
    return [{name: x.shape for name, x in d.items()} for d in (state.shared, *state.leaves)]


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
    """A stack is its leaves one by one, state too; weights and gradients are left as they were; what the
    constraint has settled at η = 0 it leaves alone; NaN stays in its leaf and zero weights stay finite.

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
    for _ in range(30):
        W = constraint.retract(W, W, still, state)
    torch.testing.assert_close(constraint.retract(W, W, still, state), W, rtol=1e-4, atol=1e-4)

    poisoned = old.clone()
    poisoned[1] = torch.nan
    there = constraint.retract(poisoned, old, rate, constraint.init(old))
    assert there[1].isnan().all(), "NaN in a weight is hidden"
    assert there[[0, 2]].isfinite().all(), "NaN in one leaf reaches the others"
    assert constraint.retract(0 * old, old, rate, constraint.init(old)).isfinite().all(), (
        "zero weights become NaN or Inf"
    )
    at_zero = constraint.tangent(0 * old, push, constraint.init(old))
    assert at_zero.isfinite().all(), "the tangent at zero weights is NaN or Inf"
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
        eta = torch.tensor(0.1 if t % 50 < 25 else 0.02)
        G = -torch.stack([W[0], fixed, torch.randn(W.shape[1:], generator=generator)])
        M = constraint.tangent(W, G, state)
        D = constraint.direct(M, W, state)
        if D is None:
            D = norm.dualize(M)
        assert (norm.norm(D) <= 1 + 1e-3).all(), f"the direction has norm {norm.norm(D).tolist()}, more than 1"
        W = constraint.retract(W - eta * D, W, Rate(eta, eta), state).to(dtype).to(torch.float32)
        far = excess(W)
        assert bool((far <= tolerance).all()), f"after {t + 1} steps leaves are outside by {far.tolist()}"


def _stack(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
