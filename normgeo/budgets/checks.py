"""What the parameters of budgets must be."""

import math

import torch
from torch import Tensor

__all__ = ["costs", "metric", "positive"]


def positive(name: str, **given: float) -> None:
    """Every one of them a finite number > 0: then 0 is inside the set and the set is bounded."""
    for parameter, value in given.items():
        if not (math.isfinite(value) and value > 0):
            why = "the set would be {0} or empty" if value <= 0 else "the set would not be bounded"
            raise ValueError(f"{name}: {parameter} must be a finite number > 0, got {value}; {why}")


def costs(name: str, given: Tensor | float) -> None:
    """A finite number > 0, for every coordinate or for all."""
    if not isinstance(given, Tensor):
        positive(name, costs=given)
        return
    ok = (given > 0) & given.isfinite()
    if not bool(ok.all()):
        bad = float(given[~ok].flatten()[0])
        raise ValueError(
            f"{name}: every cost must be a finite number > 0, got {bad} ({int((~ok).sum())} such); "
            f"a coordinate without a cost makes the set unbounded"
        )


def metric(name: str, w: Tensor) -> None:
    """A finite, symmetric matrix W ≽ 0 other than 0 (leading axes are a batch)."""
    if w.ndim < 2 or w.shape[-1] != w.shape[-2] or not w.is_floating_point() or not w.isfinite().all():
        raise ValueError(f"{name}: the metric must be a finite floating (..., d, d) matrix, got shape {tuple(w.shape)}")
    gap, size = float((w - w.mT).abs().max()), float(w.abs().max())
    if gap > 1e-4 * size:
        raise ValueError(f"{name}: the metric is not symmetric: largest |W - Wᵀ| is {gap:.3g}, largest |W| {size:.3g}")
    values = torch.linalg.eigvalsh(w.double())
    if bool((values[..., 0] < -1e-6 * values[..., -1].abs()).any()) or bool((values[..., -1] <= 0).any()):
        low, high = float(values[..., 0].min()), float(values[..., -1].min())
        raise ValueError(f"{name}: the metric must be ≽ 0 and not 0; its eigenvalues go from {low:.3g} to {high:.3g}")
