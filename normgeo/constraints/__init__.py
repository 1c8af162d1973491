"""Constraints: what weights must satisfy after the step."""

from normgeo.constraints.ball import Ball
from normgeo.constraints.base import Constraint, Free, Pull, Rate
from normgeo.constraints.decay import CorrectedDecay, Decay, DecoupledDecay, L2Penalty, ScheduledDecay
from normgeo.constraints.frank_wolfe import FrankWolfe
from normgeo.constraints.hammer import SpectralHammer
from normgeo.constraints.hard_cap import HardCap
from normgeo.constraints.normalize import Normalize
from normgeo.constraints.rows import Oblique, RowCap
from normgeo.constraints.soft_cap import SoftCap
from normgeo.constraints.spectral_decay import SpectralDecay
from normgeo.constraints.sphere import Sphere
from normgeo.constraints.stiefel import Stiefel, steepest_tangent

__all__ = [
    "Ball",
    "Constraint",
    "CorrectedDecay",
    "Decay",
    "DecoupledDecay",
    "FrankWolfe",
    "Free",
    "HardCap",
    "L2Penalty",
    "Normalize",
    "Oblique",
    "Pull",
    "Rate",
    "RowCap",
    "ScheduledDecay",
    "SoftCap",
    "SpectralDecay",
    "SpectralHammer",
    "Sphere",
    "Stiefel",
    "steepest_tangent",
]
