"""Step sizes: one scalar per step."""

from normgeo.steps.base import Stats, StepSize, StepState
from normgeo.steps.cycles import Exponential, OneCycle, Spike, Stairs
from normgeo.steps.product import Product
from normgeo.steps.refine import Table, refine
from normgeo.steps.scheduler import scheduler
from normgeo.steps.schedules import WSD, Annealed, Constant, Cosine, Linear, Schedule, Sqrt, Warmup

__all__ = [
    "WSD",
    "Annealed",
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "OneCycle",
    "Product",
    "Schedule",
    "Spike",
    "Sqrt",
    "Stairs",
    "Stats",
    "StepSize",
    "StepState",
    "Table",
    "Warmup",
    "refine",
    "scheduler",
]
