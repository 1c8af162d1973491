"""What a budget does not say in closed form, found from what it does say, in float64, to a relative `TOLERANCE`.

| given | gauge | maximizer | project |
|---|---|---|---|
| constraints | bisection | barrier method with Newton steps, gap ν/t | Frank-Wolfe |
| projection | bisection | project(α·M), α → ∞ | |
| gauge | | BFGS on log gauge(Q) - log ⟨Q, M⟩ over Q = L·Lᵀ | Frank-Wolfe |
| maximizer | BFGS on log support(M) - log ⟨Q, M⟩ over M | | Frank-Wolfe |
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from normgeo.budgets.base import Budget

__all__ = ["GIVEN", "TOLERANCE", "Constraint", "NumericalWarning", "complete", "own", "within"]

TOLERANCE = 1e-6
GIVEN = ("maximizer", "gauge", "project", "constraints")
Constraint = Callable[[Tensor], Tensor]
"""Q ↦ a slack, concave in Q and ≥ 0 within the budget: a number, a vector (each entry) or a symmetric matrix (≽ 0)"""
_told: set[tuple[type, str]] = set()


class NumericalWarning(UserWarning):
    """A function of a budget is found by iteration; the message says from what, how precisely and at what cost.

    >>> issubclass(NumericalWarning, UserWarning)
    True
    """


def own(budget: Budget, name: str) -> bool:
    """Whether the class of the budget defines this function itself."""
    from normgeo.budgets.base import Budget

    return getattr(type(budget), name) is not getattr(Budget, name)


def complete(budget: Budget, name: str, x: Tensor) -> Tensor:
    """The function of this name at x (*b, *d), from the functions that the budget defines; the first call says so."""
    source, method = _choose(budget, name)
    with torch.enable_grad():
        items = x.detach().double().reshape(-1, *x.shape[x.ndim - budget.ndim :])
        start = time.perf_counter()
        out = method(budget, items)
        seconds = (time.perf_counter() - start) / max(1, len(items))
    if (key := (type(budget), name)) not in _told:
        _told.add(key)
        warnings.warn(
            f"{type(budget).__name__}.{name} is found numerically from its {source}, to a relative tolerance of "
            f"{TOLERANCE:g} where {source} is smooth; that took {1e3 * seconds:.3g} ms each for shape "
            f"{tuple(items.shape[1:])}. Define {name}(self, ...) to do it in closed form",
            NumericalWarning,
            stacklevel=4,
        )
    return out.reshape(x.shape[: x.ndim - budget.ndim] + out.shape[1:]).to(x.dtype)


def _choose(budget: Budget, name: str) -> tuple[str, Callable[[Budget, Tensor], Tensor]]:
    ways: dict[str, dict[str, Callable[[Budget, Tensor], Tensor]]] = {
        "gauge": {"constraints": _bisect, "project": _bisect, "maximizer": _gauge_from_maximizer},
        "maximizer": {"constraints": _barrier, "project": _push, "gauge": _maximizer_from_gauge},
        "project": {"maximizer": _frank_wolfe, "constraints": _frank_wolfe, "gauge": _frank_wolfe},
    }
    return next((source, way) for source, way in ways[name].items() if own(budget, source))


# ---- gauge by bisection


def _bisect(budget: Budget, q: Tensor) -> Tensor:  # (n, *d) -> (n,)
    """inf {t : Q/t within}, from above: Q/t is within at the t that is returned."""
    flat = q.flatten(1)
    size = torch.linalg.vector_norm(flat, dim=1)
    unit = q / _like(torch.where(size > 0, size, 1), q)
    low, high = (torch.full_like(size, x) for x in (-200.0, 200.0))  # log2 t, for |Q| = 1
    bounded = within(budget, unit * 2.0**-200) & (size > 0)
    for _ in range(62):
        middle = (low + high) / 2
        inside = within(budget, unit * _like(torch.exp2(-middle), q))
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    out = torch.where(bounded, size * torch.exp2(high), torch.inf)
    if bool(((high < -150) & bounded).any()):
        raise ValueError(
            f"{type(budget).__name__} is unbounded: {2.0**150:.3g} times an operator of size 1 is within it"
        )
    return torch.where(size == 0, 0, out)


def within(budget: Budget, q: Tensor) -> Tensor:  # (n, *d) -> (n,)
    """Whether Q is in the budget, to rounding."""
    from normgeo.budgets.base import below_zero

    if not budget.signed:
        ok = torch.ones(len(q), dtype=torch.bool, device=q.device)
    else:
        ok = ~below_zero(torch.linalg.eigvalsh(q) if budget.kind == "matrix" else q)
        if budget.kind == "diagonal" and q.ndim > 2:
            ok = ok.flatten(1).all(1)
    if own(budget, "constraints"):
        for slack in budget.constraints():
            s = torch.vmap(slack)(q)
            s = torch.linalg.eigvalsh(s) if s.ndim == 3 else s.reshape(len(q), -1)
            ok = ok & (s.amin(1) >= -1e-13 * s.abs().amax(1))
        return ok
    gap = torch.linalg.vector_norm((budget.project(q) - q).flatten(1), dim=1)
    return ok & (gap <= 1e-10 * torch.linalg.vector_norm(q.flatten(1), dim=1))


# ---- maximizer from constraints: path following


def _barrier(budget: Budget, m: Tensor) -> Tensor:  # (n, *d) -> (n, *d)
    """max t·⟨Q, M⟩ + Σ log slack + log det Q for growing t; at its solution the power is within ν/t of the best."""
    scale = m.flatten(1).abs().amax(1)
    goal = m / _like(torch.where(scale > 0, scale, 1), m)
    slacks = list(budget.constraints())
    directions = _directions(budget, m)  # (k, *d)
    middle = _inside(budget, slacks, m[0])
    _bounded(budget, m)
    x = torch.zeros(len(m), len(directions), dtype=m.dtype) + torch.tensordot(directions, middle, dims=middle.ndim)
    unit = float(middle.abs().max())
    nu = sum(_order(slack(middle)) for slack in slacks) + (m.shape[-1] if budget.signed else 0)

    def operator(y: Tensor) -> Tensor:  # (k,) -> (*d)
        return torch.tensordot(y, directions, dims=1)

    def barrier(y: Tensor, target: Tensor, t: Tensor) -> Tensor:
        q = operator(y)
        walls = [slack(q) for slack in slacks]
        if budget.signed:
            walls.append(q / unit)
        return -t * (q * target).sum() / unit - sum(_log(w) for w in walls)

    value = torch.vmap(barrier, in_dims=(0, 0, None))
    slope = torch.func.grad(barrier)
    # Reverse over reverse: forward mode goes through Python for many operations and took five times as long.
    curve = torch.func.jacrev(slope)
    derivatives = torch.vmap(lambda *at: (slope(*at), curve(*at)), in_dims=(0, 0, None))
    t = torch.tensor(1.0, dtype=m.dtype)
    while True:
        x = _newton(value, derivatives, x, goal, t)
        q = torch.tensordot(x, directions, dims=1)
        power = (q * goal).flatten(1).sum(1) / unit
        if bool((power > 1e12).any()):
            raise ValueError(
                f"{type(budget).__name__} is unbounded: a power of {float(power.max()):.3g}·|M| is within it"
            )
        # Moments without positive power would never meet a relative tolerance; theirs is relative to the identity's.
        if bool((nu / t <= 0.1 * TOLERANCE * power.clamp_min(1e-3)).all()):
            break
        t = t * 50
    size = budget.gauge(q)
    useful = power > 2 * nu / t
    return torch.where(_like(useful, q), q / _like(torch.where(useful, size, 1), q), 0)


def _bounded(budget: Budget, m: Tensor) -> None:
    """Refuse a set that holds the whole ray of an eigenvector of a moment (or of a coordinate)."""
    if budget.kind == "matrix":
        v = torch.linalg.eigh(m)[1].mT.reshape(-1, m.shape[-1])
        _bisect(budget, v.unsqueeze(-1) * v.unsqueeze(-2))
    else:
        _bisect(budget, _directions(budget, m))


def _newton(value: Callable, derivatives: Callable, x: Tensor, goal: Tensor, t: Tensor) -> Tensor:
    """Damped Newton steps for all moments in step, each with its own step length."""
    f = value(x, goal, t)
    for _ in range(40):
        slope, curve = derivatives(x, goal, t)
        step = -torch.linalg.lstsq(curve, slope.unsqueeze(-1)).solution.squeeze(-1)
        decrement = -(slope * step).sum(1)
        if bool((decrement <= 1e-4).all()):  # the power is then within 1e-4/t of that at the barrier's solution
            break
        length = 1 / (1 + decrement.clamp_min(0).sqrt())
        length = torch.where(decrement < 0.1, 1.0, length)
        moving = torch.ones_like(length, dtype=torch.bool)
        for _ in range(50):
            ahead = x + torch.where(moving, length, 0).unsqueeze(1) * step
            there = value(ahead, goal, t).nan_to_num(torch.inf)
            bad = moving & ~(there <= f + 1e-9 * (1 + f.abs()) - 1e-4 * length * decrement)
            if not bool(bad.any()):
                break
            length = torch.where(bad, length / 2, length)
        good = ~bad
        x, f = torch.where(good.unsqueeze(1), ahead, x), torch.where(good, there, f)
        if not bool(good.any()):
            break
    return x


def _log(slack: Tensor) -> Tensor:
    """log of a number, Σ log of a vector, log det of a matrix; NaN where it is not positive."""
    if slack.ndim < 2:
        return torch.where(slack > 0, slack, torch.nan).log().sum()
    factor, info = torch.linalg.cholesky_ex(slack)
    return torch.where(info == 0, 2 * factor.diagonal().log().sum(), torch.nan)


def _order(slack: Tensor) -> int:
    return slack.shape[0] if slack.ndim else 1


def _inside(budget: Budget, slacks: Sequence[Constraint], like: Tensor) -> Tensor:  # -> (*d)
    """ε·I (or 0, for steps) strictly inside, ε half of the largest power of two for which it is."""
    zero = torch.zeros_like(like)
    for number, slack in enumerate(slacks):
        least = _least(slack(zero))
        if not least >= 0:
            raise ValueError(
                f"{type(budget).__name__}: 0 is not in the set, constraint {number} has slack {least:.3g} there; "
                f"write it as a slack that is ≥ 0 inside"
            )
    one = torch.eye(like.shape[-1], dtype=like.dtype) if budget.kind == "matrix" else torch.ones_like(like)
    for e in range(100, -100, -1):
        if all(_least(slack(2.0**e * one)) > 0 for slack in slacks):
            if e == 100:  # not even a multiple of the identity ends
                raise ValueError(f"{type(budget).__name__} is unbounded: {2.0**e:.3g}·I is within all its constraints")
            return zero if not budget.signed else 2.0 ** (e - 1) * one
    worst = min((_least(slack(2.0**-99 * one)), number) for number, slack in enumerate(slacks))
    raise ValueError(
        f"{type(budget).__name__}: no ε·I is strictly inside; constraint {worst[1]} has slack {worst[0]:.3g} at "
        f"{2.0**-99:.3g}·I. A set inside a subspace needs a closed form or a projection"
    )


def _least(slack: Tensor) -> float:
    return float(torch.linalg.eigvalsh(slack)[0]) if slack.ndim == 2 else float(slack.min())


def _directions(budget: Budget, m: Tensor) -> Tensor:  # -> (k, *d)
    """An orthonormal basis of symmetric matrices, or of vectors."""
    d = m.shape[-1]
    if budget.kind != "matrix":
        size = math.prod(m.shape[1:])
        return torch.eye(size, dtype=m.dtype).reshape(size, *m.shape[1:])
    i, j = torch.triu_indices(d, d)
    out = torch.zeros(len(i), d, d, dtype=m.dtype)
    out[torch.arange(len(i)), i, j] = out[torch.arange(len(i)), j, i] = torch.where(i == j, 1.0, 0.5**0.5).to(m)
    return out


# ---- maximizer from a projection


def _push(budget: Budget, m: Tensor) -> Tensor:  # (n, *d) -> (n, *d)
    """X = project(α·M): ⟨X, M⟩ ≥ P*(M) - ‖Q*‖²/2α, because X is the nearest point to α·M."""
    size = torch.linalg.vector_norm(m.flatten(1), dim=1)
    unit = m / _like(torch.where(size > 0, size, 1), m)
    alpha = torch.ones_like(size)
    for _ in range(60):
        x = budget.project(unit * _like(alpha, m))
        power = (x * unit).flatten(1).sum(1)
        reach = x.flatten(1).square().sum(1)
        short = alpha * power * 0.1 * TOLERANCE < reach
        if bool((~short | (alpha > 1e13)).all()):
            break
        alpha = torch.where(short, alpha * 8, alpha)
    useful = power > 1e-9 * reach.sqrt()
    x = torch.where(_like(useful, m), x, 0)
    size = budget.gauge(x)
    # On the boundary, for a support that is exactly the power of a point of gauge 1.
    return torch.where(_like(useful, m), x / _like(torch.where(useful, size, 1), m), 0)


# ---- from a gauge or a maximizer: BFGS, which copes with kinks


def _maximizer_from_gauge(budget: Budget, m: Tensor) -> Tensor:
    return torch.stack([_best_by_gauge(budget, each) for each in m])


def _best_by_gauge(budget: Budget, m: Tensor) -> Tensor:  # (*d) -> (*d)
    def operator(z: Tensor) -> Tensor:
        z = z.reshape(m.shape)
        return z @ z.mT if budget.kind == "matrix" else z.square() if budget.kind == "diagonal" else z

    def loss(z: Tensor) -> Tensor:
        q = operator(z)
        return budget.gauge(q).log() - (q * m).sum().log()

    if budget.kind == "matrix":
        s, u = torch.linalg.eigh(m)
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


def _gauge_from_maximizer(budget: Budget, q: Tensor) -> Tensor:
    return torch.stack([_size_by_maximizer(budget, each) for each in q])


def _size_by_maximizer(budget: Budget, q: Tensor) -> Tensor:  # (*d) -> ()
    """max ⟨Q, M⟩ over P*(M) ≤ 1, the gauge of the polar's polar: a lower bound that BFGS makes tight."""
    from normgeo.budgets.base import below_zero

    if not q.any():
        return q.new_zeros(())
    if budget.signed and bool(below_zero(torch.linalg.eigvalsh(q) if budget.kind == "matrix" else q).any()):
        return q.new_full((), torch.inf)
    directions = _directions(budget, q.unsqueeze(0))

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

    one = torch.eye(len(x), dtype=x.dtype)
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


# ---- projection from a maximizer


def _frank_wolfe(budget: Budget, q: Tensor) -> Tensor:  # (n, *d) -> (n, *d)
    """The nearest point by pairwise Frank-Wolfe steps; the duality gap ⟨Q - X, V - X⟩ bounds ½‖X - X*‖²."""
    return torch.stack([_nearest(budget, each) for each in q])


def _nearest(budget: Budget, q: Tensor, iterations: int = 2000) -> Tensor:
    atoms, weights = [torch.zeros_like(q)], [1.0]
    x = torch.zeros_like(q)
    for _ in range(iterations):
        towards = q - x
        best = budget.maximizer(towards)
        if float((towards * (best - x)).sum()) <= TOLERANCE**2 * float(q.square().sum()):
            break
        gains = [float((towards * atom).sum()) for atom in atoms]
        worst = min(range(len(atoms)), key=gains.__getitem__)
        direction = best - atoms[worst]
        length = float((towards * direction).sum() / direction.square().sum().clamp_min(1e-300))
        length = min(max(length, 0.0), weights[worst])
        x = x + length * direction
        weights[worst] -= length
        atoms.append(best)
        weights.append(length)
        kept = [k for k, w in enumerate(weights) if w > 0]
        atoms, weights = [atoms[k] for k in kept], [weights[k] for k in kept]
    return x


def _like(x: Tensor, q: Tensor) -> Tensor:
    return x.reshape(x.shape + (1,) * (q.ndim - x.ndim))
