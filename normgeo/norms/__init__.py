"""Norms on updates: how big is a change, and what is the best change of size one."""

from normgeo.norms.base import Norm, with_polar
from normgeo.norms.combinators import Blocks, L2OfBlocks, Scaled, SumOfBlocks, Viewed
from normgeo.norms.convolution import Conv, ConvTransposed, circulant_norm
from normgeo.norms.operators import L1ToLinf, L1ToRMS, RMSToLinf, RMSToRMS
from normgeo.norms.spectral import Frobenius, KyFan, Nuclear, Schatten, Spectral
from normgeo.norms.vectors import L1, L2, RMS, Absolute, Linf
from normgeo.norms.weighted import Weighted

__all__ = [
    "L1",
    "L2",
    "RMS",
    "Absolute",
    "Blocks",
    "Conv",
    "ConvTransposed",
    "Frobenius",
    "KyFan",
    "L1ToLinf",
    "L1ToRMS",
    "L2OfBlocks",
    "Linf",
    "Norm",
    "Nuclear",
    "RMSToLinf",
    "RMSToRMS",
    "Scaled",
    "Schatten",
    "Spectral",
    "SumOfBlocks",
    "Viewed",
    "Weighted",
    "circulant_norm",
    "with_polar",
]
