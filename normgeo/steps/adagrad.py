"""AdaGrad with one number for all weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.steps.base import Stats, StepSize, StepState

__all__ = ["AdaGradNorm"]


@dataclass(frozen=True)
class AdaGradNorm(StepSize):
    """value = ‖M_t‖*/√(Σ_{s≤t} ‖M_s‖*²): AdaGrad with the dual norm of the network's gradient for its length, 1 at first
    and about 1/√t for gradients of constant size. No horizon is needed; `iterate=ScheduleFree()` takes the average.

    In the Euclidean norm, with the lr D ≥ the diameter of the set that the weights are held to, the regret is at most
    1.5·D·√Σ‖g‖², with lr D/√2 at most √2·D·√Σ‖g‖². Source: Streeter and McMahan, arXiv 1002.4862.

    >>> import normgeo as ng
    >>> opt = ng.optimizer(ng.nn.Linear(4, 2), step=AdaGradNorm(), lr=0.5)
    """

    needs = {"moves": 1}  # noqa: RUF012

    def init_shared(self) -> dict[str, float]:
        return {"squares": 0.0}

    def value(self, stats: Stats, state: StepState) -> Tensor:
        g = stats.dual_norm
        state.shared["squares"] = squares = state.shared["squares"] + g.square()
        return torch.where(squares > 0, g / squares.sqrt(), 0.0)
