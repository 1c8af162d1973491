"""What torch's functions do to sizes and weights: one rule each."""

from normgeo.geometry.operations import (
    attention,
    contraction,
    convolution,
    elementwise,
    fourier,
    lookup,
    normalisation,
    recurrence,
    reduction,
    shape,
)

__all__ = [
    "attention",
    "contraction",
    "convolution",
    "elementwise",
    "fourier",
    "lookup",
    "normalisation",
    "recurrence",
    "reduction",
    "shape",
]
