"""How much one operation bends: bounds of its second derivatives, in the norms in which tensors are measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normgeo.geometry.factor import Factor, bound, total, typical

__all__ = ["LINEAR", "PIECEWISE_LINEAR", "Curvature", "entrywise"]


@dataclass(frozen=True)
class Curvature:
    """‖∂²z[δ, δ']‖ ≤ Σᵢⱼ γᵢⱼ·‖δᵢ‖·‖δ'ⱼ‖ over pairs of inputs of an operation. γ is symmetric: `pairs` has (i, j, γᵢⱼ) with
    i ≤ j, and pairs that are left out are 0. An operation that is linear in all its inputs together has none.

    >>> product = Curvature(((0, 1, bound(2.0)),))
    >>> product.between((bound(1.0), bound(0.0)), (bound(0.0), bound(3.0))).value
    6.0
    """

    pairs: tuple[tuple[int, int, Factor], ...] = ()
    dimension: float = 1.0
    """the factor in γ that grows with the number of features, such as √features"""

    def between(self, a: Sequence[Factor], b: Sequence[Factor]) -> Factor:
        """Σᵢⱼ γᵢⱼ·aᵢ·bⱼ."""
        mirrored = [(j, i, c) for i, j, c in self.pairs if i != j]
        return total((c, a[i], b[j]) for i, j, c in (*self.pairs, *mirrored) if a[i].value and b[j].value)


LINEAR = Curvature()
"""No second derivatives."""

PIECEWISE_LINEAR = Curvature(((0, 0, typical(0.0)),))
"""Second derivatives that are 0 almost everywhere, though not at the kinks, which a step of finite size crosses: hence a
typical 0 and not a bound."""


def entrywise(second: float, features: int | None) -> Curvature | None:
    """Of φ entry by entry, with sup|φ''| = `second`: γ = √features·sup|φ''| from RMS to RMS, since RMS(a ⊙ b) ≤
    √features·RMS(a)·RMS(b), reached by changes of one entry. Unknown (None) if the number of features is.

    >>> entrywise(0.5, features=4).pairs
    ((0, 0, Factor(value=1.0, known='bound')),)
    """
    if features is None:
        return None
    root = math.sqrt(features)
    return Curvature(((0, 0, bound(second * root)),), dimension=root)
