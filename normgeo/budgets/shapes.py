"""What budgets and the methods that complete them both need to know about operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from normgeo.linalg import eigvalsh

if TYPE_CHECKING:
    from normgeo.budgets.base import Budget

__all__ = ["FREE", "TOLERANCE", "Kind", "basis", "below_zero", "default", "negative", "own", "spread"]

Kind = Literal["matrix", "diagonal", "step", "filter"]
FREE: tuple[Kind, ...] = ("step", "filter")
"""kinds of which no sign is asked"""
TOLERANCE = 1e-6
"""relative, of what is found numerically"""
F = TypeVar("F", bound=Callable[..., Any])


def default(function: F) -> F:
    """Mark a function of Budget as one that a subclass may leave out."""
    function.is_default = True  # type: ignore[attr-defined]
    return function


def own(budget: Budget | type, name: str) -> bool:
    """Whether the class of the budget defines this function itself."""
    cls = budget if isinstance(budget, type) else type(budget)
    return not getattr(getattr(cls, name), "is_default", False)


def below_zero(values: Tensor) -> Tensor:  # (*b, d) -> (*b,)
    """Whether eigenvalues (or diagonal entries) are negative by more than rounding."""
    noise = 64 * values.shape[-1] * torch.finfo(values.dtype).eps
    return values.amin(-1) < -noise * values.abs().amax(-1)


def negative(q: Tensor, kind: Kind) -> Tensor:  # (n, *d) -> (n,)
    """Whether operators leave the domain: Q ≽ 0 for matrices, q ≥ 0 for diagonals, anything for steps and filters."""
    if kind in FREE:
        return torch.zeros(len(q), dtype=torch.bool, device=q.device)
    return below_zero(eigvalsh(q) if kind == "matrix" else q).reshape(len(q), -1).any(1)


def basis(kind: Kind, like: Tensor) -> Tensor:  # (*d) -> (k, *d)
    """An orthonormal basis of the symmetric matrices, or of all tensors of a shape."""
    if kind != "matrix":
        size = math.prod(like.shape)
        return torch.eye(size, dtype=like.dtype, device=like.device).reshape(size, *like.shape)
    i, j = torch.triu_indices(len(like), len(like), device=like.device)
    k = torch.arange(len(i), device=like.device)
    out = like.new_zeros(len(i), *like.shape)
    out[k, i, j] = out[k, j, i] = torch.where(i == j, 1.0, 0.5**0.5).to(like)
    return out


def spread(x: Tensor, q: Tensor) -> Tensor:  # (n,), (n, *d) -> (n, 1, ..., 1)
    """One number per operator, ready to multiply them."""
    return x.reshape(x.shape + (1,) * (q.ndim - x.ndim))
