"""The Budget: a convex set of operators known by three functions that obey one set of laws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normgeo.budgets.barrier import Constraint
from normgeo.budgets.numerical import GIVEN, complete
from normgeo.budgets.shapes import TOLERANCE, Kind, default, own

__all__ = ["Budget", "checked", "floating", "inner"]


class Budget:
    """A convex, closed, bounded set 𝒬 of operators Q on gradients (θ̇ = Q g) with 0 in it; leading axes are a batch.

    The learning power of Q under a moment M of the gradients is ⟨Q, M⟩, the rate at which the loss falls. Three functions:

        gauge(Q) = inf {t > 0 : Q ∈ t·𝒬}      support(M) = max ⟨Q, M⟩ over 𝒬      maximizer(M) = a Q that attains it

    Laws, checked for any instance by `normgeo.testing.check_budget`: ⟨maximizer(M), M⟩ = support(M);
    gauge(maximizer(M)) = 1 if support(M) > 0, and ≤ 1 always; ⟨Q, M⟩ ≤ gauge(Q)·support(M); both functions are sublinear;
    maximizer(M) is a subgradient of support at M, and what autograd gives as its derivative; M ≽ N makes
    support(M) ≥ support(N); a batch axis changes nothing.

    `kind` says what the last axes hold: a "matrix" Q ≽ 0 (d, d), symmetric; the "diagonal" q ≥ 0 (d,) of one, with moment
    diag(M); or, without a sign, the "step" θ̇ itself, with moment g, or a "filter" Q[k] with moments at lags (`Dynamic`). M
    may be indefinite (validation moments are); Q may
    not, so gauge is +∞ there.

    A subclass defines one of `maximizer`, `gauge`, `project`, `constraints`. What it leaves out of the first three is found
    numerically from what it gives, to a relative 1e-6, and a `NumericalWarning` says once what that costs.

    >>> import warnings; warnings.simplefilter("ignore")
    >>> class Trace(Budget):
    ...     def constraints(self):
    ...         return [lambda q: 1 - q.trace()]  # ≥ 0 inside; Q ≽ 0 is understood
    >>> Trace().maximizer(torch.diag(torch.tensor([1.0, 3.0]))).diagonal().round(decimals=4)
    tensor([0., 1.])
    """

    kind: Kind = "matrix"

    @property
    def ndim(self) -> int:
        """How many trailing axes one operator has."""
        return 2 if self.kind == "matrix" else 1

    def __new__(cls, *args: Any, **fields: Any) -> Any:
        if not any(own(cls, name) for name in GIVEN):
            raise TypeError(f"{cls.__name__} is no set yet: define one of {', '.join(GIVEN)}")
        return super().__new__(cls)

    def __rmul__(self, factor: float) -> Budget:
        """c·𝒬 = {c·Q}."""
        from normgeo.budgets.combinators import Scaled

        return Scaled(self, float(factor))

    def __and__(self, other: Budget) -> Budget:
        from normgeo.budgets.combinators import Intersection

        return Intersection((self, other))

    def __add__(self, other: Budget) -> Budget:
        """{Q₁ + Q₂}."""
        from normgeo.budgets.combinators import Sum

        return Sum((self, other))

    @property
    def tolerance(self) -> float:
        """How far, relatively, gauge and maximizer may be off: 0 up to rounding if both are in closed form."""
        return 0.0 if own(self, "gauge") and own(self, "maximizer") else TOLERANCE

    @default
    def gauge(self, q: Tensor) -> Tensor:  # (*b, *d) -> (*b,)
        """inf {t > 0 : Q ∈ t·𝒬}: at most 1 within the budget, +∞ where no multiple is."""
        return complete(self, "gauge", floating(q, self))

    @default
    def maximizer(self, m: Tensor) -> Tensor:  # (*b, *d) -> (*b, *d)
        """argmax ⟨Q, M⟩ over the budget; 0 where no Q has a positive power."""
        return complete(self, "maximizer", checked(m, self)).to(m.dtype)

    @default
    def support(self, m: Tensor) -> Tensor:  # (*b, *d) -> (*b,)
        """P*(M) = max ⟨Q, M⟩ over the budget. Its derivative is the maximizer (Danskin)."""
        return inner(self.maximizer(m.detach()), m, self.ndim)

    @default
    def project(self, q: Tensor) -> Tensor:  # (*b, *d) -> (*b, *d)
        """The nearest operator of the budget, in ‖·‖_F."""
        return complete(self, "project", checked(q, self)).to(q.dtype)

    @default
    def constraints(self) -> Sequence[Constraint]:
        """Functions of one Q, without a batch, that are concave and ≥ 0 within the budget; Q ≽ 0 is understood. A function
        may give a number, a vector (each entry ≥ 0) or a symmetric matrix (≽ 0), in torch operations and without branching.
        """
        if not own(self, "gauge"):
            raise NotImplementedError(
                f"{type(self).__name__} gives no constraints; define constraints(self) or gauge(self, q) to use it here"
            )
        return [lambda q: 1 - self.gauge(q).square()]


def inner(q: Tensor, m: Tensor, ndim: int) -> Tensor:  # (*b, *d), (*b, *d) -> (*b,)
    """⟨Q, M⟩ = tr(QᵀM)."""
    return (q.to(m.dtype) * m).sum(tuple(range(-ndim, 0)))


def floating(x: Tensor, budget: Budget) -> Tensor:
    """x, checked to be what the budget's last axes hold, in at least float32."""
    matrices = budget.kind == "matrix" or (budget.kind == "filter" and budget.ndim == 3)
    square = not matrices or (x.ndim >= 2 and x.shape[-1] == x.shape[-2])
    if not x.is_floating_point() or x.ndim < budget.ndim or not square or 0 in x.shape[x.ndim - budget.ndim :]:
        wanted = {
            "matrix": "(..., d, d)",
            "diagonal": "(..., d)",
            "step": f"with {budget.ndim} axes",
            "filter": "(..., lags, d)" if budget.ndim == 2 else "(..., lags, d, d)",
        }[budget.kind]
        raise ValueError(
            f"{type(budget).__name__} is about a {budget.kind} {wanted}, got {x.dtype} of shape {tuple(x.shape)}"
        )
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def checked(m: Tensor, budget: Budget) -> Tensor:
    """M, refused unless it is finite, of the shape that the budget is about and, for matrices, symmetric to rounding;
    exactly symmetric then.

    >>> from normgeo.budgets import Frobenius
    >>> checked(torch.eye(2), Frobenius())
    tensor([[1., 0.],
            [0., 1.]])
    """
    m = floating(m, budget)
    if m.device.type != "cpu":  # to look would be to wait; NaN goes through
        return (m + m.mT) / 2 if budget.kind == "matrix" else m
    size = _largest(m)
    if not math.isfinite(size):
        raise ValueError(f"{type(budget).__name__}: the moment has {int((~m.isfinite()).sum())} entries of NaN or Inf")
    if budget.kind != "matrix":
        return m
    gap = _largest(m - m.mT)
    if gap == 0:
        return m
    if gap > 1e-4 * size:
        raise ValueError(
            f"{type(budget).__name__}: the moment is not symmetric (largest |M - Mᵀ| is {gap:.3g}, largest |M| is "
            f"{size:.3g}); only (M + Mᵀ)/2 counts, so give that"
        )
    return (m + m.mT) / 2


def _largest(x: Tensor) -> float:
    """max |xᵢ|, NaN if there is one."""
    low, high = torch.aminmax(x.detach())
    return max(-float(low), float(high))
