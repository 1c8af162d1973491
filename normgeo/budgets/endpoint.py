"""Where training with a fixed operator ends, in the linearised network: the operator chooses among the interpolants."""

from __future__ import annotations

import torch
from torch import Tensor

from normgeo.linalg import eigh

__all__ = ["endpoint", "tangent_kernel"]


def tangent_kernel(
    Q: Tensor, J: Tensor, other: Tensor | None = None
) -> Tensor:  # (d, d) | (d,), (*b, n, d) -> (*b, n, m)
    """K_Q(X, X') = J Q J'ᵀ, J = ∂f(X)/∂θ with a row for every output and sample: under θ̇ = -Q ∇L outputs move by
    ḟ(X') = -K_Q(X', X) ∂L/∂f(X). Q is a matrix (d, d), or (d,) the diagonal of one; `other` is J', by default J.

    >>> tangent_kernel(torch.tensor([1.0, 4.0]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    tensor([[5., 4.],
            [4., 4.]])
    """
    return _times(J, Q) @ (J if other is None else other).mT


def endpoint(Q: Tensor, J: Tensor, residual: Tensor, ridge: float = 0.0) -> Tensor:  # ..., (*b, n) -> (*b, d)
    """θ∞ - θ₀ = Q Jᵀ (K_Q + ρI)⁺ r,  r = y - f(X; θ₀): where θ̇ = Q Jᵀ(y - f) - ρ·(θ - θ₀), f = f₀ + J(θ - θ₀), goes.

    For ρ = 0 it is the shortest displacement Δ that fits the data, in the size √(Δᵀ Q⁺ Δ) and within the range of Q (least
    squares, if none fits); for ρ > 0 kernel ridge regression, the minimum of ½‖r - JΔ‖² + ρ/2·ΔᵀQ⁺Δ. So a budget chooses
    not only the speed but also the end. New outputs are f₀(x) + J(x)·Δ. The displacement is the smallest, not θ∞ or f as
    printed: the flow starts at f₀ (X0-16). Proposition 8 of the budget theory.

    >>> J, r = torch.tensor([[1.0, 1.0]]), torch.tensor([2.0])
    >>> endpoint(torch.ones(2), J, r), endpoint(torch.tensor([3.0, 1.0]), J, r)
    (tensor([1., 1.]), tensor([1.5000, 0.5000]))
    """
    if ridge < 0:
        raise ValueError(f"endpoint: ridge is a decay and must be ≥ 0, got {ridge}")
    along = _times(J, Q)
    s, u = eigh(along @ J.mT)
    noise = 16 * s.shape[-1] * torch.finfo(s.dtype).eps * s.abs().amax(-1, keepdim=True)
    live = s > noise
    inverse = torch.where(live, 1 / torch.where(live, s + ridge, 1), 0)
    weights = u @ (inverse.unsqueeze(-1) * (u.mT @ residual.unsqueeze(-1)))
    return (along.mT @ weights).squeeze(-1)


def _times(J: Tensor, Q: Tensor) -> Tensor:  # (*b, n, d), (d, d) | (d,) -> (*b, n, d)
    if Q.shape not in {(J.shape[-1],), (J.shape[-1],) * 2}:
        raise ValueError(f"J has {J.shape[-1]} columns, so Q is ({J.shape[-1]},) or square, got {tuple(Q.shape)}")
    return J * Q if Q.ndim == 1 else J @ Q
