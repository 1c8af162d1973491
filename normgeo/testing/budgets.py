"""The laws of budgets (the conjugacy theorem of budgets, items i to v), on the domain Q ≽ 0."""

from __future__ import annotations

import torch
from torch import Tensor

from normgeo.budgets import Budget
from normgeo.budgets.base import below_zero, inner

__all__ = ["check_budget"]

EXACT = 1e-9
POINTS = 1000


def check_budget(budget: Budget, dim: int = 8, *, seed: int = 0, tol: float | None = None) -> None:
    """All laws of `Budget`, in float64, on moments of every sign and rank; the counterexample is in the error.

    tol: relative tolerance, by default 1e-9, or the budget's own `tolerance` where it is completed numerically.

    >>> from normgeo.budgets import Spectral
    >>> check_budget(Spectral(trace=1.0, cap=0.3), dim=5)
    """
    laws = _Laws(budget, dim, seed, max(EXACT, 4 * getattr(budget, "tolerance", 0.0)) if tol is None else tol)
    for name, m in laws.moments.items():
        laws.attained(name, m)
    laws.never_beaten()
    laws.sublinear()
    laws.conjugate()
    laws.subgradient()
    laws.order()
    laws.lipschitz()
    laws.domain()
    laws.batch()
    laws.bad_input()


class _Laws:
    def __init__(self, budget: Budget, dim: int, seed: int, tol: float) -> None:
        self.budget, self.tol = budget, tol
        self.generator = torch.Generator().manual_seed(seed)
        core = 2 if budget.kind == "matrix" else 1
        self.shape = (2,) * (budget.ndim - core) + (dim,) * core
        if budget.kind == "step":
            self.shape = (dim,) * budget.ndim
        self.moments = {
            "positive": self.positive(),
            "low rank": self.positive(rank=1),
            "indefinite": self.signed(),
            "negative": -self.positive(),
            "the identity": self.identity(),
        }
        self.maximizers = torch.stack([budget.maximizer(m) for m in self.moments.values()])
        self.supports = torch.stack([budget.support(m) for m in self.moments.values()])

    # ---- samples

    def gaussian(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def signed(self) -> Tensor:
        x = self.gaussian(*self.shape)
        return x + x.mT if self.budget.kind == "matrix" else x

    def positive(self, rank: int | None = None) -> Tensor:
        """≽ 0, with eigenvalues over a few decades."""
        x = self.gaussian(*self.shape) * torch.logspace(0, -1.5, self.shape[-1], dtype=torch.float64)
        if rank is not None:
            x[..., rank:] = 0
        return x @ x.mT if self.budget.kind == "matrix" else x.square() if self.budget.kind == "diagonal" else x

    def identity(self) -> Tensor:
        one = torch.ones(self.shape, dtype=torch.float64)
        return one * torch.eye(self.shape[-1], dtype=torch.float64) if self.budget.kind == "matrix" else one

    def feasible(self) -> Tensor:  # (POINTS, *shape)
        """Points of the budget: random operators brought to its boundary, and mixtures of its extreme points."""
        raw = torch.stack([self.positive(None if k % 2 else 1 + k % 3) for k in range(POINTS // 2)])
        size = self.budget.gauge(raw)
        weights = self.gaussian(POINTS - len(raw), len(self.maximizers)).square()
        weights = weights / weights.sum(1, keepdim=True)
        mixed = torch.tensordot(weights, self.maximizers, dims=1)
        return torch.cat([raw / self.spread(torch.where(size > 0, size, 1)), mixed])

    def spread(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape + (1,) * self.budget.ndim)

    # ---- laws

    def power(self, q: Tensor, m: Tensor) -> Tensor:
        return inner(q, m, self.budget.ndim)

    def attained(self, name: str, m: Tensor) -> None:
        q, best = self.budget.maximizer(m), self.budget.support(m)
        size = self.budget.gauge(q)
        self.close("⟨maximizer(M), M⟩ = support(M)", self.power(q, m), best, m)
        scale = m.abs().max() * q.abs().max()
        assert best >= -self.tol * scale, f"support(M) = {best:.6g} < 0, but 0 is in the budget; M ({name}) = {m}"
        assert size <= 1 + self.tol, f"gauge(maximizer(M)) = {size:.12g} > 1 for M ({name}) = {m}"
        if best > 1e-6 * m.abs().max() * q.abs().max():
            self.close("gauge(maximizer(M)) = 1 where support(M) > 0", size, 1.0, m)
        if self.budget.kind != "step":
            values = torch.linalg.eigvalsh(q) if self.budget.kind == "matrix" else q
            assert not below_zero(values).any(), f"maximizer(M) is not ≽ 0 for M ({name}) = {m}"
        assert not self.budget.maximizer(0 * m).any(), "maximizer(0) is not 0"

    def never_beaten(self) -> None:
        points = self.feasible()
        size = self.budget.gauge(points)
        worst = int(torch.where(size.isfinite(), size, 0).argmax())
        assert bool(((size <= 1 + self.tol) | size.isinf()).all()), (
            f"a mixture of points of the budget has gauge {size[worst]:.12g}: it is not convex. Q = {points[worst]}"
        )
        points = points[size.isfinite()]
        for name, m in self.moments.items():
            gains, best = self.power(points, m), self.budget.support(m)
            slack = self.tol * (best.abs() + gains.abs().max())
            k = int(gains.argmax())
            assert gains[k] <= best + slack, (
                f"support(M) = {best:.12g} is beaten: ⟨Q, M⟩ = {gains[k]:.12g} for M ({name}) = {m} and Q = {points[k]}"
            )

    def sublinear(self) -> None:
        m, n = self.moments["indefinite"], self.moments["positive"]
        for c in (0.3, 7.0):
            self.close("support(c·M) = c·support(M)", self.budget.support(c * m), c * self.budget.support(m), m)
            q = self.maximizers[0]
            self.close("gauge(c·Q) = c·gauge(Q)", self.budget.gauge(c * q), c * self.budget.gauge(q), q)
        both, sum_of = self.budget.support(m + n), self.budget.support(m) + self.budget.support(n)
        assert both <= sum_of + self.tol * sum_of.abs(), f"support(M + N) = {both} > {sum_of} for M = {m}, N = {n}"
        p, q = self.maximizers[0], self.maximizers[2]
        size = self.budget.gauge(p + q)
        bound = self.budget.gauge(p) + self.budget.gauge(q)
        assert size <= bound * (1 + self.tol), f"gauge(P + Q) = {size} > {bound} for P = {p}, Q = {q}"

    def conjugate(self) -> None:
        """⟨Q, M⟩ ≤ gauge·support; and sup ⟨Q, M⟩ - gauge(Q) is 0 where support(M) ≤ 1, else unbounded."""
        points = self.feasible() * self.spread(self.gaussian(POINTS).square())
        size = self.budget.gauge(points)
        points, size = points[size.isfinite()], size[size.isfinite()]
        for name, m in self.moments.items():
            best = self.budget.support(m)
            gain = self.power(points, m)
            slack = self.tol * (1 + gain.abs() + size * best.abs())
            k = int((gain - size * best - slack).argmax())
            assert gain[k] <= size[k] * best + slack[k], (
                f"⟨Q, M⟩ = {gain[k]:.12g} > gauge(Q)·support(M) = {size[k] * best:.12g} "
                f"for M ({name}) = {m}, Q = {points[k]}"
            )
            if best > 1e-6 * m.abs().max():
                q = self.budget.maximizer(m)
                outside = 2 * m / best  # support 2: the conjugate of the gauge grows without bound along its maximizer
                grown = [float(self.power(t * q, outside) - self.budget.gauge(t * q)) for t in (1.0, 10.0)]
                self.close("sup ⟨Q, M⟩ - gauge(Q) = ∞ outside the polar", torch.tensor(grown[1]), 10 * grown[0], m)

    def subgradient(self) -> None:
        others = [self.signed() for _ in range(4)] + list(self.moments.values())
        for name, m in self.moments.items():
            q, best = self.budget.maximizer(m), self.budget.support(m)
            for n in others:
                lower, there = best + self.power(q, n - m), self.budget.support(n)
                slack = self.tol * (1 + best.abs() + there.abs() + lower.abs())
                assert there >= lower - slack, (
                    f"maximizer(M) is not a subgradient of support at M ({name}): support(N) = {there:.12g} < "
                    f"{lower:.12g} for M = {m}, N = {n}"
                )
            x = m.clone().requires_grad_()
            value = self.budget.support(x)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value, x)
                self.close("the derivative of support = maximizer", self.power(slope, m), best, m)
                if name in ("positive", "indefinite"):
                    self.close("the derivative of support = maximizer", _symmetric(slope, self.budget), q, m)

    def order(self) -> None:
        if self.budget.kind == "step":
            return
        for name, n in self.moments.items():
            low, high = self.budget.support(n), self.budget.support(n + self.positive(rank=2))
            assert high >= low - self.tol * (1 + low.abs()), (
                f"M ≽ N ({name}), but support(M) = {high:.12g} < support(N) = {low:.12g} for N = {n}"
            )

    def lipschitz(self) -> None:
        for m in self.moments.values():
            n = m + 0.1 * self.signed()
            gap = (self.budget.support(m) - self.budget.support(n)).abs()
            bound = torch.maximum(self.budget.support(m - n), self.budget.support(n - m))
            assert gap <= bound + self.tol * (1 + bound), f"|P*(M) - P*(N)| = {gap} > {bound} for M = {m}, N = {n}"

    def domain(self) -> None:
        zero = torch.zeros(self.shape, dtype=torch.float64)
        assert self.budget.gauge(zero) == 0, f"gauge(0) = {self.budget.gauge(zero)}, but 0 is in every budget"
        if self.budget.kind != "step":
            q = -self.positive()
            assert self.budget.gauge(q) == torch.inf, f"gauge(Q) = {self.budget.gauge(q)} for Q = {q}, which is not ≽ 0"

    def batch(self) -> None:
        ms = torch.stack(list(self.moments.values()))
        for name, function, alone in (
            ("maximizer", self.budget.maximizer(ms), self.maximizers),
            ("support", self.budget.support(ms), self.supports),
            ("gauge", self.budget.gauge(self.maximizers), torch.stack([self.budget.gauge(q) for q in self.maximizers])),
        ):
            self.close(f"{name} of a batch", function, alone, ms)
        low = self.budget.maximizer(ms.float())
        assert low.dtype == torch.float32, f"maximizer of a float32 moment has dtype {low.dtype}"
        assert bool(low.isfinite().all()), "maximizer is not finite in float32"

    def bad_input(self) -> None:
        nan = self.moments["positive"].clone()
        nan.flatten()[0] = torch.nan
        bad = {"with a NaN in it": nan}
        if self.budget.kind == "matrix" and self.shape[-1] > 1:
            bad["that is not symmetric"] = self.gaussian(*self.shape)
            bad["that is not square"] = self.moments["positive"][..., :-1]
        for what, m in bad.items():
            try:
                self.budget.maximizer(m)
            except ValueError:
                continue
            raise AssertionError(f"maximizer takes a moment {what}; begin it with m = normgeo.budgets.checked(m, self)")

    def close(self, law: str, got: Tensor, wanted: Tensor | float, at: Tensor) -> None:
        wanted = torch.as_tensor(wanted, dtype=got.dtype)
        near = torch.allclose(got, wanted, rtol=self.tol, atol=self.tol * float(wanted.abs().max()))
        assert near, f"{law} fails: {got} against {wanted}, at {at}"


def _symmetric(x: Tensor, budget: Budget) -> Tensor:
    return (x + x.mT) / 2 if budget.kind == "matrix" else x
