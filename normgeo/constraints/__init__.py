"""Constraints: what weights must satisfy after the step."""

from normgeo.constraints.base import Constraint, Free, Rate
from normgeo.constraints.decay import Decay, DecoupledDecay

__all__ = ["Constraint", "Decay", "DecoupledDecay", "Free", "Rate"]
