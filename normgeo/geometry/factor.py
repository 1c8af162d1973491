"""A number and how well it is known: a factor of a bound, a typical value, or an assumption."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Factor", "Known", "assumed", "bound", "total", "typical"]

Known = Literal["bound", "typical", "assumed"]
_TRUST: tuple[Known, ...] = ("bound", "typical", "assumed")


@dataclass(frozen=True)
class Factor:
    """A number ≥ 0; whatever is computed from several is known only as well as the worst of them.

    >>> bound(2.0) * typical(0.5) + bound(1.0)
    Factor(value=2.0, known='typical')
    """

    value: float
    known: Known = "bound"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise ValueError(f"a sensitivity or size is a finite number ≥ 0, got {self.value}")

    def __mul__(self, other: Factor) -> Factor:
        return Factor(self.value * other.value, _worst(self, other))

    def __add__(self, other: Factor) -> Factor:
        return Factor(self.value + other.value, _worst(self, other))

    def at_least(self, other: Factor) -> Factor:
        """The larger of the two."""
        return Factor(max(self.value, other.value), _worst(self, other))


def bound(value: float) -> Factor:
    """Never exceeded, for weights inside their unit balls.

    >>> bound(1.129).known
    'bound'
    """
    return Factor(value, "bound")


def typical(value: float) -> Factor:
    """What random inputs give; the worst case may be larger.

    >>> typical(0.7).known
    'typical'
    """
    return Factor(value, "typical")


def assumed(value: float = 1.0) -> Factor:
    """Nobody knows; the plan says so.

    >>> assumed()
    Factor(value=1.0, known='assumed')
    """
    return Factor(value, "assumed")


def total(products: Iterable[Sequence[Factor]]) -> Factor:
    """Σ of products, known as well as the worst of the products that are not 0 for a factor that is exactly 0.

    >>> total([(bound(0.0), typical(7.0)), (bound(2.0), bound(3.0))])
    Factor(value=6.0, known='bound')
    """
    sound = (factors for factors in products if not any(f == Factor(0.0) for f in factors))
    return sum((functools.reduce(Factor.__mul__, factors) for factors in sound), start=Factor(0.0))


def _worst(a: Factor, b: Factor) -> Known:
    return max(a.known, b.known, key=_TRUST.index)
