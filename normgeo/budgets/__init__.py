"""Budgets on optimizers: convex sets of operators Q in θ̇ = Q g, and the member that learns fastest from a moment."""

from normgeo.budgets.base import Budget, checked
from normgeo.budgets.combinators import Blocks, Intersection, Product, Scaled, Sum
from normgeo.budgets.diagonal import Diagonal
from normgeo.budgets.ellipsoid import Ellipsoid
from normgeo.budgets.frobenius import Frobenius
from normgeo.budgets.invariant import Invariant, OnDiagonal
from normgeo.budgets.layerwise import LayerWise
from normgeo.budgets.numerical import NumericalWarning
from normgeo.budgets.spectral import Spectral
from normgeo.budgets.step import Penalty, Step

__all__ = [
    "Blocks",
    "Budget",
    "Diagonal",
    "Ellipsoid",
    "Frobenius",
    "Intersection",
    "Invariant",
    "LayerWise",
    "NumericalWarning",
    "OnDiagonal",
    "Penalty",
    "Product",
    "Scaled",
    "Spectral",
    "Step",
    "Sum",
    "checked",
]
