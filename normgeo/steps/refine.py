"""Refinement: the schedule that the gradient norms of an earlier run ask for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from normgeo.steps.schedules import Schedule

__all__ = ["Table", "refine"]


@dataclass(frozen=True)
class Table(Schedule):
    """value = values[t], and the last one from there on.

    >>> Table((1.0, 0.5)).at(torch.arange(3.0))
    tensor([1.0000, 0.5000, 0.5000])
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) and value >= 0 for value in self.values):
            raise ValueError("Table needs at least one value, all of them finite and ≥ 0")

    def at(self, t: Tensor) -> Tensor:
        return torch.take(_on(self.values, t.dtype, t.device), t.long().clamp(0, len(self.values) - 1))


@lru_cache(maxsize=8)
def _on(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The table on the device: copying it there in every step would wait."""
    return torch.tensor(values, dtype=dtype, device=device)


def refine(norms: Sequence[float] | Tensor, *, power: float = 1.0, smooth: float = 0.1) -> Table:
    """η_t ∝ w_t · Σ_{p>t} w_p with w_t = ‖g_t‖*^-power, largest value 1, from the dual norms ‖g_t‖* of a finished run.

    power=1 for directions of unit size (duality maps, sign descent, Adam), 2 for steps along the gradient itself: there w
    minimises (D² + Σ w_t²‖g_t‖²)/(2 Σ w_t) with the least value D/√(Σ ‖g_t‖⁻²). The norms first pass a median filter over
    `smooth`·T steps, cut off at the ends. Constant norms give the straight line 1 - t/(T - 1). Warm-up comes out by itself
    where gradients are large at first. Record `plan.dual_norm(grads)` step by step. Source: Defazio et al., arXiv
    2310.07831, Theorem 3.

    >>> refine([2.0] * 5).at(torch.arange(5.0))
    tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000])
    """
    g = torch.as_tensor(norms, dtype=torch.float64)
    if g.ndim != 1 or len(g) < 2 or not bool(((g > 0) & g.isfinite()).all()):
        raise ValueError("refine needs the gradient norms of at least 2 steps, all of them finite and > 0")
    if not 0 <= smooth <= 1:
        raise ValueError(f"refine: smooth is a share of the run in [0, 1], got {smooth}")
    half = int(smooth * len(g) / 2)
    g = torch.stack([g[max(0, t - half) : t + half + 1].quantile(0.5) for t in range(len(g))])
    w = (g / g.min()).pow(-power)
    eta = w * (w.sum() - w.cumsum(0)).clamp_min(0)
    return Table(tuple((eta / eta.max()).tolist()))
