"""‖W‖ ≤ ρ by projection."""

from dataclasses import dataclass

from torch import Tensor

from normgeo.constraints.base import Rate
from normgeo.constraints.measured import Measured, check_radius

__all__ = ["Ball"]


@dataclass(frozen=True)
class Ball(Measured):
    """W ← argmin ‖V - W‖₂ over ‖V‖ ≤ ρ, in the leaf's norm or in `norm`; weights inside are left as they are.

    Invariant: ‖W‖ ≤ ρ after every step, up to the rounding of the weights' dtype, wherever they started. For a linear
    map it costs an SVD a step: it caps √(in/out)·σᵢ at ρ. For an embedding it shortens rows, for a gain it clamps entries.

    >>> import torch
    >>> from normgeo.norms import Linf
    >>> Ball(2.0, norm=Linf()).retract(torch.tensor([[3.0, -1.0]]), None, None, {})
    tensor([[ 2., -1.]])
    """

    radius: float

    def __post_init__(self) -> None:
        check_radius(type(self).__name__, self.radius)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        return self.radius * self.measure().project(W / self.radius)
