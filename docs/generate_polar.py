"""Writes docs/polar.md: `python docs/generate_polar.py`.

A polynomial in X moves the singular values and nothing else, so every figure comes from the scalar map x ↦ p(x), in
float64; tests/test_polar_table.py confirms it on matrices.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from normgeo.linalg import FAST, TIGHT
from normgeo.linalg.coefficients import (
    CANS,
    CUBIC,
    DEEPSEEK,
    KELLER,
    QUINTIC,
    YOU,
    Schedule,
    evaluate,
    optimal_polynomials,
    polar_express,
)

Array = np.ndarray
TARGET = Path(__file__).with_name("polar.md")
SIZES = (256, 1024, 4096)

METHODS: list[tuple[str, Schedule]] = [
    ("**tight, the default: degree 5, then 9**", TIGHT.schedule),
    ("**fast: degree 5, the last 9**", FAST.schedule),
    ("Polar Express", polar_express(6)),
    ("Polar Express", polar_express(5)),
    ("Polar Express", polar_express(8)),
    ("Polar Express", polar_express(10)),
    ("Polar Express on [1e-5, 1]", polar_express(10, lower=1e-5)),
    ("Keller", KELLER),
    ("You", YOU),
    ("CANS", CANS),
    ("DeepSeek", DEEPSEEK),
    ("quintic 15/8", 5 * QUINTIC),
    ("quintic 15/8", 10 * QUINTIC),
    ("cubic 3/2", 5 * CUBIC),
    ("cubic 3/2", 15 * CUBIC),
]

PRODUCTS = {3: 2, 5: 3, 9: 4, 13: 5}
"""of matrices, in a step of that degree: XXᵀ, powers of it, and what multiplies X"""

# Singular values of the hard gradients, before division by their Frobenius norm.
GRID = (np.arange(256) + 0.5) / 256
SPECTRA: dict[str, Array] = {
    "linspace": np.linspace(0, 1, 256),
    "logspace to 1e-3": np.geomspace(1, 1e-3, 256),
    "to 1e-6": np.geomspace(1, 1e-6, 256),
    "to 1e-10": np.geomspace(1, 1e-10, 256),
    "half zero": np.repeat([1.0, 0.0], 128),
    "rank 2": np.array([1.0, 0.5]),
    "rank 10": np.geomspace(1, 1e-3, 10),
    "Gamma(1)": -np.log(GRID),
    "Gamma(½)": torch.erfinv(torch.from_numpy(GRID)).square().numpy(),
}


class Worst(NamedTuple):
    """The least descent of all spectra of n values: n - count of them at `low`, `count` at `high`, unit norm."""

    descent: float
    low: float
    high: float
    count: float


def descent(schedule: Schedule, spectrum: Array) -> float:
    """⟨G, p(G/‖G‖_F)⟩ / ‖G‖* = Σ s p(s/‖s‖) / Σ s."""
    return float(spectrum @ evaluate(schedule, spectrum / np.linalg.norm(spectrum)) / spectrum.sum())


def worst_descent(schedule: Schedule, n: int) -> Worst:
    """min Σ x p(x) / Σ x over x ≥ 0 with n entries and Σ x² = 1.

    Over all distributions of x with mean square 1/n, a superset, this is a linear-fractional program with one constraint:
    the ratio is at least ρ iff the convex envelope of h = x p(x) - ρ x, as a function of x², is ≥ 0 at 1/n. Its minimum
    puts all weight on two values. The count of large values need not be an integer, so this is a bound from below.
    """
    x = np.unique(np.concatenate([[0], np.geomspace(1e-9, 1, 20_000), np.linspace(1e-3, 1, 4_000)]))
    gain, ratio = x * evaluate(schedule, x), 1.0
    while True:
        i, j = _envelope(gain - ratio * x, x * x, 1 / n)
        weight = (1 / n - x[i] ** 2) / max(x[j] ** 2 - x[i] ** 2, 1e-300)
        # Dinkelbach's iteration: the ratio at the minimum is the next ρ.
        mix = np.array([1 - weight, weight])
        new = float(mix @ gain[[i, j]] / (mix @ x[[i, j]]))
        if abs(new - ratio) < 1e-9:
            return Worst(new, float(x[i]), float(x[j]), float(n * weight))
        ratio = new


def _envelope(h: Array, y: Array, at: float) -> tuple[int, int]:
    """The two points of (y, h) whose chord is the convex envelope over y = at, by bisection on its slope."""
    low, high = -1e6, 1e6
    for _ in range(80):
        slope = (low + high) / 2
        low, high = (slope, high) if y[np.argmin(h - slope * y)] < at else (low, slope)
    return int(np.argmin(h - low * y)), int(np.argmin(h - high * y))


def error(schedule: Schedule) -> float:
    """max |p(x) - 1| on [1e-3, 1]."""
    return float(np.abs(evaluate(schedule, np.geomspace(1e-3, 1, 100_001)) - 1).max())


def overshoot(schedule: Schedule) -> float:
    """max p(x) - 1 on [0, 1], 0 if there is none."""
    return max(0.0, float(evaluate(schedule, np.geomspace(1e-9, 1, 100_001)).max()) - 1)


def flops(schedule: Schedule, ratio: float) -> float:
    """In m³, for m × ratio·m: XXᵀ and its product with X take 2 m²n each, (XXᵀ)² takes 2 m³, and so does degree 9 more."""
    return sum(4 * ratio + 2 * (step[2] != 0) + 2 * (len(step) == 5) for step in schedule)


@lru_cache
def contracted(degree: int, low: float) -> float:
    """l' with p([low, 1]) = u·[l', 1] for the odd polynomial of that degree for which l' is largest."""
    if low > 0.999:
        return 1.0
    if degree == 3:  # x - x³/β is the same at both ends
        beta = 1 + low + low * low
        return (1 - 1 / beta) / (2 / 3 * (beta / 3) ** 0.5)
    least = evaluate(optimal_polynomials((degree,), low, cushion=0), low)
    return least / (2 - least)


def fewest(most: int) -> dict[int, tuple[float, tuple[int, ...]]]:
    """For each number of products the largest l' that a sequence of steps can have from [1e-3, 1], and their degrees."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (1e-3, ())}
    for count in range(2, most + 1):
        before = [(best[count - n], d) for d, n in PRODUCTS.items() if count - n in best]
        best[count] = max((contracted(d, low), (*degrees, d)) for (low, degrees), d in before)
    return best


def gram_flops(schedule: Schedule, ratio: float) -> float:
    """In m³: 4 m²n a start; a step has R², and R ← P R P and Q ← P Q except in the last and first of its block."""
    cuts = [0, *range(2, len(schedule), 3), len(schedule)]
    blocks = len(cuts) - 1
    return 4 * ratio * blocks + 2 * (sum(c != 0 for *_, c in schedule) + 3 * (len(schedule) - blocks))


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def small(value: float) -> str:
    return "0" if value < 1e-8 else f"{value:.1e}" if value < 1e-2 else f"{value:.3f}"


def at_least(value: float) -> str:
    return f"{np.floor(1000 * value) / 1000:.3f}"


def page() -> str:
    def rows(cells: Callable[[Schedule], list[str]]) -> list[list[str]]:
        return [[name, str(len(schedule)), *cells(schedule)] for name, schedule in METHODS]

    def figures(schedule: Schedule) -> list[str]:
        costs = [f"{flops(schedule, ratio):.0f}" for ratio in (1, 4)]
        costs.append(f"{gram_flops(schedule, 4):.0f}" if max(map(len, schedule)) == 3 else "-")
        worst = [at_least(worst_descent(schedule, n).descent) for n in SIZES]
        return [small(error(schedule)), small(overshoot(schedule)), *costs, *worst]

    def hard(schedule: Schedule) -> list[str]:
        return [f"{descent(schedule, spectrum):.3f}" for spectrum in SPECTRA.values()]

    head = ["method", "steps", "error", "overshoot", "n = m", "n = 4 m", "Gram, n = 4 m", *(f"m = {n}" for n in SIZES)]
    products = [
        [
            str(n),
            ", ".join(map(str, degrees)),
            f"{2 * n}",
            f"{sum(2 * PRODUCTS[d] + 12 for d in degrees)}",
            f"{low:.4f}",
        ]
        for n, (low, degrees) in fewest(19).items()
        if n >= 12
    ]
    least = table(["products", "degrees", "n = m", "n = 4 m", "l"], products)
    return TEXT.format(
        least=least, table=table(head, rows(figures)), hard=table(["method", "steps", *SPECTRA], rows(hard))
    )


TEXT = """# Polar factors by polynomials

Made by `python docs/generate_polar.py`, from the scalar map p of each method in float64.

- error: largest |p(x) - 1| for singular values x of G/‖G‖_F in [1e-3, 1]; overshoot: largest p(x) - 1 in [0, 1]; 0 stands
  for less than 1e-8.
- n = m, n = 4 m: floating-point operations in m³ for m × n matrices; Gram: the same with `gram=True`.
- m = 256, 1024, 4096: the least ⟨G, P⟩/‖G‖* that any G with m singular values can have, 1 for the exact polar factor. The
  worst G has one large singular value and m - 1 small equal ones, or nearly so.

{table}

## How few products are enough

The largest l such that some sequence of odd polynomials sends [1e-3, 1] into [l, 1], in exact arithmetic: each step the
best of its degree for what the ones before leave. Degree 3 takes 2 products, 5 takes 3, 9 takes 4, 13 takes 5.

{least}

fast takes 13 products. Within 1.2 times as many there is no sequence that brings all of [1e-3, 1] to within 1 % of 1: 15
leave 11 %. In bfloat16 the rounding of G moves values of 1e-3 to 6e-4 (at sides of 64), and that of the steps .35 % at both
ends. From 6e-4 on, 17 products leave 3 %, and 18 leave .3 %, or .6 % with coefficients that have margins for rounding: too
much. So tight takes 19, and of sequences of 19 the one of degree 9, which multiplies X least often.

## Hard gradients

⟨G, P⟩/‖G‖* for 256 singular values: evenly spaced in [0, 1]; geometric from 1 down; half of them 1, half 0; (1, ½, 0, ...);
10 of them geometric from 1 to 1e-3, the others 0; the 256 quantiles of Gamma distributions.

{hard}
"""

if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
