"""Ellipsoids in the metric of the data: the family of AdaGrad, Shampoo and natural gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.base import Budget
from normgeo.budgets.checks import positive
from normgeo.budgets.combinators import Intersection, Scaled, Sum
from normgeo.budgets.ellipsoid import Ellipsoid
from normgeo.budgets.invariant import Invariant
from normgeo.linalg import eigh

__all__ = ["DataMetric", "on_values"]


@dataclass(frozen=True)
class DataMetric:
    """{Q ≽ 0 : tr(Q Mᵖ Q) ≤ B}, its metric a power of the moment that it is asked about;  Q* ∝ M^{1-p} on the range of M.

    p = 1 is Cor. 2(iii) of the budget theory: the same gain in every direction that the gradient has, which whitens nothing
    (X0-4). p = 3/2 gives M^{-1/2} (RMSProp on a diagonal, Shampoo in full or Kronecker form), p = 2 gives M⁻¹ (natural
    gradient). Since the set moves with M this is a family of budgets, `at(M)` one of them; its power √(B·tr M^{2-p}) is no
    support function. damping: this share of the mean eigenvalue is added to all.

    >>> m = torch.diag(torch.tensor([1.0, 4.0]))
    >>> DataMetric(power=2.0, B=2.0).at(m).maximizer(m)
    tensor([[1.0000, 0.0000],
            [0.0000, 0.2500]])
    """

    power: float = 1.0
    B: float = 1.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        positive("DataMetric", power=self.power, B=self.B)
        if not 0 <= self.damping < float("inf"):
            raise ValueError(f"DataMetric: damping must be a finite number ≥ 0, got {self.damping}")

    def at(self, m: Tensor) -> Ellipsoid:  # (d, d)
        """The budget whose metric is Mᵖ."""
        s, u = eigh(m)
        s, live = self._values(s)
        return Ellipsoid((u * torch.where(live, torch.where(live, s, 1) ** self.power, 0)) @ u.mT, self.B)

    def allocate(self, s: Tensor) -> Tensor:  # (*b, d) -> (*b, d)
        """The eigenvalues of the best operator, from those of the moment."""
        s, live = self._values(s)
        s = torch.where(live, s, 1)
        top = torch.where(live, s, 0).amax(-1, keepdim=True)
        s = s / torch.where(top > 0, top, 1)  # only ratios matter to the direction; powers of them do not overflow
        q = torch.where(live, s ** (1 - self.power), 0)
        cost = (q.square() * s**self.power).sum(-1, keepdim=True) * torch.where(top > 0, top, 1) ** self.power
        return q * (self.B / torch.where(cost > 0, cost, 1)).sqrt()

    def _values(self, s: Tensor) -> tuple[Tensor, Tensor]:
        s = s.clamp_min(0)
        s = s + self.damping * s.mean(-1, keepdim=True)
        return s, s > 16 * s.shape[-1] ** 0.5 * torch.finfo(s.dtype).eps * s.amax(-1, keepdim=True)


def on_values(budget: Budget | DataMetric) -> Callable[[Tensor], Tensor] | None:
    """The best operator that is diagonal in the basis of a moment, as a function of the moment's eigenvalues (n, k); None
    for budgets that are about whole matrices, whose best operator need not be diagonal there.

    >>> from normgeo.budgets import Frobenius
    >>> on_values(2 * Frobenius())(torch.tensor([[3.0, 4.0]]))
    tensor([[1.2000, 1.6000]])
    """
    if isinstance(budget, Invariant | DataMetric):
        return budget.allocate
    if isinstance(budget, Scaled):
        best, factor = on_values(budget.inner), budget.factor
        return None if best is None else lambda s: factor * best(s)
    if isinstance(budget, Intersection) and budget.values is not None:
        return budget.values.maximizer
    if isinstance(budget, Sum):
        parts = [part for part in map(on_values, budget.members) if part is not None]
        return None if len(parts) < len(budget.members) else lambda s: torch.stack([part(s) for part in parts]).sum(0)
    return budget.maximizer if budget.kind == "diagonal" else None
