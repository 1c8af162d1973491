"""What a person says about leaves, in place of what is found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from normgeo.geometry import GeometryError, Leaf
from normgeo.geometry.splits import Split
from normgeo.norms import Norm
from normgeo.plan.names import some
from normgeo.plan.patterns import overrides

__all__ = ["Overrides"]


@dataclass(frozen=True)
class Overrides:
    """Values by pattern of leaf names, or of parameter names for roles and splits.

    >>> from normgeo.norms import RMSToRMS
    >>> leaf = Leaf("up.weight", "up.weight", (4, 2), "linear", RMSToRMS())
    >>> [(leaf.mass, leaf.radius) for leaf in Overrides(masses={"up": 2.0}, radii={"*": 0.5}).applied([leaf])]
    [(2.0, 0.5)]
    """

    masses: Mapping[str, float] | None = None
    norms: Mapping[str, Norm] | None = None
    radii: Mapping[str, float] | None = None
    roles: Mapping[str, str] | None = None
    splits: Mapping[str, Split] | None = None
    strict: bool = False
    """whether what is assumed is an error"""

    def norms_of(self, names: Iterable[str]) -> dict[str, Norm]:
        return overrides("norms", self.norms, list(names))

    def check(self, leaves: Sequence[Leaf], remedy: str) -> None:
        """Raise if strict and something is assumed."""
        if self.strict and (unknown := [leaf.name for leaf in leaves if leaf.known == "assumed"]):
            raise GeometryError(f"{some(unknown)}: {remedy} or drop strict=True")

    def applied(self, leaves: Sequence[Leaf]) -> tuple[Leaf, ...]:
        """The leaves with the masses that were given, and radii r = (m/M)/(x·μ); a radius that is given is kept by the μ
        that would have led to it."""
        leaves = self._with_masses(leaves)
        total = sum(leaf.mass for leaf in leaves if leaf.trainable)
        given = overrides("radii", self.radii, [leaf.name for leaf in leaves])
        out = []
        for leaf in leaves:
            share = leaf.mass / total if total else 0.0
            if leaf.name in given:
                radius = given[leaf.name]
                if not (math.isfinite(radius) and radius > 0 and share > 0):
                    raise ValueError(
                        f"radii: {leaf.name} needs a finite radius > 0 and a mass > 0; for no movement use masses"
                    )
                mu = share / (radius * leaf.input_norm)
                leaf = dataclasses.replace(leaf, sensitivity=mu, source="radius given", known="typical")
            out.append(dataclasses.replace(leaf, radius=share * leaf.reach))
        return tuple(out)

    def _with_masses(self, leaves: Sequence[Leaf]) -> list[Leaf]:
        given = overrides("masses", self.masses, [leaf.name for leaf in leaves])
        for name, m in given.items():
            if not (math.isfinite(m) and m >= 0):
                raise ValueError(f"masses: the mass of {name} must be a finite number ≥ 0, got {m}")
        return [dataclasses.replace(leaf, mass=given.get(leaf.name, leaf.mass)) for leaf in leaves]
