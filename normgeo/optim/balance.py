"""Who does which work: independent tasks over ranks, the largest first."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

__all__ = ["assign", "polar_flops"]


def assign(costs: Sequence[float], ranks: int) -> list[int]:
    """The rank of each task: tasks in descending order of cost, each to the rank that has least to do so far. The busiest
    rank gets at most 4/3 - 1/(3·ranks) times what the best assignment would give it (Graham 1969). Ties go to the first
    task and the first rank, so that every rank computes the same answer.

    >>> assign([3.0, 3.0, 2.0, 2.0, 2.0], ranks=2)
    [0, 1, 0, 1, 0]
    """
    if ranks < 1:
        raise ValueError(f"assign: ranks must be at least 1, got {ranks}")
    least = [(0.0, rank) for rank in range(ranks)]
    owners = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = least[0]
        owners[task] = rank
        heapq.heapreplace(least, (load + costs[task], rank))
    return owners


def polar_flops(shape: Sequence[int], steps: int = 6) -> float:
    """steps·(4·m²·n + 2·m³) for the sides m ≤ n of a matrix: an odd quintic iteration for its polar factor. Axes before the
    last two are blocks.

    >>> polar_flops((2, 3), steps=1)
    64.0
    """
    *blocks, a, b = (1, 1, *shape)
    m, n = min(a, b), max(a, b)
    count = 1.0
    for block in blocks:
        count *= block
    return count * steps * (4.0 * m * m * n + 2.0 * m**3)
