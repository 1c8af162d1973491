"""The power method in arbitrary norms: how much can a linear map stretch the unit ball?"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from torch import Tensor

__all__ = ["ascent", "steepest_gain"]

X = TypeVar("X")


def ascent(
    forward: Callable[[X], Tensor],
    backward: Callable[[Tensor], X],
    norming: Callable[[Tensor], Tensor],
    dualize: Callable[[X], X],
    start: X,
) -> Iterator[tuple[Tensor, X]]:
    """The endless rounds u ← norming functional of J x, x ← dualize(Jᵀu), each as (‖J x‖, Jᵀu).

    `norming(y)` is some u with ‖u‖* = 1 and ⟨u, y⟩ = ‖y‖. No round lowers ‖J x‖: ‖J x⁺‖ ≥ ⟨u, J x⁺⟩ = ‖Jᵀu‖* ≥ ⟨Jᵀu, x⟩
    = ‖J x‖. Whatever u is, ‖Jᵀu‖* ≤ max ‖J x‖ over ‖x‖ ≤ 1.

    >>> import torch
    >>> j, unit = torch.diag(torch.tensor([3.0, 1.0])), lambda x: x / x.norm()
    >>> rounds = ascent(j.mv, j.mv, unit, unit, unit(torch.ones(2)))
    >>> [round(float(next(rounds)[0]), 2) for _ in range(3)]
    [2.24, 2.98, 3.0]
    """
    x = start
    while True:
        y = forward(x)
        u = norming(y)
        g = backward(u)
        yield (u * y).sum(), g
        x = dualize(g)


def steepest_gain(
    forward: Callable[[X], Tensor],
    backward: Callable[[Tensor], X],
    norming: Callable[[Tensor], Tensor],
    dualize: Callable[[X], X],
    starts: Iterable[X],
    iterations: int = 30,
) -> float:
    """max ‖J x‖ over ‖x‖ ≤ 1, from below: the largest ‖J x‖ of the `ascent` from each start, a point of the unit ball.

    >>> import torch
    >>> j, unit = torch.diag(torch.tensor([3.0, 1.0])), lambda x: x / x.norm()
    >>> round(steepest_gain(j.mv, j.mv, unit, unit, [unit(torch.ones(2))]), 4)
    3.0
    """
    best = 0.0
    for start in starts:
        rounds = islice(ascent(forward, backward, norming, dualize, start), iterations)
        best = max(best, *(float(gain) for gain, _ in rounds))
    return best
