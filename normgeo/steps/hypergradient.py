"""Hypergradients: the derivative of this step's loss in the last step's size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.steps.base import Move, Stats, StepSize, StepState, total

__all__ = ["IDBD", "Hypergradient"]


@dataclass(frozen=True)
class Hypergradient(StepSize):
    """α_t = α_{t-1}·(1 + rate·c),  c = ⟨g_t, u_{t-1}⟩/‖M_t‖* held to [-1, 1],  u = r·D the direction, from α = 1: longer
    steps while directions agree, shorter when they turn back. -⟨g_t, u_{t-1}⟩ is the derivative of the loss in the last η.
    With `normalized=False` the published additive rule α_t = α_{t-1} + rate·⟨g_t, u_{t-1}⟩, held to α ≥ 0.

    The lr is where it starts. Minibatch noise makes c small, not wrong: u_{t-1} comes from other batches. Source: Baydin et
    al., arXiv 1703.04782; it is MetaOptimize with γ = 0 and an additive step size.

    >>> import normgeo as ng
    >>> opt = ng.optimizer(ng.nn.Linear(4, 2), step=Hypergradient(rate=0.05), lr=0.01)
    """

    rate: float = 0.02
    normalized: bool = True
    needs = {"moves": 1}  # noqa: RUF012

    def __post_init__(self) -> None:
        _rate("Hypergradient", self.rate)
        if self.normalized and self.rate >= 1:
            raise ValueError(f"Hypergradient: a normalized rate must be < 1, got {self.rate}")

    def init(self, W: Tensor) -> dict[str, Tensor]:
        return {"last": torch.zeros_like(W)}

    def init_shared(self) -> dict[str, float]:
        return {"alpha": 1.0}

    def value(self, stats: Stats, state: StepState) -> Tensor:
        both = list(zip(stats.moves, state.leaves, strict=True))
        agreement = total((move.G * leaf["last"]).sum() for move, leaf in both)
        for move, leaf in both:
            leaf["last"] = move.radius * move.D
        alpha, g = state.shared["alpha"], stats.dual_norm
        if self.normalized:
            alpha = alpha * (1 + self.rate * torch.where(g > 0, agreement / g, 0.0).clamp(-1, 1))
        else:
            alpha = (alpha + self.rate * agreement).clamp_min(0)
        state.shared["alpha"] = alpha
        return alpha


@dataclass(frozen=True)
class IDBD(StepSize):
    """β ← β - rate·h·g,  α = exp β,  w ← w - α·u,  h ← h·(1 - α·u·g/2·loss)⁺ - α·u: a step size for every weight.

    u = lr·r·D. For a linear unit with squared error, loss = (aᵀw - b)²/2 and u = g (an optimizer whose direction is the
    gradient), u·g/2·loss is a² and this is Sutton's rule (AAAI 1992); for other losses g²/2·loss is the Gauss-Newton
    diagonal of one squared residual. The lr is where all α start.

    >>> import normgeo as ng
    >>> opt = ng.optimizer(ng.nn.Linear(4, 2), step=IDBD(rate=0.01), lr=0.01)
    """

    rate: float = 0.01
    needs = {"moves": 1, "updates": 1, "loss": 1}  # noqa: RUF012

    def __post_init__(self) -> None:
        _rate("IDBD", self.rate)

    def init(self, W: Tensor) -> dict[str, Tensor]:
        return {"beta": torch.zeros_like(W), "h": torch.zeros_like(W)}

    def init_shared(self) -> dict[str, float]:
        return {"loss": 0.0}

    def value(self, stats: Stats, state: StepState) -> list[Tensor]:
        assert stats.loss is not None
        state.shared["loss"] = stats.loss.to(state.shared["loss"])
        for move, leaf in zip(stats.moves, state.leaves, strict=True):
            leaf["beta"] = leaf["beta"] - self.rate * leaf["h"] * move.G
        return [leaf["beta"].exp() for leaf in state.leaves]

    def follow(self, moves: Sequence[Move], state: StepState) -> None:
        for move, leaf in zip(moves, state.leaves, strict=True):
            loss = state.shared["loss"].to(leaf["h"]).clamp_min(torch.finfo(leaf["h"].dtype).tiny)
            assert move.update is not None
            leaf["h"] = leaf["h"] * (1 + move.update * move.G / (2 * loss)).clamp_min(0) + move.update


def _rate(name: str, rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{name}: rate must be a finite number > 0, got {rate}")
