"""Step sizes: one scalar per step, or one per leaf, row or weight."""

from normgeo.steps.adagrad import AdaGradNorm
from normgeo.steps.adamnorm import AdamNorm
from normgeo.steps.auto import Auto
from normgeo.steps.base import Stats, StepSize, StepState
from normgeo.steps.curvature import Cauchy, Secant
from normgeo.steps.cycles import Exponential, OneCycle, Spike, Stairs
from normgeo.steps.escape import Escape, Prodigy
from normgeo.steps.hypergradient import IDBD, Hypergradient
from normgeo.steps.linesearch import Armijo, Wolfe
from normgeo.steps.majorize import Majorize
from normgeo.steps.metaoptimize import MetaOptimize
from normgeo.steps.metas import Meta, MetaAdam, MetaLion, MetaSGD
from normgeo.steps.polyak import Polyak
from normgeo.steps.product import Product
from normgeo.steps.refine import Table, refine
from normgeo.steps.scheduler import scheduler
from normgeo.steps.schedules import WSD, Annealed, Constant, Cosine, Linear, Schedule, Sqrt, Warmup

__all__ = [
    "IDBD",
    "WSD",
    "AdaGradNorm",
    "AdamNorm",
    "Annealed",
    "Armijo",
    "Auto",
    "Cauchy",
    "Constant",
    "Cosine",
    "Escape",
    "Exponential",
    "Hypergradient",
    "Linear",
    "Majorize",
    "Meta",
    "MetaAdam",
    "MetaLion",
    "MetaOptimize",
    "MetaSGD",
    "OneCycle",
    "Polyak",
    "Prodigy",
    "Product",
    "Schedule",
    "Secant",
    "Spike",
    "Sqrt",
    "Stairs",
    "Stats",
    "StepSize",
    "StepState",
    "Table",
    "Warmup",
    "Wolfe",
    "refine",
    "scheduler",
]
