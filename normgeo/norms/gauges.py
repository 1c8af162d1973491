"""Projections onto balls of symmetric gauges of vectors s ≥ 0, by sorting or by finding a root to machine precision."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["ky_fan_cap", "power_cap", "root", "simplex_cap"]


def root(increasing: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """x in [low, high], entry by entry, where an increasing function crosses 0 (an end where it does not).

    Chandrupatla's method (Adv. Eng. Software 28, 1997): inverse quadratic interpolation where it is safe, else halving.

    >>> root(lambda x: x**2 - 2, torch.zeros(1), torch.full((1,), 2.0))
    tensor([1.4142])
    """
    a, b = high, low
    fa, fb = increasing(a), increasing(b)
    at_low, at_high = fb >= 0, fa <= 0
    t = torch.full_like(a, 0.5)
    for _ in range(60):
        x = a + t * (b - a)
        fx = increasing(x)
        same = (fx > 0) == (fa > 0)
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = x, fx
        done = ((b - a).abs() <= 8 * torch.finfo(x.dtype).eps * a.abs()) | (fa == 0) | at_low | at_high
        if bool(done.all()):
            break
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        inverse = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        least = 4 * torch.finfo(x.dtype).eps * a.abs() / (b - a).abs()
        t = torch.where(safe, inverse, 0.5).nan_to_num(0.5).maximum(least).minimum(1 - least)
    return torch.where(at_low, low, torch.where(at_high, high, a))


def simplex_cap(s: Tensor) -> Tensor:  # (*b, k) -> (*b, k)
    """The nearest z ≥ 0 with Σ z ≤ 1: max(s - θ, 0), θ found by sorting (Duchi et al., ICML 2008).

    >>> simplex_cap(torch.tensor([1.0, 0.5, 0.1]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    descending = s.sort(-1, descending=True).values
    excess = descending.cumsum(-1) - 1
    rank = torch.arange(1, s.shape[-1] + 1, device=s.device, dtype=s.dtype)
    active = (descending * rank > excess).sum(-1, keepdim=True).clamp_min(1)
    theta = excess.gather(-1, active - 1) / active
    return torch.where(s.sum(-1, keepdim=True) > 1, (s - theta).clamp_min(0), s)


def power_cap(s: Tensor, p: float) -> Tensor:  # (*b, k) -> (*b, k)
    """The nearest z ≥ 0 with Σ zᵖ ≤ 1, 1 < p < ∞: z + λ·z^(p-1) = s, with the λ that makes it Σ zᵖ = 1.

    >>> power_cap(torch.tensor([3.0, 4.0]), p=2.0)
    tensor([0.6000, 0.8000])
    """
    s = s.nan_to_num(posinf=torch.finfo(s.dtype).max)

    def shrunk(lam: Tensor) -> Tensor:
        return root(lambda z: z + lam * z ** (p - 1) - s, torch.zeros_like(s), s)

    # All entries are at most 1 at the solution, and some entry is at least k^(-1/p), which bounds λ from above.
    largest = s.amax(-1, keepdim=True)
    high = largest * s.shape[-1] ** ((p - 1) / p) + 1
    lam = root(lambda lam: 1 - (shrunk(lam) ** p).sum(-1, keepdim=True), torch.zeros_like(largest), high)
    return torch.where((s**p).sum(-1, keepdim=True) > 1, shrunk(lam), s)


def ky_fan_cap(s: Tensor, k: int) -> Tensor:  # (*b, n) -> (*b, n)
    """The nearest z ≥ 0 whose k largest entries sum to at most 1.

    z = s - λ·v with v a subgradient of the sum: 1 on the largest entries, between 0 and 1 on those that tie at τ, 0 below,
    k in all. So z = max(s - λ, min(s, τ)) with τ ≥ 0 from Σ clamp(s - τ, 0, λ) = λ·k, and λ from the constraint.

    >>> ky_fan_cap(torch.tensor([1.0, 0.6, 0.5]), k=2)
    tensor([0.6333, 0.3667, 0.3667])
    """
    largest, zero = s.amax(-1, keepdim=True), torch.zeros_like(s[..., :1])

    def capped(lam: Tensor) -> Tensor:
        tau = root(lambda t: lam * k - (s - t).clamp_min(0).minimum(lam).sum(-1, keepdim=True), zero, largest)
        return torch.maximum(s - lam, torch.minimum(s, tau)).clamp_min(0)

    def top(z: Tensor) -> Tensor:
        return z.topk(min(k, z.shape[-1])).values.sum(-1, keepdim=True)

    lam = root(lambda lam: 1 - top(capped(lam)), zero, s.sum(-1, keepdim=True))
    return torch.where(top(s) > 1, capped(lam), s)
