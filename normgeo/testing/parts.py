"""The laws of the parts of an optimizer: a stack of leaves is the same as its leaves one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from normgeo.constraints import Constraint, Rate
from normgeo.rules import Rule
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


def check_constraint(constraint: Constraint, shape: tuple[int, ...] = (3, 2), *, seed: int = 0) -> None:
    """A stack is its leaves one by one, and at η = 0 weights that have not moved stay where the constraint put them.

    >>> from normgeo.constraints import Decay
    >>> check_constraint(Decay(0.1))
    """
    rate, still = Rate(torch.tensor(0.1), torch.tensor(0.5)), Rate(torch.tensor(0.0), torch.tensor(0.0))
    old, step = _stack(shape, seed), 0.1 * _stack(shape, seed + 1)
    W = constraint.retract(old + step, old, rate, constraint.init(old))
    parts = [
        constraint.retract((old + step)[i : i + 1], old[i : i + 1], rate, constraint.init(old[i : i + 1]))
        for i in range(len(old))
    ]
    torch.testing.assert_close(W, torch.cat(parts))
    torch.testing.assert_close(constraint.retract(W, W, still, constraint.init(W)), W)
    assert constraint.tangent(W, step, constraint.init(W)).shape == W.shape, "the tangent has another shape"


def _stack(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
