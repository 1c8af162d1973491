"""Budgets that see only the eigenvalues of Q: the best Q shares the eigenvectors of M."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.barrier import Constraint
from normgeo.budgets.base import Budget, checked, floating, inner
from normgeo.budgets.shapes import below_zero
from normgeo.linalg import eigh, eigvalsh

__all__ = ["Invariant", "OnDiagonal"]


class Invariant(Budget, ABC):
    """𝒬 = {Q ≽ 0 : eigenvalues of Q in a set that no permutation changes}. A subclass gives the set.

    ⟨Q, M⟩ ≤ Σ qᵢ·sᵢ over eigenvalues in descending order (von Neumann's trace inequality), with equality for equal
    eigenvectors: so everything is a matter of vectors q ≥ 0, and one eigendecomposition lifts it to matrices.

    >>> class Cap(Invariant):
    ...     def size(self, q): return q.amax(-1)
    ...     def allocate(self, s): return (s > 0).to(s)
    >>> Cap().maximizer(torch.diag(torch.tensor([3.0, -1.0])))
    tensor([[1., 0.],
            [0., 0.]])
    """

    @abstractmethod
    def size(self, q: Tensor) -> Tensor:  # (*b, d) -> (*b,)
        """The gauge of operators with eigenvalues q ≥ 0, in any order."""

    @abstractmethod
    def allocate(self, s: Tensor) -> Tensor:  # (*b, d) -> (*b, d)
        """The eigenvalues of the best operator, given those of the moment, in any order and of any sign."""

    def gauge(self, q: Tensor) -> Tensor:
        values = eigvalsh(floating(q, self))
        return torch.where(below_zero(values), torch.inf, self.size(values.clamp_min(0)))

    def support(self, m: Tensor) -> Tensor:
        s = eigvalsh(checked(m, self))
        return (self.allocate(s.detach()) * s).sum(-1)

    def maximizer(self, m: Tensor) -> Tensor:
        s, u = eigh(checked(m, self))
        return ((u * self.allocate(s).unsqueeze(-2)) @ u.mT).to(m.dtype)


@dataclass(frozen=True)
class OnDiagonal(Budget):
    """{q ≥ 0 : diag(q) ∈ inner}: what an invariant budget leaves to diagonal operators, without ever forming one.

    >>> from normgeo.budgets import Spectral
    >>> OnDiagonal(Spectral(trace=1.5, cap=1.0)).maximizer(torch.tensor([1.0, 3.0, 2.0]))
    tensor([0.0000, 1.0000, 0.5000])
    """

    inner: Invariant
    kind = "diagonal"

    def gauge(self, q: Tensor) -> Tensor:
        q = floating(q, self)
        return torch.where(below_zero(q), torch.inf, self.inner.size(q.clamp_min(0)))

    def support(self, m: Tensor) -> Tensor:
        return inner(self.inner.allocate(checked(m.detach(), self)), m, 1)

    def constraints(self) -> Sequence[Constraint]:
        return self.inner.constraints()

    def maximizer(self, m: Tensor) -> Tensor:
        return self.inner.allocate(checked(m, self)).to(m.dtype)
