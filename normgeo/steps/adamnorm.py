"""Adam's second moment, one number for each leaf."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.linalg import host_sees, l2
from normgeo.steps.base import Move, Stats, StepSize, StepState

__all__ = ["AdamNorm"]


@dataclass(frozen=True)
class AdamNorm(StepSize):
    """value = min(1, ‖M‖₂/√v) for each leaf,  v = Σ_k β^k·‖G_{t-k}‖₂² / Σ_k β^k: Adam with one second moment for a whole
    leaf, in front of a direction of unit size.

    ‖M‖₂/√v is 1 while gradients agree. Where they are noise it is √Σ w_k² for a momentum of weights w_k, .27 for
    Nesterov's with .9: the lr that serves is about 4 times that of a constant step. As M starts from 0, so does the step.
    Where there is no noise it falls to 0 with the gradients, so that a quadratic is solved to many more digits than by
    steps of a given size. It needs a momentum: without one it is 1 wherever gradients keep their size. The cap keeps
    gradients that grow suddenly from taking steps longer than the lr.

    For `Frobenius` the step is lr·M/√v, Adam-mini's with one block a leaf. Sources: Kingma and Ba, arXiv 1412.6980; Zhang
    et al., arXiv 2406.16793, for blocks.

    >>> import normgeo as ng
    >>> opt = ng.optimizer(ng.nn.Linear(4, 2), step=ng.steps.Linear(100) * AdamNorm(), lr=0.8)
    """

    beta: float = 0.999
    needs = {"move": 1}  # noqa: RUF012

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"AdamNorm: beta is the weight on the past and must be in [0, 1), got {self.beta}")

    def init(self, W: Tensor) -> dict[str, Tensor]:
        zero = torch.zeros(len(W), dtype=torch.float64, device=W.device)
        return {"size": zero, "weights": zero.clone()}

    def value(self, stats: Stats, state: StepState) -> Sequence[Tensor]:
        return [self._ratio(move, leaf) for move, leaf in zip(stats.moves, state.leaves, strict=True)]

    def _ratio(self, move: Move, state: dict[str, Tensor]) -> Tensor:  # -> (n,)
        kept, new = self.beta**0.5, (1 - self.beta) ** 0.5
        state["size"] = size = torch.hypot(kept * state["size"], new * _length(move.G))
        state["weights"] = weights = torch.lerp(torch.ones_like(size), state["weights"], self.beta)
        return torch.where(size > 0, _length(move.M) / size * weights.sqrt(), 0.0).clamp(max=1.0)


def _length(x: Tensor) -> Tensor:  # (n, *shape) -> (n,) in float64, in which only squares of float64 overflow
    if x.dtype == torch.float64 or host_sees(x):
        return l2(x, x.ndim - 1).flatten().double()
    return torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1, dtype=torch.float64)
