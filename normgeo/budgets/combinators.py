"""Budgets made of budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.barrier import Constraint
from normgeo.budgets.base import Budget, checked, floating, inner
from normgeo.budgets.checks import positive
from normgeo.budgets.invariant import Invariant
from normgeo.budgets.shapes import TOLERANCE, Kind, below_zero
from normgeo.linalg import eigh, eigvalsh

__all__ = ["Blocks", "Intersection", "Product", "Scaled", "Sum"]


@dataclass(frozen=True)
class Scaled(Budget):
    """c·𝒬 = {c·Q : Q ∈ 𝒬}: c times the power. (For norms 2·N halves the unit ball; here 2·𝒬 is twice the set.)

    >>> from normgeo.budgets import Frobenius
    >>> (2 * Frobenius()).gauge(torch.eye(4))
    tensor(1.)
    """

    inner: Budget
    factor: float

    def __post_init__(self) -> None:
        positive("Scaled", factor=self.factor)

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return self.inner.kind

    @property
    def ndim(self) -> int:
        return self.inner.ndim

    @property
    def tolerance(self) -> float:
        return self.inner.tolerance

    def gauge(self, q: Tensor) -> Tensor:
        return self.inner.gauge(q) / self.factor

    def support(self, m: Tensor) -> Tensor:
        return self.inner.support(m) * self.factor

    def maximizer(self, m: Tensor) -> Tensor:
        return self.inner.maximizer(m) * self.factor

    def project(self, q: Tensor) -> Tensor:
        return self.inner.project(q / self.factor) * self.factor

    def constraints(self) -> Sequence[Constraint]:
        def shrunk(slack: Constraint) -> Constraint:
            return lambda q: slack(q / self.factor)

        return [shrunk(slack) for slack in self.inner.constraints()]


@dataclass(frozen=True)
class _OfMembers(Budget):
    """Made of two or more budgets of one kind."""

    members: tuple[Budget, ...]

    def __post_init__(self) -> None:
        if len(self.members) < 2 or len({(member.kind, member.ndim) for member in self.members}) > 1:
            kinds = ", ".join(f"{type(member).__name__} ({member.kind}, {member.ndim} axes)" for member in self.members)
            name = type(self).__name__
            raise ValueError(f"{name} needs two or more budgets of one kind, got {kinds or 'none'}")

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return self.members[0].kind

    @property
    def ndim(self) -> int:
        return self.members[0].ndim


@dataclass(frozen=True)
class Intersection(_OfMembers):
    """𝒬₁ ∩ 𝒬₂ ∩ ...;  gauge = the largest of theirs. The maximizer has no closed form and is found from the constraints
    of all; within invariant budgets on their eigenvalues alone, so that an operator costs one eigendecomposition more.

    >>> import warnings; warnings.simplefilter("ignore")
    >>> from normgeo.budgets import Frobenius, Spectral
    >>> both = Frobenius(B=1.0) & Spectral(trace=1.5, cap=0.9)
    >>> both.maximizer(torch.diag(torch.tensor([3.0, 1.0]))).diagonal()
    tensor([0.9000, 0.4359])
    """

    def gauge(self, q: Tensor) -> Tensor:
        return torch.stack([member.gauge(q) for member in self.members]).amax(0)

    def maximizer(self, m: Tensor) -> Tensor:
        values = self.values
        if values is None or self.kind == "diagonal":
            return super().maximizer(m)
        s, u = eigh(checked(m, self))
        return ((u * values.maximizer(s).unsqueeze(-2)) @ u.mT).to(m.dtype)

    @property
    def values(self) -> Budget | None:
        """The same for eigenvalues, if they are all that the members see."""
        invariant = all(isinstance(member, Invariant) for member in self.members)
        return _Values(self.members) if invariant else None

    def constraints(self) -> Sequence[Constraint]:
        return [slack for member in self.members for slack in member.constraints()]

    @property
    def tolerance(self) -> float:
        return TOLERANCE


@dataclass(frozen=True)
class _Values(Budget):
    """An intersection of invariant budgets, on eigenvalues."""

    members: tuple[Budget, ...]
    kind = "diagonal"

    def constraints(self) -> Sequence[Constraint]:
        return [slack for member in self.members for slack in member.constraints()]


@dataclass(frozen=True)
class Sum(_OfMembers):
    """𝒬₁ + 𝒬₂ + ... = {Q₁ + Q₂ + ...};  support and maximizer are sums. The gauge is found from the maximizer.

    >>> from normgeo.budgets import Frobenius, Spectral
    >>> (Frobenius() + Spectral()).support(torch.diag(torch.tensor([3.0, 4.0])))
    tensor(9.)
    """

    def support(self, m: Tensor) -> Tensor:
        return torch.stack([member.support(m) for member in self.members]).sum(0)

    def maximizer(self, m: Tensor) -> Tensor:
        parts = [member for member in self.members if isinstance(member, Invariant)]
        if len(parts) < len(self.members):
            return torch.stack([member.maximizer(m) for member in self.members]).sum(0)
        s, u = eigh(checked(m, self))  # one serves all
        best = torch.stack([part.allocate(s) for part in parts]).sum(0)
        return ((u * best.unsqueeze(-2)) @ u.mT).to(m.dtype)


@dataclass(frozen=True)
class Product(Budget):
    """Leaves (n, *d), each with a budget of its own: gauge = the largest, support = the sum, maximizer leaf by leaf.

    >>> from normgeo.budgets import Diagonal
    >>> Product(Diagonal()).support(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor(6.)
    """

    inner: Budget

    @property
    def kind(self) -> Kind:  # type: ignore[override]
        return self.inner.kind

    @property
    def ndim(self) -> int:
        return 1 + self.inner.ndim

    @property
    def tolerance(self) -> float:
        return self.inner.tolerance

    def gauge(self, q: Tensor) -> Tensor:
        return self.inner.gauge(q).amax(-1)

    def support(self, m: Tensor) -> Tensor:
        return self.inner.support(m).sum(-1)

    def maximizer(self, m: Tensor) -> Tensor:
        return self.inner.maximizer(m)

    def project(self, q: Tensor) -> Tensor:
        return self.inner.project(q)


@dataclass(frozen=True)
class Blocks(Budget):
    """Block-diagonal operators, given as their blocks (n, d, d), that share one invariant budget: the eigenvalues of all
    blocks are allotted together, and the full matrix (n·d, n·d) is never formed.

    >>> from normgeo.budgets import Frobenius
    >>> Blocks(Frobenius(B=4.0)).gauge(torch.eye(2).expand(2, 2, 2))
    tensor(1.)
    """

    inner: Invariant

    @property
    def ndim(self) -> int:
        return 3

    def gauge(self, q: Tensor) -> Tensor:
        values = eigvalsh(floating(q, self)).flatten(-2)
        return torch.where(below_zero(values), torch.inf, self.inner.size(values.clamp_min(0)))

    def support(self, m: Tensor) -> Tensor:
        s = eigvalsh(checked(m, self)).flatten(-2)
        return inner(self.inner.allocate(s.detach()), s, 1)

    def maximizer(self, m: Tensor) -> Tensor:
        s, u = eigh(checked(m, self))
        best = self.inner.allocate(s.flatten(-2)).unflatten(-1, s.shape[-2:])
        return ((u * best.unsqueeze(-2)) @ u.mT).to(m.dtype)
