"""Tensors in, tensors out: polar factors and scale-safe sizes. Nothing here knows of norms, parameters or models."""

from normgeo.linalg import coefficients
from normgeo.linalg.clip import SHARP, clip, leading
from normgeo.linalg.decompose import eigh, eigvalsh, svd, svdvals
from normgeo.linalg.newton_schulz import FAST, SMALLEST_MIXED, TIGHT, NewtonSchulz, PolarExpress, in_dtype
from normgeo.linalg.polar import SVD, Polar
from normgeo.linalg.power import ascent, steepest_gain
from normgeo.linalg.randomized import RandomizedSVD
from normgeo.linalg.scale import exponent, host_sees, l2, shift

__all__ = [
    "FAST",
    "SHARP",
    "SMALLEST_MIXED",
    "SVD",
    "TIGHT",
    "NewtonSchulz",
    "Polar",
    "PolarExpress",
    "RandomizedSVD",
    "ascent",
    "clip",
    "coefficients",
    "eigh",
    "eigvalsh",
    "exponent",
    "host_sees",
    "in_dtype",
    "l2",
    "leading",
    "shift",
    "steepest_gain",
    "svd",
    "svdvals",
]
