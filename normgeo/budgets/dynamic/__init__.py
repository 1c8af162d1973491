"""Budgets on optimizers with memory: convex sets of causal filters θ̇[n] = Σ_k Q[k] g[n-k], asked about lag moments."""

from normgeo.budgets.dynamic import transfer
from normgeo.budgets.dynamic.base import Dynamic
from normgeo.budgets.dynamic.datametric import DynamicDataMetric
from normgeo.budgets.dynamic.diagonal import DynamicDiagonal
from normgeo.budgets.dynamic.ellipsoid import DynamicEllipsoid
from normgeo.budgets.dynamic.family import Nesterov, OnePole, Restricted, best_ray
from normgeo.budgets.dynamic.frequency import PerFrequency
from normgeo.budgets.dynamic.frobenius import DynamicFrobenius
from normgeo.budgets.dynamic.lags import IsotropicMoment, LagMoment

__all__ = [
    "Dynamic",
    "DynamicDataMetric",
    "DynamicDiagonal",
    "DynamicEllipsoid",
    "DynamicFrobenius",
    "IsotropicMoment",
    "LagMoment",
    "Nesterov",
    "OnePole",
    "PerFrequency",
    "Restricted",
    "best_ray",
    "transfer",
]
