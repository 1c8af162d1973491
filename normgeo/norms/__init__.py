"""Norms on updates: how big is a change, and what is the best change of size one."""

from normgeo.norms.base import Norm, with_polar
from normgeo.norms.combinators import Blocks, Scaled
from normgeo.norms.convolution import Conv, ConvTransposed, circulant_norm
from normgeo.norms.operators import L1ToRMS, RMSToRMS
from normgeo.norms.vectors import RMS, Linf

__all__ = [
    "RMS",
    "Blocks",
    "Conv",
    "ConvTransposed",
    "L1ToRMS",
    "Linf",
    "Norm",
    "RMSToRMS",
    "Scaled",
    "circulant_norm",
    "with_polar",
]
