"""Odd polynomials x ↦ a x + b x³ + c x⁵ (+ ...), one a step, that together send the singular values in (0, 1] near 1.

Figures beside the tables: largest |p(x) - 1| on [1e-3, 1], and largest p(x) - 1 on [0, 1].
"""

from decimal import Decimal, localcontext
from functools import lru_cache
from math import comb, cos, pi
from typing import Any

import numpy as np

__all__ = [
    "CANS",
    "CUBIC",
    "DEEPSEEK",
    "KELLER",
    "QUINTIC",
    "YOU",
    "Schedule",
    "about_one",
    "evaluate",
    "optimal_polynomials",
    "optimal_quintics",
    "polar_express",
]

Schedule = tuple[tuple[float, ...], ...]
"""for each step the coefficients of x, x³, x⁵, ..."""

# Newton-Schulz proper: one step each, to be repeated (`15 * CUBIC`). p(1) = 1 with one and two vanishing derivatives, so
# nothing overshoots; small values grow by 1.5 and 1.875 a step. Björck and Bowie 1971; Kovarik 1970.
CUBIC: Schedule = ((1.5, -0.5, 0.0),)
QUINTIC: Schedule = ((1.875, -1.25, 0.375),)

# K. Jordan's Muon (2024): steepest at 0 for one repeated quintic that stays near [.7, 1.2]. .529, .202
KELLER: Schedule = 5 * ((3.4445, -4.7750, 2.0315),)

# J. You's Muon (2025): one quintic for each of five steps. .525, .145
YOU: Schedule = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# CANS (arXiv 2506.10935): optimal_quintics(5, lower=1e-3, cushion=0) to four digits. .120, .120
# No margin: sends 1.001 to 2e23, so rounding to 16 bits is too much for it.
CANS: Schedule = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)

# DeepSeek-V4 (2026): eight steps of Keller's to lift the small values, two to settle them at 1. 5.4e-4, 2.1e-3
DEEPSEEK: Schedule = 8 * KELLER[:1] + 2 * ((2.0, -1.5, 0.5),)

# The published choice of Polar Express, arXiv 2505.16932.
CUSHION = 0.02407327424182761


def evaluate(schedule: Schedule, x: Any) -> Any:
    """p(x) for the composition p of all steps, elementwise, for numbers or arrays of any kind.

    >>> round(evaluate(KELLER, 1.0), 3)
    0.696
    """
    for step in schedule:
        y, factor = x * x, 0.0
        for c in reversed(step):
            factor = factor * y + c
        x = x * factor
    return x


def about_one(step: tuple[float, ...]) -> tuple[float, ...]:
    """(q₀, q₁, ...) with a + b y + c y² + ... = q₀ + q₁ e + q₂ e² + ..., e = 1 - y: small coefficients where y is near 1.

    >>> about_one((1.875, -1.25, 0.375))
    (1.0, 0.5, 0.375)
    """
    return tuple(sum(c * comb(k, j) * (-1) ** j for k, c in enumerate(step)) for j in range(len(step)))


@lru_cache
def polar_express(
    steps: int | tuple[int, ...] = 6, safety: float = 1.01, lower: float = 1e-3, ceiling: float = 1.0
) -> Schedule:
    """`optimal_polynomials` (for a number of steps: quintics), with x/safety for x in all steps but the last, and the last
    scaled so that p([0, 1]) ⊆ [0, ceiling].

    >>> round(evaluate(polar_express(), 1e-3), 3)
    0.994
    """
    degrees = steps if isinstance(steps, tuple) else (5,) * steps
    *first, last = optimal_polynomials(degrees, lower)
    damped = tuple(tuple(c / safety ** (2 * k + 1) for k, c in enumerate(step)) for step in first)
    grid = np.concatenate([np.geomspace(1e-3 * lower, 1, 20_001), np.linspace(0, 1, 20_001)])
    top = float(evaluate((*damped, last), grid).max()) / ceiling
    return (*damped, tuple(c / top for c in last))


def optimal_quintics(steps: int, lower: float = 1e-3, cushion: float = CUSHION) -> Schedule:
    """`optimal_polynomials` of degree 5.

    >>> optimal_quintics(1)[0]
    (8.28721201814562..., -23.59588651909882..., 17.30038731253092...)
    """
    return optimal_polynomials((5,) * steps, lower, cushion)


@lru_cache
def optimal_polynomials(degrees: tuple[int, ...], lower: float = 1e-3, cushion: float = CUSHION) -> Schedule:
    """The odd polynomials of these degrees (5, 9, 13, ...) that bring [lower, 1] closest to 1 in the worst case, each the
    best for what the ones before leave.

    The best for [l, u] maps it to [p(l), 2 - p(l)], and the next one takes it from there: that greedy choice is optimal
    among all compositions (arXiv 2505.16932, Thm 3.1). For l ≪ u the best sends some values just below u almost to 0; so
    it is computed for max(l, cushion·u), then scaled to be centred on 1 over [l, u]. cushion = 0 gives the optimum.

    >>> [len(step) for step in optimal_polynomials((5, 9))]
    [3, 5]
    """
    if not degrees or any(d < 5 or d % 4 != 1 for d in degrees) or not 0 < lower < 1 or not 0 <= cushion < 1:
        raise ValueError(
            "the polynomials need degrees 5, 9, 13, ... (one a step, steps ≥ 1), 0 < lower < 1 and 0 ≤ cushion < 1, "
            f"got degrees={degrees}, lower={lower}, cushion={cushion}"
        )
    table = []
    # Decimal, since the systems are near-singular for l ≈ u, and since the digits are then the same on every machine.
    with localcontext(prec=60):
        low, high, share = Decimal(repr(lower)), Decimal(1), Decimal(repr(cushion))
        for degree in degrees:
            if 1 - low < Decimal("1e-6"):  # the limit l, u → 1; that of degree 5 is within 1e-11 of what is optimal
                table.append(QUINTIC[0])
                continue
            step = _best(degree, max(low, share * high), high)
            ends = [_at(step, low), _at(step, high)]
            centre = (ends[0] + ends[1]) / 2
            table.append(tuple(float(c / centre) for c in step))
            low = ends[0] / centre
            high = 2 - low
    return tuple(table)


Coefficients = list[Decimal]


def _at(step: Coefficients, x: Decimal) -> Decimal:
    return sum((c * x ** (2 * k + 1) for k, c in enumerate(step)), Decimal(0))


def _best(degree: int, low: Decimal, high: Decimal) -> Coefficients:
    """The odd polynomial with the least max |p - 1| on [low, high], by Remez exchange.

    It is the one that is 1 - e, 1 + e, 1 - e, ... at low = x₀ < x₁ < ... < high with p' = 0 inside. For given x the
    coefficients and e solve linear equations, and the zeros of p' are the next x.
    """
    count = (degree + 1) // 2
    points = [low + (high - low) * Decimal((1 - cos(pi * k / count)) / 2) for k in range(count + 1)]
    while True:
        rows = [[x ** (2 * k + 1) for k in range(count)] + [Decimal((-1) ** i)] for i, x in enumerate(points)]
        *step, _ = _solve(rows, [Decimal(1)] * (count + 1))
        before, points = points, [low, *_extremes(step), high]
        if max(abs(x - y) for x, y in zip(points, before, strict=True)) < Decimal("1e-25"):
            return step


def _extremes(step: Coefficients) -> list[Decimal]:
    """The positive zeros of p' in ascending order: in floating point, then polished by Newton's method in y = x²."""
    slope = [(2 * k + 1) * c for k, c in enumerate(step)]
    roots = sorted(np.roots([float(c) for c in reversed(slope)]).real)
    out = []
    for root in roots:
        y = Decimal(float(root))
        for _ in range(4):
            value = sum((c * y**k for k, c in enumerate(slope)), Decimal(0))
            y -= value / sum((k * c * y ** (k - 1) for k, c in enumerate(slope) if k), Decimal(0))
        out.append(y.sqrt())
    return out


def _solve(rows: list[Coefficients], right: Coefficients) -> Coefficients:
    """x with rows · x = right, by elimination with pivots."""
    table = [[*row, value] for row, value in zip(rows, right, strict=True)]
    for k in range(len(table)):
        pivot = max(range(k, len(table)), key=lambda i: abs(table[i][k]))
        table[k], table[pivot] = table[pivot], table[k]
        table[k] = [value / table[k][k] for value in table[k]]
        for i, row in enumerate(table):
            if i != k:
                table[i] = [a - row[k] * b for a, b in zip(row, table[k], strict=True)]
    return [row[-1] for row in table]
