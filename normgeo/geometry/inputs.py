"""What a plan assumes of the inputs of its network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Input"]


@dataclass(frozen=True)
class Input:
    """One input: RMS over the features on `axis` at most `size` for every token or pixel. Ids have no size.

    >>> import torch
    >>> Input(size=1.0).measure(torch.tensor([[3.0, 3.0], [1.0, 0.0]]))
    3.0
    """

    size: float = 1.0
    axis: int = -1

    def measure(self, x: Any) -> float:
        """The largest RMS of x over its features, 0 for what is no floating tensor."""
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            return 0.0
        largest = float(x.detach().float().square().mean(self.axis).sqrt().max())
        if not math.isfinite(largest):
            raise ValueError("example_inputs contain NaN or Inf; give inputs as they come in training")
        return largest
