"""Layer-wise budgets: one scalar per layer, priced by the size of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normgeo.budgets.barrier import Constraint
from normgeo.budgets.base import Budget
from normgeo.budgets.diagonal import Diagonal

__all__ = ["LayerWise"]


@dataclass(frozen=True, eq=False)
class LayerWise(Budget):
    """{Q = blockdiag(α_ℓ·I) : α ≥ 0, Σ ‖θ_ℓ‖²·‖α_ℓ·I‖²_F ≤ B}, operators and moments given by α_ℓ and S_ℓ = tr M_ℓ;
    α_ℓ* ∝ S_ℓ/(d_ℓ·‖θ_ℓ‖²).

    The printed α_ℓ ∝ 1/‖θ_ℓ‖ is neither optimal nor what LARS does, which grows with ‖θ_ℓ‖ (X0-19). LARS and LAMB are the
    step budgets ‖θ̇_ℓ‖ ≤ τ·‖θ_ℓ‖, `Step(L2(), τ·‖θ_ℓ‖)` on every layer.

    >>> LayerWise(sizes=torch.tensor([1.0, 2.0]), dims=(4, 1)).maximizer(torch.tensor([4.0, 4.0]))
    tensor([0.3536, 0.3536])
    """

    sizes: Tensor = field(repr=False)
    dims: tuple[int, ...]
    B: float = 1.0
    kind = "diagonal"
    _inner: Diagonal = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.sizes.shape != (len(self.dims),) or min(self.dims, default=0) < 1:
            raise ValueError(
                f"LayerWise: sizes has shape {tuple(self.sizes.shape)} and dims is {self.dims}; give one of each per layer"
            )
        costs = self.sizes.square() * torch.tensor(self.dims).to(self.sizes)
        object.__setattr__(self, "_inner", Diagonal(costs, self.B))

    def gauge(self, q: Tensor) -> Tensor:
        return self._inner.gauge(q)

    def maximizer(self, m: Tensor) -> Tensor:
        return self._inner.maximizer(m)

    def constraints(self) -> Sequence[Constraint]:
        return self._inner.constraints()
