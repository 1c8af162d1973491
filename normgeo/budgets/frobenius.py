"""The Frobenius ball: an isotropic bound on the operator."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from normgeo.budgets.barrier import Constraint
from normgeo.budgets.checks import positive
from normgeo.budgets.invariant import Invariant
from normgeo.linalg import l2
from normgeo.norms.vectors import unit

__all__ = ["Frobenius"]


@dataclass(frozen=True)
class Frobenius(Invariant):
    """{Q ≽ 0 : ‖Q‖²_F ≤ B};  Q* = √B·M₊/‖M₊‖_F,  P* = √B·‖M₊‖_F,  M₊ the positive part of M.

    Power goes where the evidence is, in proportion to it. For M ≽ 0 this is Cor. 2(i) of the budget theory; for an
    indefinite M the printed Q* = √B·M/‖M‖_F is not ≽ 0 (X0-1): a Q ≽ 0 gains ⟨Q, M⟩ ≤ ⟨Q, M₊⟩, with equality on the
    positive eigenspace.

    >>> import torch
    >>> Frobenius(B=25.0).maximizer(torch.diag(torch.tensor([3.0, 4.0, -9.0]))).diagonal()
    tensor([3., 4., 0.])
    """

    B: float = 1.0

    def __post_init__(self) -> None:
        positive("Frobenius", B=self.B)

    def size(self, q: Tensor) -> Tensor:
        return l2(q, 1).squeeze(-1) / self.B**0.5

    def allocate(self, s: Tensor) -> Tensor:
        return self.B**0.5 * unit(s.clamp_min(0), 1)

    def constraints(self) -> Sequence[Constraint]:
        return [lambda q: 1 - q.square().sum() / self.B]
