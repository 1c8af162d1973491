"""From a network to its optimizer: compile once into a flat table of leaves, then apply."""

from normgeo.plan.compile import compile, optimizer
from normgeo.plan.plan import Plan
from normgeo.plan.verdict import Verdict

__all__ = ["Plan", "Verdict", "compile", "optimizer"]
