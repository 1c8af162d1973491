"""Norms on updates: how big is a change, and what is the best change of size one."""

from normgeo.norms.base import Norm, with_polar
from normgeo.norms.combinators import Blocks, Scaled
from normgeo.norms.operators import L1ToRMS, RMSToRMS
from normgeo.norms.vectors import RMS, Linf

__all__ = ["RMS", "Blocks", "L1ToRMS", "Linf", "Norm", "RMSToRMS", "Scaled", "with_polar"]
