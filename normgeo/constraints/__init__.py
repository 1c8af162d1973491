"""Constraints: what weights must satisfy after the step."""

from normgeo.constraints.ball import Ball
from normgeo.constraints.base import Constraint, Free, Rate
from normgeo.constraints.decay import Decay, DecoupledDecay
from normgeo.constraints.sphere import Sphere

__all__ = ["Ball", "Constraint", "Decay", "DecoupledDecay", "Free", "Rate", "Sphere"]
