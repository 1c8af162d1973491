"""Tensors in, tensors out: polar factors and scale-safe sizes. Nothing here knows of norms, parameters or models."""

from normgeo.linalg.decompose import svd, svdvals
from normgeo.linalg.polar import SVD, Polar, PolarExpress
from normgeo.linalg.power import steepest_gain
from normgeo.linalg.scale import exponent, l2, shift

__all__ = ["SVD", "Polar", "PolarExpress", "exponent", "l2", "shift", "steepest_gain", "svd", "svdvals"]
