"""The laws of budgets (the conjugacy theorem of budgets, items i to v), on the domain Q ≽ 0."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from normgeo.budgets import Budget, Dynamic
from normgeo.budgets.base import inner
from normgeo.budgets.shapes import FREE, below_zero, own

__all__ = ["check_budget"]

EXACT = 1e-9
POINTS = 1000


def check_budget(budget: Budget, dim: int = 8, *, seed: int = 0, tol: float | None = None) -> None:
    """All laws of `Budget`, in float64, on moments of every sign and rank; the counterexample is in the error.

    tol: relative tolerance, by default 1e-9, or the budget's own `tolerance` where it is completed numerically.

    >>> from normgeo.budgets import Spectral
    >>> check_budget(Spectral(trace=1.0, cap=0.3), dim=5)
    """
    laws = _Laws(budget, dim, seed, max(EXACT, 4 * budget.tolerance) if tol is None else tol)
    laws.attained()
    laws.points = laws.feasible()
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
        self.cone = budget.kind not in FREE
        if not self.cone:
            self.shape = (dim,) * budget.ndim
        # Of filters, the operators at each lag may be symmetric matrices, and the sign is that of the response.
        filters = budget if isinstance(budget, Dynamic) else None
        self.symmetric = budget.kind == "matrix" or (filters is not None and filters.symmetric)
        self.passive = filters is not None and filters.passive
        self.names = ("positive", "low rank", "indefinite", "negative", "the identity")
        self.moments = torch.stack(
            [self.positive(), self.positive(rank=1), self.signed(), -self.positive(), self.identity()]
        )
        self.maximizers = budget.maximizer(self.moments)
        # The default is ⟨maximizer(M), M⟩, and its derivative the maximizer: nothing to check, and perhaps dear to ask.
        self.own_support = own(budget, "support")
        self.supports = budget.support(self.moments) if self.own_support else self.power(self.maximizers, self.moments)
        self.sizes = budget.gauge(self.maximizers)
        self.points = self.maximizers

    def cases(self) -> Iterator[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
        """name, M, maximizer(M), support(M), gauge(maximizer(M))."""
        return zip(self.names, self.moments, self.maximizers, self.supports, self.sizes, strict=True)

    # ---- samples

    def gaussian(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def signed(self) -> Tensor:
        x = self.gaussian(*self.shape)
        return x + x.mT if self.symmetric else x

    def positive(self, rank: int | None = None) -> Tensor:
        """≽ 0, with eigenvalues over a few decades."""
        x = self.gaussian(*self.shape) * torch.logspace(0, -1.5, self.shape[-1], dtype=torch.float64)
        if rank is not None:
            x[..., rank:] = 0
        if self.passive:
            return self.correlations(x)
        if not self.cone:
            return x + x.mT if self.symmetric else x
        return x @ x.mT if self.budget.kind == "matrix" else x.square()

    def correlations(self, x: Tensor) -> Tensor:
        """Σ x[n] x[n-k]ᵀ of streams that begin and end: ≽ 0 at every frequency, as lag moments are."""
        past = torch.stack([torch.cat([0 * x[:k], x[: len(x) - k]]) for k in range(len(x))])
        if not self.symmetric:
            return (x * past).sum(1)
        r = (x @ past.mT).sum(1)
        return (r + r.mT) / 2

    def identity(self) -> Tensor:
        one = torch.ones(self.shape, dtype=torch.float64)
        return one * torch.eye(self.shape[-1], dtype=torch.float64) if self.symmetric else one

    def feasible(self) -> Tensor:  # (about POINTS, *shape)
        """Points of the budget: random operators brought to its boundary, and mixtures of its extreme points."""
        searched = not any(own(self.budget, name) for name in ("gauge", "constraints", "project"))
        count = 6 if searched else POINTS // 2
        raw = torch.stack([self.positive(None if k % 2 else 1 + k % 3) for k in range(count)])
        size = self.budget.gauge(raw)
        raw = raw[size.isfinite()] / self.spread(size[size.isfinite()].clamp_min(1e-300))
        weights = self.gaussian(POINTS // 2, len(self.maximizers)).square()
        mixed = torch.tensordot(weights / weights.sum(1, keepdim=True), self.maximizers, dims=1)
        size = self.budget.gauge(mixed[:6] if searched else mixed)
        worst = int(size.argmax())
        assert size[worst] <= 1 + self.tol, (
            f"a mixture of points of the budget has gauge {size[worst]:.12g}: it is not convex. Q = {mixed[worst]}"
        )
        return torch.cat([raw, mixed])

    def spread(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape + (1,) * self.budget.ndim)

    # ---- laws

    def power(self, q: Tensor, m: Tensor) -> Tensor:
        return inner(q, m, self.budget.ndim)

    def attained(self) -> None:
        for name, m, q, best, size in self.cases():
            self.close("⟨maximizer(M), M⟩ = support(M)", self.power(q, m), best, m)
            scale = m.abs().max() * q.abs().max()
            assert best >= -self.tol * scale, f"support(M) = {best:.6g} < 0, but 0 is in the budget; M ({name}) = {m}"
            assert size <= 1 + self.tol, f"gauge(maximizer(M)) = {size:.12g} > 1 for M ({name}) = {m}"
            if best > 1e-6 * scale:
                self.close("gauge(maximizer(M)) = 1 where support(M) > 0", size, 1.0, m)
            if self.cone:
                values = torch.linalg.eigvalsh(q) if self.budget.kind == "matrix" else q
                assert not below_zero(values).any(), f"maximizer(M) is not ≽ 0 for M ({name}) = {m}"
        assert not self.budget.maximizer(torch.zeros_like(self.moments[0])).any(), "maximizer(0) is not 0"

    def never_beaten(self) -> None:
        for name, m, _, best, _ in self.cases():
            gains = self.power(self.points, m)
            k = int(gains.argmax())
            assert gains[k] <= best + self.tol * (best.abs() + gains.abs().max()), (
                f"support(M) = {best:.12g} is beaten: ⟨Q, M⟩ = {gains[k]:.12g} for M ({name}) = {m} and "
                f"Q = {self.points[k]}"
            )

    def sublinear(self) -> None:
        m, n = self.moments[2], self.moments[0]
        third, more, both = self.budget.support(torch.stack([0.3 * m, 7 * m, m + n]))
        self.close("support(c·M) = c·support(M)", torch.stack([third / 0.3, more / 7]), self.supports[2], m)
        bound = self.supports[0] + self.supports[2]
        assert both <= bound + self.tol * bound.abs(), f"support(M + N) = {both} > {bound} for M = {m}, N = {n}"
        p, q = self.maximizers[0], self.maximizers[2]
        third, more, both = self.budget.gauge(torch.stack([0.3 * p, 7 * p, p + q]))
        self.close("gauge(c·Q) = c·gauge(Q)", torch.stack([third / 0.3, more / 7]), self.sizes[0], p)
        bound = self.sizes[0] + self.sizes[2]
        assert both <= bound * (1 + self.tol), f"gauge(P + Q) = {both} > {bound} for P = {p}, Q = {q}"

    def conjugate(self) -> None:
        """⟨Q, M⟩ ≤ gauge·support; and sup ⟨Q, M⟩ - gauge(Q) is 0 where support(M) ≤ 1, else unbounded."""
        stretch = self.gaussian(len(self.points)).square()
        for name, m, q, best, size in self.cases():
            gain = self.power(self.points, m) * stretch
            slack = self.tol * (stretch + gain.abs() + stretch * best.abs())
            k = int((gain - stretch * best - slack).argmax())
            assert gain[k] <= stretch[k] * best + slack[k], (
                f"⟨Q, M⟩ = {gain[k]:.12g} > gauge(Q)·support(M) for M ({name}) = {m}, Q = {stretch[k] * self.points[k]}"
            )
            if best > 1e-6 * m.abs().max() * q.abs().max():
                # Twice the border of the polar: along its maximizer the conjugate grows without bound.
                grown = self.power(10 * q, 2 * m / best) - 10 * size
                self.close("sup ⟨Q, M⟩ - gauge(Q) = ∞ outside the polar", grown, 10.0, m)

    def subgradient(self) -> None:
        signed = torch.stack([self.signed() for _ in range(4)])
        others, values = torch.cat([self.moments, signed]), torch.cat([self.supports, self.budget.support(signed)])
        slopes = self.maximizers
        if self.own_support:
            x = self.moments.clone().requires_grad_()
            value = self.budget.support(x)
            slopes = torch.autograd.grad(value.sum(), x)[0] if value.requires_grad else slopes
        for (name, m, q, best, _), slope in zip(self.cases(), slopes, strict=True):
            lower = best + self.power(q, others - m)
            slack = self.tol * (1 + best.abs() + values.abs() + lower.abs())
            k = int((lower - values - slack).argmax())
            assert values[k] >= lower[k] - slack[k], (
                f"maximizer(M) is not a subgradient of support at M ({name}): support(N) = {values[k]:.12g} < "
                f"{lower[k]:.12g} for M = {m}, N = {others[k]}"
            )
            self.close("the derivative of support along M is support", self.power(slope, m), best, m)
            if name in ("positive", "indefinite"):  # elsewhere there may be several maximizers
                self.close(
                    "the derivative of support = maximizer", (slope + slope.mT) / 2 if self.symmetric else slope, q, m
                )

    def order(self) -> None:
        if not (self.cone or self.passive):
            return
        more = torch.stack([self.positive(rank=2) for _ in self.names])
        for (name, n, _, low, _), high in zip(self.cases(), self.budget.support(self.moments + more), strict=True):
            assert high >= low - self.tol * (1 + low.abs()), (
                f"M ≽ N ({name}), but support(M) = {high:.12g} < support(N) = {low:.12g} for N = {n}"
            )

    def lipschitz(self) -> None:
        change = torch.stack([0.1 * self.signed() for _ in self.names])
        near, up, down = self.budget.support(torch.cat([self.moments + change, change, -change])).chunk(3)
        for (name, m, _, best, _), n, a, b in zip(self.cases(), near, up, down, strict=True):
            bound = torch.maximum(a, b)
            gap = (best - n).abs()
            slack = self.tol * (1 + bound + best.abs())
            assert gap <= bound + slack, f"|P*(M) - P*(N)| = {gap} > {bound} for M ({name}) = {m}"

    def domain(self) -> None:
        zero = self.budget.gauge(torch.zeros_like(self.moments[0]))
        assert zero == 0, f"gauge(0) = {zero}, but 0 is in every budget"
        if self.cone or self.passive:
            q = -self.positive()
            assert self.budget.gauge(q) == torch.inf, f"gauge(Q) = {self.budget.gauge(q)} for Q = {q}, which is not ≽ 0"

    def batch(self) -> None:
        m = self.moments[2]
        self.close("maximizer of a batch", self.maximizers[2], self.budget.maximizer(m), m)
        if self.own_support:
            self.close("support of a batch", self.supports[2], self.budget.support(m), m)
        self.close("gauge of a batch", self.sizes[2], self.budget.gauge(self.maximizers[2]), m)
        low = self.budget.maximizer(self.moments.float())
        assert low.dtype == torch.float32, f"maximizer of a float32 moment has dtype {low.dtype}"
        assert bool(low.isfinite().all()), "maximizer is not finite in float32"

    def bad_input(self) -> None:
        nan = self.moments[0].clone()
        nan.flatten()[0] = torch.nan
        bad = {"with a NaN in it": nan}
        if self.budget.kind == "matrix" and self.shape[-1] > 1:
            bad["that is not symmetric"] = self.gaussian(*self.shape)
            bad["that is not square"] = self.moments[0][..., :-1]
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
