"""Weight decay: a pull towards 0 that turns the radius of the update into a ball for the weights."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.constraints.base import Constraint, Rate

__all__ = ["Decay", "DecoupledDecay"]


@dataclass(frozen=True)
class Decay(Constraint):
    """W ← (1 - η·strength)·W - η·r·D, as in AdamW. While η·strength ≤ 1, weights that start inside the ball
    ‖W‖ ≤ r/strength stay there, r being the radius of the leaf.

    >>> import torch
    >>> old, rate = torch.ones(1), Rate(torch.tensor(0.5), torch.tensor(1.0))
    >>> Decay(0.1).retract(old - 0.2, old, rate, {})
    tensor([0.7500])
    """

    strength: float

    def __post_init__(self) -> None:
        _check_strength(type(self).__name__, self.strength)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        return torch.addcmul(W, old, rate.eta, value=-self.strength)


@dataclass(frozen=True)
class DecoupledDecay(Constraint):
    """W ← (1 - s·strength)·W - η·r·D with the schedule s = η/lr₀, so the decay does not change with the lr.

    lr₀ is the lr that the group was made with. Source: Wortsman et al., arXiv 2309.14322; sign as in erratum X1-3.

    >>> import torch
    >>> old, rate = torch.ones(1), Rate(torch.tensor(0.01), torch.tensor(1.0))
    >>> DecoupledDecay(0.1).retract(old, old, rate, {})
    tensor([0.9000])
    """

    strength: float

    def __post_init__(self) -> None:
        _check_strength(type(self).__name__, self.strength)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        return torch.addcmul(W, old, rate.relative, value=-self.strength)


def _check_strength(name: str, strength: float) -> None:
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"{name}: strength must be a finite number ≥ 0, got {strength}")
