"""The public law-suite: check any instance, ours or yours. Each function raises AssertionError with a counterexample."""

from normgeo.testing.budgets import check_budget
from normgeo.testing.geometry import check_geometry
from normgeo.testing.norms import check_norm, check_polar
from normgeo.testing.optimizer import check_optimizer, examine_optimizer
from normgeo.testing.parts import check_constraint, check_rule, check_step
from normgeo.testing.recording import check_recording
from normgeo.testing.report import Finding, Report
from normgeo.testing.sharpness import check_sharpness

__all__ = [
    "Finding",
    "Report",
    "check_budget",
    "check_constraint",
    "check_geometry",
    "check_norm",
    "check_optimizer",
    "check_polar",
    "check_recording",
    "check_rule",
    "check_sharpness",
    "check_step",
    "examine_optimizer",
]
