"""Filters that can be afforded: families of rays a(β)[k]·P, and the best member of a budget within one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.dynamic.base import Dynamic

__all__ = ["Nesterov", "OnePole", "Restricted", "best_ray"]

LONGEST = 1e-3
"""1 - β of the longest memory that families consider"""


def best_ray(
    ray: Callable[[Tensor], Tensor], S: Tensor, grid: Tensor, rays: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """u* = argmax ⟨ray(u), S⟩ over the range of `grid`, and the maximum, for lag curves S (*b, K): both (*b,).

    `ray` takes u (*b,) to unit rays (*b, K); `rays` are those of the grid, where they are kept. A parabola through the
    best three points of the even grid refines u; where the ends are better, they are taken.

    >>> def direction(u): return torch.stack([u.cos(), u.sin()], -1)
    >>> best_ray(direction, torch.tensor([3.0, 3.0]), torch.linspace(0, 1.5, 50))
    (tensor(0.7854), tensor(4.2426))
    """
    values = S @ (ray(grid) if rays is None else rays).mT
    middle = values.argmax(-1).clamp(1, len(grid) - 2)
    left, at, right = (values.gather(-1, (middle + k).unsqueeze(-1)).squeeze(-1) for k in (-1, 0, 1))
    bend = left - 2 * at + right
    shift = torch.where(bend < 0, (left - right) / torch.where(bend < 0, 2 * bend, 1), 0).clamp(-1, 1)
    ends = torch.stack(
        [grid[0].expand_as(shift), grid[middle] + shift * (grid[1] - grid[0]), grid[-1].expand_as(shift)]
    )
    power, which = (ray(ends) * S).sum(-1).max(0)
    return ends.gather(0, which.unsqueeze(0)).squeeze(0), power


@dataclass(frozen=True, eq=False)
class Restricted(ABC):
    """The members η·a(β)[k]·P of a budget, η ≥ 0, for one β in [0, .999] and P = `along`, by default the identity.

    The best of them: β* = argmax ⟨a(β), S⟩/‖a(β)‖, S[k] = ⟨P, R[k]⟩, then η such that the budget is used up. That is
    the ray onto which the budget's own maximizer projects, in the budget's metric, but the projection is shorter:
    "project, then re-saturate" (Lemma 4 of the budget theory as it holds; printed without the second half, X0-7). The
    family is a cone that is not convex, so this is no `Budget`: it has a `support`, which is sublinear, and a
    `maximizer`, but no gauge. ‖a‖ is that of K taps, as the budget counts them; where βᴷ is small, that of all.

    >>> from normgeo.budgets import DynamicDiagonal
    >>> class Pair(Restricted):
    ...     def taps(self, beta, lags): return torch.stack([beta**0, beta, *[0 * beta] * (lags - 2)], -1)
    >>> Pair(DynamicDiagonal()).best(torch.tensor([[1.0], [0.5], [9.0]]))[0].round(decimals=3)
    tensor(0.5000)
    """

    budget: Dynamic
    along: Tensor | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.budget, Dynamic) and self.budget.hilbert):
            raise TypeError(
                f"{type(self).__name__} takes a DynamicFrobenius, DynamicEllipsoid or DynamicDiagonal, where the size of "
                f"a filter is that of its taps; got {self.budget!r}"
            )

    @abstractmethod
    def taps(self, beta: Tensor, lags: int) -> Tensor:  # (*b,) -> (*b, lags)
        """a(β)[k], of any size."""

    def best(self, r: Tensor) -> tuple[Tensor, Tensor]:  # (*b, lags, *d) -> (*b,), (*b,)
        """β* and the power P* with it; 0 and 0 where no member has a positive power."""
        p, size = self._along(r)
        curve = (r * p).flatten(1 - self.budget.ndim).sum(-1)

        def ray(log_forget: Tensor) -> Tensor:
            a = self.taps(-torch.expm1(log_forget), r.shape[-self.budget.ndim])
            return a / torch.linalg.vector_norm(a, dim=-1, keepdim=True)

        # Memory lengths 1/(1-β) are tried in even ratios, so log(1-β) is the variable.
        grid = torch.linspace(math.log(LONGEST), 0, 512, dtype=r.dtype, device=r.device)
        log_forget, power = best_ray(ray, curve, grid)
        found = power > 0
        return torch.where(found, 0 - torch.expm1(log_forget), 0), torch.where(found, power, 0) / size

    def support(self, r: Tensor) -> Tensor:  # (*b, lags, *d) -> (*b,)
        """The best power within the family."""
        return self.best(r)[1]

    def maximizer(self, r: Tensor) -> Tensor:  # (*b, lags, *d) -> (*b, lags, *d)
        """The best filter of the family."""
        p, size = self._along(r)
        beta, power = self.best(r)
        a = self.taps(beta, r.shape[-self.budget.ndim])
        a = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True) / size
        a = torch.where(power.unsqueeze(-1) > 0, a, 0)
        return a.reshape(a.shape + (1,) * (self.budget.ndim - 1)) * p

    def _along(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """P, and its size in the budget."""
        d = r.shape[-1]
        if self.along is not None:
            p = self.along.to(r)
        else:
            p = torch.eye(d, dtype=r.dtype, device=r.device) if self.budget.symmetric else r.new_ones(d)
        return p, self.budget.gauge(p.unsqueeze(0))


class OnePole(Restricted):
    """a(β)[k] = βᵏ: the filters of momentum (heavy ball, exponential average). For R[k] = ρᵏ·R[0], β* = ρ.

    Cor. 5 of the budget theory; with P = diag(1/c) and costs c, the β₁ of Cor. 6 (Adam).

    >>> from normgeo.budgets import DynamicDiagonal
    >>> beta, _ = OnePole(DynamicDiagonal()).best(0.8 ** torch.arange(50.0).reshape(50, 1))
    >>> round(float(beta), 3)
    0.8
    """

    def taps(self, beta: Tensor, lags: int) -> Tensor:
        return beta.unsqueeze(-1) ** torch.arange(lags, dtype=beta.dtype, device=beta.device)


class Nesterov(Restricted):
    """a(β) = 1 + β, β², β³, ...: the newest gradient counts as if it were seen twice (g + β·m for heavy ball m).

    >>> from normgeo.budgets import DynamicDiagonal
    >>> Nesterov(DynamicDiagonal()).taps(torch.tensor(0.5), 3)
    tensor([1.5000, 0.2500, 0.1250])
    """

    def taps(self, beta: Tensor, lags: int) -> Tensor:
        k = torch.arange(lags, dtype=beta.dtype, device=beta.device)
        return beta.unsqueeze(-1) ** (k + 1) + (k == 0)
