"""Gauge and maximizer from each other, by BFGS, which copes with kinks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normgeo.budgets.shapes import basis, negative
from normgeo.linalg import eigh

if TYPE_CHECKING:
    from normgeo.budgets.base import Budget

__all__ = ["gauge_from_maximizer", "maximizer_from_gauge"]


def maximizer_from_gauge(budget: Budget, m: Tensor) -> Tensor:
    return torch.stack([_best_by_gauge(budget, each) for each in m])


def _best_by_gauge(budget: Budget, m: Tensor) -> Tensor:  # (*d) -> (*d)
    def operator(z: Tensor) -> Tensor:
        z = z.reshape(m.shape)
        return z @ z.mT if budget.kind == "matrix" else z.square() if budget.kind == "diagonal" else z

    def loss(z: Tensor) -> Tensor:
        q = operator(z)
        return budget.gauge(q).log() - (q * m).sum().log()

    if budget.kind == "matrix":
        s, u = eigh(m)
        best, start = s[-1], u * (s.clamp_min(0) + 1e-3 * s.clamp_min(0).amax()).sqrt()
    else:
        best = m.amax() if budget.kind == "diagonal" else m.abs().amax()
        start = (m.clamp_min(0) + 1e-3 * best.clamp_min(0)).sqrt() if budget.kind == "diagonal" else m
    if best <= 1e-14 * m.abs().amax():
        return torch.zeros_like(m)
    if not bool(loss(start).isfinite()):  # the small part along negative directions can outweigh a thin positive one
        start = (u * s.clamp_min(0).sqrt()) if budget.kind == "matrix" else m.clamp_min(0).sqrt()
    q = operator(_bfgs(loss, start.reshape(-1)))
    size = budget.gauge(q)
    if not (bool(size.isfinite()) and size > 0):
        raise ValueError(
            f"{type(budget).__name__} is unbounded: its gauge is {float(size):.3g} at an operator of size "
            f"{float(q.norm()):.3g}"
        )
    return q / size


def gauge_from_maximizer(budget: Budget, q: Tensor) -> Tensor:
    return torch.stack([_size_by_maximizer(budget, each) for each in q])


def _size_by_maximizer(budget: Budget, q: Tensor) -> Tensor:  # (*d) -> ()
    """max ⟨Q, M⟩ over P*(M) ≤ 1, the gauge of the polar's polar: a lower bound that BFGS makes tight."""
    if not q.any():
        return q.new_zeros(())
    if bool(negative(q.unsqueeze(0), budget.kind)):
        return q.new_full((), torch.inf)
    directions = basis(budget.kind, q)

    def loss(z: Tensor) -> Tensor:
        m = torch.tensordot(z, directions, dims=1)
        return budget.support(m).log() - (q * m).sum().log()

    start = torch.tensordot(directions, q / q.norm(), dims=q.ndim)
    z = _bfgs(loss, start)
    found = -float(loss(z).detach())
    # What no multiple of the budget holds is told from what a large multiple holds by where the search gives up.
    return q.new_tensor(
        math.inf if math.isnan(found) or found > math.log(1e7) - float(loss(start).detach()) else math.exp(found)
    )


def _bfgs(loss: Callable[[Tensor], Tensor], x: Tensor, iterations: int = 1000) -> Tensor:
    """BFGS with a weak Wolfe line search by bisection, which converges at kinks too (Lewis and Overton 2013)."""

    def at(x: Tensor) -> tuple[float, Tensor]:
        x = x.detach().requires_grad_()
        f = loss(x)
        if not bool(f.isfinite()):
            return math.inf, torch.zeros_like(x)
        (g,) = torch.autograd.grad(f, x)
        return float(f.detach()), g.nan_to_num()

    one = torch.eye(len(x)).to(x)
    x, inverse, failures, past = x.detach().clone(), one, 0, math.inf
    f, g = at(x)
    for iteration in range(iterations):
        step = -inverse @ g
        slope = float(step @ g)
        low, high, length = 0.0, math.inf, 1.0
        for _ in range(60):
            ahead, there = at(x + length * step)
            if not ahead <= f + 1e-6 * length * slope:
                high = length
            elif float(there @ step) < 0.9 * slope:
                low = length
            else:
                break
            length = (low + high) / 2 if high < math.inf else 2 * length
        if not ahead < f:
            failures += 1
            if failures > 5 or slope == 0:
                break
            inverse = one
            continue
        s, y = length * step, there - g
        x, f, g = x + s, ahead, there
        if (curve := float(s @ y)) > 1e-300:
            inverse = one * (curve / float(y @ y)) if inverse is one else inverse
            left = one - torch.outer(s, y) / curve
            inverse = left @ inverse @ left.mT + torch.outer(s, s) / curve
        if iteration % 50 == 49:
            if past - f < 1e-9:
                break
            past = f
    return x
