"""Transfer functions of momentum: b(z⁻¹)/a(z⁻¹), z⁻¹ the gradient of one step ago.

| form | update | transfer function |
|---|---|---|
| heavy ball | m ← βm + g; m | 1/(1 - βz⁻¹) |
| average | m ← βm + (1-β)g; m | (1-β)/(1 - βz⁻¹) |
| Nesterov | m ← βm + g; g + βm | (1 + β - βz⁻¹)/(1 - βz⁻¹) |
| quasi-hyperbolic | m ← βm + (1-β)g; (1-ν)g + νm | (1 - νβ - (1-ν)βz⁻¹)/(1 - βz⁻¹) |
| with a zero | | (1-β)(1 + γz⁻¹)/(1 - βz⁻¹) |
| Lion, before its sign | β₁m + (1-β₁)g; then m ← β₂m + (1-β₂)g | 1 - β₁ + β₁(1-β₂)z⁻¹/(1 - β₂z⁻¹) |
| two averages | m_fast + α·m_slow | (1-β)/(1 - βz⁻¹) + α(1-s)/(1 - sz⁻¹) |
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Transfer", "ema", "heavy_ball", "lion", "nesterov", "quasi_hyperbolic", "two_averages", "with_zero"]


@dataclass(frozen=True)
class Transfer:
    """Ψ(z) = Σ bₖz⁻ᵏ / Σ aₖz⁻ᵏ, a₀ = 1:  θ̇[n] = Σ bₖ g[n-k] - Σ_{k≥1} aₖ θ̇[n-k].

    >>> Transfer((1.0,), (1.0, -0.5)).impulse(3)
    tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """

    numerator: tuple[float, ...]
    denominator: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.numerator or not self.denominator or self.denominator[0] != 1:
            raise ValueError(f"Transfer: both polynomials need terms, the denominator beginning with 1; got {self}")

    def impulse(self, lags: int) -> Tensor:  # (lags,)
        """The answer to g = 1, 0, 0, ...: the weights of past gradients."""
        out: list[float] = []
        for n in range(lags):
            past = sum(a * out[n - k] for k, a in enumerate(self.denominator) if 1 <= k <= n)
            out.append((self.numerator[n] if n < len(self.numerator) else 0.0) - past)
        return torch.tensor(out, dtype=torch.float64)

    def response(self, omega: Tensor) -> Tensor:  # (*b,) -> (*b,), complex
        """Ψ(e^{iω}): what happens to gradients that oscillate with ω per step; ω = 0 is the gain of a constant one."""
        b, a = (_polynomial(c, omega) for c in (self.numerator, self.denominator))
        return b / a

    def __add__(self, other: Transfer) -> Transfer:
        b = _sum(_times(self.numerator, other.denominator), _times(other.numerator, self.denominator))
        return Transfer(b, _times(self.denominator, other.denominator))

    def __rmul__(self, factor: float) -> Transfer:
        return Transfer(tuple(factor * b for b in self.numerator), self.denominator)


def heavy_ball(beta: float) -> Transfer:
    """1/(1 - βz⁻¹): m ← βm + g.

    >>> heavy_ball(0.5).response(torch.tensor(0.0))
    tensor(2.+0.j)
    """
    return Transfer((1.0,), (1.0, -beta))


def ema(beta: float) -> Transfer:
    """(1-β)/(1 - βz⁻¹): m ← βm + (1-β)g.

    >>> ema(0.5).impulse(2)
    tensor([0.5000, 0.2500], dtype=torch.float64)
    """
    return (1 - beta) * heavy_ball(beta)


def nesterov(beta: float) -> Transfer:
    """(1 + β - βz⁻¹)/(1 - βz⁻¹): g + βm for heavy ball m. Its zero leads: 1 + γz⁻¹ with γ = -β/(1+β) < 0 (X0-21).

    >>> nesterov(0.5).impulse(2)
    tensor([1.5000, 0.2500], dtype=torch.float64)
    """
    return Transfer((1 + beta, -beta), (1.0, -beta))


def quasi_hyperbolic(beta: float, nu: float) -> Transfer:
    """(1 - ν) + ν(1-β)/(1 - βz⁻¹): between the gradient and its average. ν = β is Nesterov's form of the average.

    >>> quasi_hyperbolic(0.5, 0.5).impulse(2)
    tensor([0.7500, 0.1250], dtype=torch.float64)
    """
    return Transfer((1 - nu,)) + nu * ema(beta)


def with_zero(beta: float, gamma: float) -> Transfer:
    """(1-β)(1 + γz⁻¹)/(1 - βz⁻¹): γ = -β/(1+β) is `nesterov` up to a factor, γ = 0 the average.

    >>> with_zero(0.5, 1.0).impulse(2)
    tensor([0.5000, 0.7500], dtype=torch.float64)
    """
    return Transfer((1 - beta, (1 - beta) * gamma), (1.0, -beta))


def lion(beta1: float, beta2: float) -> Transfer:
    """1 - β₁ + β₁(1-β₂)z⁻¹/(1 - β₂z⁻¹): what Lion takes the sign of.

    >>> lion(0.9, 0.5).impulse(3)
    tensor([0.1000, 0.4500, 0.2250], dtype=torch.float64)
    """
    return Transfer((1 - beta1,)) + Transfer((0.0, beta1 * (1 - beta2)), (1.0, -beta2))


def two_averages(beta: float, slow: float, alpha: float) -> Transfer:
    """(1-β)/(1 - βz⁻¹) + α(1-s)/(1 - sz⁻¹): a fast average and α times a slow one.

    >>> two_averages(0.5, 0.9, 2.0).impulse(2)
    tensor([0.7000, 0.4300], dtype=torch.float64)
    """
    return ema(beta) + alpha * ema(slow)


def _polynomial(coefficients: tuple[float, ...], omega: Tensor) -> Tensor:
    k = torch.arange(len(coefficients), dtype=omega.dtype, device=omega.device)
    phase = omega.unsqueeze(-1) * k
    return (
        torch.polar(torch.ones_like(phase), -phase) * torch.tensor(coefficients, dtype=omega.dtype, device=omega.device)
    ).sum(-1)


def _times(x: tuple[float, ...], y: tuple[float, ...]) -> tuple[float, ...]:
    out = [0.0] * (len(x) + len(y) - 1)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            out[i + j] += a * b
    return tuple(out)


def _sum(x: tuple[float, ...], y: tuple[float, ...]) -> tuple[float, ...]:
    size = max(len(x), len(y))
    return tuple(a + b for a, b in zip(x + (0.0,) * (size - len(x)), y + (0.0,) * (size - len(y)), strict=True))
