"""A static budget at every frequency."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.base import Budget
from normgeo.budgets.dynamic.base import Dynamic
from normgeo.budgets.dynamic.views import density, from_real_part, response, weights

__all__ = ["PerFrequency"]


@dataclass(frozen=True)
class PerFrequency(Dynamic):
    """{Q causal : Re Q(ω_j) ∈ inner for all j},  ω_j = 2πj/(2K-1);  Re Q*(ω) = inner.maximizer(S(ω)), S the spectral
    density of the gradients;  P* = Σ_j w_j·inner.support(S(ω_j)), for K → ∞ the mean over the circle.

    With `Spectral(trace, cap)` this is the per-frequency spectral budget of Cor. 9(ii). The best fill is the sorted
    one; the printed min{λ, max(0, μσ)} is not (X0-6). And a response that is Hermitian at every frequency, as printed,
    is causal only without memory. But power sees the real part alone, and a causal filter may have any: so the budget
    is on that, and the best causal filter has the power of the best two-sided one. Re Q(ω) ≽ 0 makes Q passive: its
    power is ≥ 0 whatever the (stationary) gradients are. Between the frequencies of the grid the constraint may be
    exceeded.

    A tuple gives every frequency 0 ≤ ω_j < π its own budget, that is as many as there are lags.

    >>> from normgeo.budgets import Spectral
    >>> PerFrequency(Spectral(trace=1.0, cap=1.0)).support(torch.eye(2).unsqueeze(0))  # one lag: no memory
    tensor(1.)
    """

    inner: Budget | tuple[Budget, ...]
    passive = True

    def __post_init__(self) -> None:
        members = self._members
        if not members or any(one.kind not in ("matrix", "diagonal") or one.ndim > 2 for one in members):
            raise TypeError(f"PerFrequency takes budgets on matrices or diagonals, got {self.inner!r}")
        if len({one.kind for one in members}) > 1:
            raise TypeError("PerFrequency takes budgets of one kind, got matrices and diagonals")

    @property
    def ndim(self) -> int:
        return 1 + self._members[0].ndim

    @property
    def tolerance(self) -> float:
        return max(one.tolerance for one in self._members)

    def gauge(self, q: Tensor) -> Tensor:
        q, outside = self.filters(q)
        h = response(q, -self.ndim).real
        # What is 0 at one frequency is only 0 up to the rounding of the largest.
        noise = self._noise(h) * h.abs().amax(tuple(range(-self.ndim, 0)), keepdim=True)
        h = h + noise * (torch.eye(h.shape[-1]).to(h) if self.symmetric else 1)
        return torch.where(outside, torch.inf, self._each("gauge", h, -1).amax(-1))

    def support(self, m: Tensor) -> Tensor:
        s = self._density(m)
        return self._each("support", s, -1) @ weights(s.shape[-self.ndim], s)

    def maximizer(self, m: Tensor) -> Tensor:
        return from_real_part(self._each("maximizer", self._density(m), -self.ndim), -self.ndim).to(m.dtype)

    @property
    def _members(self) -> tuple[Budget, ...]:
        return self.inner if isinstance(self.inner, tuple) else (self.inner,)

    def _density(self, m: Tensor) -> Tensor:
        """S(ω_j), with 0 where it is rounding."""
        s = density(self.moments(m), -self.ndim)
        size = s.detach().abs().amax(tuple(range(1 - self.ndim, 0)), keepdim=True)
        return torch.where(size > self._noise(s) * size.amax(-self.ndim, keepdim=True), s, 0)

    def _noise(self, like: Tensor) -> float:
        return 16 * like.shape[-self.ndim] * torch.finfo(like.dtype).eps

    def _each(self, function: str, x: Tensor, dim: int) -> Tensor:
        """A function of the inner budget at every frequency; its results stand on the axis `dim`."""
        if isinstance(self.inner, Budget):
            out: Tensor = getattr(self.inner, function)(x)
            return out
        if len(self.inner) != x.shape[-self.ndim]:
            raise ValueError(
                f"PerFrequency has {len(self.inner)} budgets for {x.shape[-self.ndim]} lags; give one budget for all, "
                f"or as many as there are lags"
            )
        parts = zip(self.inner, x.unbind(-self.ndim), strict=True)
        return torch.stack([getattr(budget, function)(part) for budget, part in parts], dim)
