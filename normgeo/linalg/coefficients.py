"""Odd polynomials x ↦ a x + b x³ + c x⁵, one (a, b, c) a step, that together send the singular values in (0, 1] near 1.

Figures beside the tables: largest |p(x) - 1| on [1e-3, 1], and largest p(x) - 1 on [0, 1].
"""

from decimal import Decimal, localcontext
from functools import lru_cache
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
    "evaluate",
    "optimal_quintics",
    "polar_express",
]

Schedule = tuple[tuple[float, float, float], ...]

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
    for a, b, c in schedule:
        y = x * x
        x = x * (a + y * (b + y * c))
    return x


@lru_cache
def polar_express(steps: int = 6, safety: float = 1.01, lower: float = 1e-3) -> Schedule:
    """`optimal_quintics`, with x/safety for x in all steps but the last, and the last scaled so that p([0, 1]) ⊆ [0, 1].

    >>> round(evaluate(polar_express(), 1e-3), 3)
    0.994
    """
    *first, last = optimal_quintics(steps, lower)
    damped = tuple((a / safety, b / safety**3, c / safety**5) for a, b, c in first)
    grid = np.concatenate([np.geomspace(1e-3 * lower, 1, 20_001), np.linspace(0, 1, 20_001)])
    top = float(evaluate((*damped, last), grid).max())
    a, b, c = last
    return (*damped, (a / top, b / top, c / top))


@lru_cache
def optimal_quintics(steps: int, lower: float = 1e-3, cushion: float = CUSHION) -> Schedule:
    """The quintics that bring [lower, 1] closest to 1 in the worst case, each the best for what the ones before leave.

    The best for [l, u] maps it to [p(l), 2 - p(l)], and the next one takes it from there: that greedy choice is optimal
    among all compositions (arXiv 2505.16932, Thm 3.1). For l ≪ u the best sends some values just below u almost to 0; so
    it is computed for max(l, cushion·u), then scaled to be centred on 1 over [l, u]. cushion = 0 gives the optimum.

    >>> optimal_quintics(1)[0]
    (8.28721201814562..., -23.59588651909882..., 17.30038731253092...)
    """
    if steps < 1 or not 0 < lower < 1 or not 0 <= cushion < 1:
        raise ValueError(
            "the quintics need steps ≥ 1, 0 < lower < 1 and 0 ≤ cushion < 1, "
            f"got steps={steps}, lower={lower}, cushion={cushion}"
        )
    table = []
    # Decimal, since the systems are near-singular for l ≈ u, and since the digits are then the same on every machine.
    with localcontext(prec=60):
        low, high, share = Decimal(repr(lower)), Decimal(1), Decimal(repr(cushion))
        for _ in range(steps):
            if 1 - low < Decimal("1e-6"):  # the limit l, u → 1, whose coefficients are within 1e-11
                table.append(QUINTIC[0])
                continue
            a, b, c = _best_quintic(max(low, share * high), high)
            centre = (low * (a + b * low**2 + c * low**4) + high * (a + b * high**2 + c * high**4)) / 2
            a, b, c = a / centre, b / centre, c / centre
            table.append((float(a), float(b), float(c)))
            low = low * (a + b * low**2 + c * low**4)
            high = 2 - low
    return tuple(table)


Triple = tuple[Decimal, Decimal, Decimal]


def _best_quintic(low: Decimal, high: Decimal) -> Triple:
    """The odd quintic with the least max |p - 1| on [low, high], by Remez exchange.

    It is the one that meets 1 - e, 1 + e, 1 - e, 1 + e at low < q < r < high with p'(q) = p'(r) = 0. For given q and r
    the sums p(low) + p(q) = p(q) + p(r) = p(r) + p(high) = 2 are three linear equations for a, b, c.
    """
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    while True:
        rows = [(x + y, x**3 + y**3, x**5 + y**5) for x, y in ((low, q), (q, r), (r, high))]
        a, b, c = _solve(rows)
        root = (9 * b * b - 20 * a * c).sqrt()  # p' = a + 3 b x² + 5 c x⁴
        before, (q, r) = (q, r), (((-3 * b - root) / (10 * c)).sqrt(), ((-3 * b + root) / (10 * c)).sqrt())
        if abs(q - before[0]) + abs(r - before[1]) < Decimal("1e-25"):
            return a, b, c


def _solve(rows: list[Triple]) -> Triple:
    """x with rows · x = (2, 2, 2), by Cramer's rule."""
    columns = list(zip(*rows, strict=True))
    twos = (Decimal(2),) * 3
    whole = _determinant(columns)
    a, b, c = (_determinant([*columns[:k], twos, *columns[k + 1 :]]) / whole for k in range(3))
    return a, b, c


def _determinant(columns: list[Any]) -> Decimal:
    (a, b, c), (d, e, f), (g, h, i) = columns
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
