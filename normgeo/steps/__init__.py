"""Step sizes: one scalar per step."""

from normgeo.steps.base import Stats, StepSize, StepState
from normgeo.steps.schedules import WSD, Constant, Cosine, Linear, Schedule

__all__ = ["WSD", "Constant", "Cosine", "Linear", "Schedule", "Stats", "StepSize", "StepState"]
