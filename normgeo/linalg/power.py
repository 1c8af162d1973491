"""The power method in arbitrary norms: how much can a linear map stretch the unit ball?"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor

__all__ = ["steepest_gain"]

X = TypeVar("X")


def steepest_gain(
    forward: Callable[[X], Tensor],
    backward: Callable[[Tensor], X],
    norming: Callable[[Tensor], Tensor],
    dualize: Callable[[X], X],
    starts: Iterable[X],
    iterations: int = 30,
) -> float:
    """max ‖J x‖ over ‖x‖ ≤ 1, from below, by u ← norming functional of J x, x ← dualize(Jᵀ u).

    `norming(y)` is some u with ‖u‖* = 1 and ⟨u, y⟩ = ‖y‖; `starts` are points of the unit ball of the inputs. No round
    lowers ‖J x‖: ‖J x⁺‖ ≥ ⟨u, J x⁺⟩ = ‖Jᵀu‖* ≥ ⟨Jᵀu, x⟩ = ‖J x‖. Returns the best over all starts.

    >>> import torch
    >>> j, unit = torch.diag(torch.tensor([3.0, 1.0])), lambda x: x / x.norm()
    >>> round(steepest_gain(j.mv, j.mv, unit, unit, [unit(torch.ones(2))]), 4)
    3.0
    """
    best = 0.0
    for x in starts:
        for _ in range(iterations):
            y = forward(x)
            u = norming(y)
            best = max(best, float((u * y).sum()))
            x = dualize(backward(u))
    return best
