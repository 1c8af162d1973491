"""The dynamic budget: a convex set of causal filters."""

from __future__ import annotations

import torch
from torch import Tensor

from normgeo.budgets.base import Budget, checked, floating
from normgeo.budgets.shapes import Kind

__all__ = ["Dynamic"]


class Dynamic(Budget):
    """A budget on causal filters θ̇[n] = Σ_k Q[k] g[n-k], k = 0, 1, ..., K-1: lags are the first axis of a filter, so
    it is (K, d) for diagonal operators and (K, d, d) for symmetric ones.

    The learning power is ⟨Q, R⟩ = Σ_k tr(Q[k] R[k]) for the lag moments R[k] = E[g[n] g[n-k]ᵀ] of stationary gradients.
    Only their symmetric parts matter to symmetric Q[k]. The laws are those of `Budget`. That Q[k] ≽ 0 is not asked: a
    lag has no reason to (R[k] = (-.9)ᵏ is a moment, X0-3). Where a budget is `passive`, Re Q(ω) ≽ 0 is asked for every
    frequency.

    >>> from normgeo.budgets import DynamicFrobenius
    >>> isinstance(DynamicFrobenius(), Dynamic)
    True
    """

    kind: Kind = "filter"
    passive: bool = False
    hilbert: bool = False
    """whether the cost is a sum over lags of one quadratic form, so that the size of a[k]·P is ‖a‖₂ times that of P"""

    @property
    def ndim(self) -> int:
        return 3

    @property
    def symmetric(self) -> bool:
        """Whether the last two axes of a filter are symmetric matrices, not diagonals of them."""
        return self.ndim == 3

    def moments(self, r: Tensor) -> Tensor:
        """Lag moments, checked, and symmetric where the operators are."""
        r = checked(r, self)
        return (r + r.mT) / 2 if self.symmetric else r

    def filters(self, q: Tensor) -> tuple[Tensor, Tensor]:  # -> (*b, *d), (*b,)
        """Filters, and whether they are outside whatever their size, because they are not symmetric."""
        q = floating(q, self)
        axes = tuple(range(-self.ndim, 0))
        if not self.symmetric:
            return q, torch.zeros(q.shape[: q.ndim - self.ndim], dtype=torch.bool, device=q.device)
        noise = 64 * q.shape[-1] * torch.finfo(q.dtype).eps
        return (q + q.mT) / 2, (q - q.mT).abs().amax(axes) > noise * q.abs().amax(axes)
