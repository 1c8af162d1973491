"""Budgets on optimizers: convex sets of operators Q in θ̇ = Q g, and the member that learns fastest from a moment."""

from normgeo.budgets.base import Budget, checked
from normgeo.budgets.diagonal import Diagonal
from normgeo.budgets.frobenius import Frobenius
from normgeo.budgets.invariant import Invariant, OnDiagonal
from normgeo.budgets.spectral import Spectral

__all__ = ["Budget", "Diagonal", "Frobenius", "Invariant", "OnDiagonal", "Spectral", "checked"]
