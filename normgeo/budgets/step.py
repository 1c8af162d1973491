"""Budgets on the step θ̇ itself: any norm as a trust region, or as a penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from normgeo.budgets.barrier import Constraint
from normgeo.budgets.base import Budget, checked, floating
from normgeo.budgets.checks import positive
from normgeo.norms import Norm

__all__ = ["Penalty", "Step"]


@dataclass(frozen=True)
class Step(Budget):
    """{θ̇ : ‖θ̇‖ ≤ τ}, the trust region of a norm;  θ̇* = τ·dualize(g),  support(g) = τ·‖g‖*.

    Infinity norm: sign descent. Spectral norm: τ·UVᵀ. ‖·‖_H: Newton's direction at a fixed ‖θ̇‖_H.

    >>> import torch
    >>> from normgeo.norms import Linf
    >>> Step(Linf(), radius=0.5).maximizer(torch.tensor([3.0, -4.0]))
    tensor([ 0.5000, -0.5000])
    """

    norm: Norm
    radius: float = 1.0
    kind = "step"

    def __post_init__(self) -> None:
        positive("Step", radius=self.radius)

    @property
    def ndim(self) -> int:
        return self.norm.ndim

    def gauge(self, q: Tensor) -> Tensor:
        return self.norm.norm(floating(q, self)) / self.radius

    def support(self, m: Tensor) -> Tensor:
        return self.radius * self.norm.dual_norm(checked(m, self))

    def maximizer(self, m: Tensor) -> Tensor:
        return (self.radius * self.norm.dualize(checked(m, self))).to(m.dtype)

    def project(self, q: Tensor) -> Tensor:
        return (self.norm.project(checked(q, self) / self.radius) * self.radius).to(q.dtype)

    def constraints(self) -> Sequence[Constraint]:
        return [lambda q: 1 - self.gauge(q).square()]


@dataclass(frozen=True)
class Penalty:
    """max ⟨Q, M⟩ - λ/2·gauge(Q)²: the budget as a price in place of a limit;  Q = (P*(M)/λ)·maximizer(M), gain P*(M)²/2λ.

    With `Step(norm)` this is the step that minimises the majorisation ⟨g, Δ⟩ + λ/2·‖Δ‖²: (‖g‖*/λ)·dualize(g), for L2
    gradient descent with η = 1/λ (Carlson et al., AISTATS 2015).

    >>> import torch
    >>> from normgeo.norms import Linf
    >>> Penalty(Step(Linf()), sharpness=10.0).maximizer(torch.tensor([3.0, -4.0]))
    tensor([ 0.7000, -0.7000])
    """

    budget: Budget
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        positive("Penalty", sharpness=self.sharpness)

    def maximizer(self, m: Tensor) -> Tensor:  # (*b, *d) -> (*b, *d)
        """The best Q at this price."""
        size = self.budget.support(m) / self.sharpness
        return size.reshape(size.shape + (1,) * self.budget.ndim) * self.budget.maximizer(m)

    def gain(self, m: Tensor) -> Tensor:  # (*b, *d) -> (*b,)
        """What it gains, the price paid."""
        return self.budget.support(m).square() / (2 * self.sharpness)
