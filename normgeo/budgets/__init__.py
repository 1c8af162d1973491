"""Budgets on optimizers: convex sets of operators Q in θ̇ = Q g, and the member that learns fastest from a moment."""

from normgeo.budgets.base import Budget, checked
from normgeo.budgets.combinators import Blocks, Intersection, Product, Scaled, Sum
from normgeo.budgets.datametric import DataMetric, on_values
from normgeo.budgets.diagonal import Diagonal
from normgeo.budgets.dynamic import (
    Dynamic,
    DynamicDataMetric,
    DynamicDiagonal,
    DynamicEllipsoid,
    DynamicFrobenius,
    IsotropicMoment,
    LagMoment,
    Nesterov,
    OnePole,
    PerFrequency,
    Restricted,
    best_ray,
    transfer,
)
from normgeo.budgets.ellipsoid import Ellipsoid
from normgeo.budgets.endpoint import endpoint, tangent_kernel
from normgeo.budgets.factored import KroneckerMoment, SketchMoment
from normgeo.budgets.frobenius import Frobenius
from normgeo.budgets.invariant import Invariant, OnDiagonal
from normgeo.budgets.layerwise import LayerWise
from normgeo.budgets.moments import BlockMoment, DiagonalMoment, FullMoment, Moment
from normgeo.budgets.numerical import NumericalWarning
from normgeo.budgets.registry import Recipe, Setting, registry
from normgeo.budgets.spectral import Spectral
from normgeo.budgets.step import Penalty, Step

__all__ = [
    "BlockMoment",
    "Blocks",
    "Budget",
    "DataMetric",
    "Diagonal",
    "DiagonalMoment",
    "Dynamic",
    "DynamicDataMetric",
    "DynamicDiagonal",
    "DynamicEllipsoid",
    "DynamicFrobenius",
    "Ellipsoid",
    "Frobenius",
    "FullMoment",
    "Intersection",
    "Invariant",
    "IsotropicMoment",
    "KroneckerMoment",
    "LagMoment",
    "LayerWise",
    "Moment",
    "Nesterov",
    "NumericalWarning",
    "OnDiagonal",
    "OnePole",
    "Penalty",
    "PerFrequency",
    "Product",
    "Recipe",
    "Restricted",
    "Scaled",
    "Setting",
    "SketchMoment",
    "Spectral",
    "Step",
    "Sum",
    "best_ray",
    "checked",
    "endpoint",
    "on_values",
    "registry",
    "tangent_kernel",
    "transfer",
]
