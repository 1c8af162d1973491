"""Bounds of sensitivities along a recorded graph: one rule for each operation."""

from normgeo.geometry.bounds import (
    attention,
    contraction,
    convolution,
    entrywise,
    lookup,
    moves,
    normalisation,
    reduction,
)
from normgeo.geometry.bounds.local import Measure
from normgeo.geometry.bounds.tracer import Bounds, Linearized, bounds, linearization

__all__ = [
    "Bounds",
    "Linearized",
    "Measure",
    "attention",
    "bounds",
    "contraction",
    "convolution",
    "entrywise",
    "linearization",
    "lookup",
    "moves",
    "normalisation",
    "reduction",
]
