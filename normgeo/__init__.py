"""Norm-based optimization for PyTorch: a network's modular norm, and the optimizer that follows from it."""

from normgeo import budgets, constraints, diagnostics, geometry, linalg, nn, norms, optim, rules, steps, testing
from normgeo.budgets import Budget
from normgeo.geometry import Leaf
from normgeo.norms import Norm
from normgeo.plan import Plan, compile, optimizer

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Leaf",
    "Norm",
    "Plan",
    "budgets",
    "compile",
    "constraints",
    "diagnostics",
    "geometry",
    "linalg",
    "nn",
    "norms",
    "optim",
    "optimizer",
    "rules",
    "steps",
    "testing",
]
