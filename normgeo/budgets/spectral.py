"""The spectral budget: a total, and a cap for every direction."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.barrier import Constraint
from normgeo.budgets.checks import positive
from normgeo.budgets.invariant import Invariant

__all__ = ["Spectral"]


@dataclass(frozen=True)
class Spectral(Invariant):
    """{Q ≽ 0 : tr Q ≤ τ, Q ≼ λ·I}, τ = `trace`, λ = `cap`; Q* fills the largest eigenvalues of M with λ each, in order,
    until τ is used up, and stops where M is not positive (X0-1).  P* = λ·Σ_{i≤k} sᵢ + (τ - kλ)·s_{k+1}, k = ⌊τ/λ⌋ ≤ d.

    Directions that tie for the last share get equal parts of it, so an isotropic M gets an isotropic Q. The cap acts like
    clipping, τ like a learning-rate schedule. Cor. 2(ii) of the budget theory.

    >>> Spectral(trace=1.5, cap=1.0).maximizer(torch.diag(torch.tensor([1.0, 3.0, 2.0]))).diagonal()
    tensor([0.0000, 1.0000, 0.5000])
    """

    trace: float = 1.0
    cap: float = 1.0

    def __post_init__(self) -> None:
        positive("Spectral", trace=self.trace, cap=self.cap)

    def size(self, q: Tensor) -> Tensor:
        return torch.maximum(q.sum(-1) / self.trace, q.amax(-1) / self.cap)

    def allocate(self, s: Tensor) -> Tensor:
        d = s.shape[-1]
        noise = 16 * d**0.5 * torch.finfo(s.dtype).eps * s.abs().amax(-1, keepdim=True)
        live, k = s > noise, min(int(self.trace / self.cap), d)
        if k == d:
            return self.cap * live.to(s)
        level = s.topk(k + 1).values[..., -1:]
        above, tied = (s > level + noise).to(s), ((s - level).abs() <= noise).to(s)
        left = self.trace - self.cap * above.sum(-1, keepdim=True)
        share = (left / tied.sum(-1, keepdim=True)).clamp(0, self.cap)
        return (self.cap * above + share * tied) * live

    def constraints(self) -> Sequence[Constraint]:
        def total(q: Tensor) -> Tensor:
            return 1 - (q if q.ndim == 1 else q.diagonal()).sum() / self.trace

        def each(q: Tensor) -> Tensor:
            return 1 - q / self.cap if q.ndim == 1 else torch.eye(q.shape[-1]).to(q) - q / self.cap

        return [total, each]
