"""What a budget does not say in closed form, found from what it does say, in float64, to a relative `TOLERANCE`.

| given | gauge | maximizer | project |
|---|---|---|---|
| constraints | bisection | barrier method with Newton steps, gap ν/t | Frank-Wolfe |
| projection | bisection | project(α·M), α → ∞ | |
| gauge | | BFGS on log gauge(Q) - log ⟨Q, M⟩ over Q = L·Lᵀ | Frank-Wolfe |
| maximizer | BFGS on log support(M) - log ⟨Q, M⟩ over M | | Frank-Wolfe |
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normgeo.budgets.barrier import barrier_maximizer
from normgeo.budgets.bisection import bisect, push
from normgeo.budgets.frank_wolfe import frank_wolfe
from normgeo.budgets.search import gauge_from_maximizer, maximizer_from_gauge
from normgeo.budgets.shapes import TOLERANCE, own

if TYPE_CHECKING:
    from normgeo.budgets.base import Budget

__all__ = ["GIVEN", "NumericalWarning", "complete"]

GIVEN = ("maximizer", "gauge", "project", "constraints")
_told: set[tuple[type, str]] = set()


class NumericalWarning(UserWarning):
    """A function of a budget is found by iteration; the message says from what, how precisely and at what cost.

    >>> issubclass(NumericalWarning, UserWarning)
    True
    """


def complete(budget: Budget, name: str, x: Tensor) -> Tensor:
    """The function of this name at x (*b, *d), from the functions that the budget defines; the first call says so."""
    source, method = _choose(budget, name)
    with torch.enable_grad():
        items = x.detach().double().reshape(-1, *x.shape[x.ndim - budget.ndim :])
        start = time.perf_counter()
        out = method(budget, items)
        seconds = (time.perf_counter() - start) / max(1, len(items))
    if (key := (type(budget), name)) not in _told:
        _told.add(key)
        warnings.warn(
            f"{type(budget).__name__}.{name} is found numerically from its {source}, to a relative tolerance of "
            f"{TOLERANCE:g}; that took {1e3 * seconds:.3g} ms each for shape "
            f"{tuple(items.shape[1:])}. Define {name}(self, ...) to do it in closed form",
            NumericalWarning,
            stacklevel=4,
        )
    return out.reshape(x.shape[: x.ndim - budget.ndim] + out.shape[1:]).to(x.dtype)


def _choose(budget: Budget, name: str) -> tuple[str, Callable[[Budget, Tensor], Tensor]]:
    ways: dict[str, dict[str, Callable[[Budget, Tensor], Tensor]]] = {
        "gauge": {"constraints": bisect, "project": bisect, "maximizer": gauge_from_maximizer},
        "maximizer": {"constraints": barrier_maximizer, "project": push, "gauge": maximizer_from_gauge},
        "project": {"maximizer": frank_wolfe, "constraints": frank_wolfe, "gauge": frank_wolfe},
    }
    return next((source, way) for source, way in ways[name].items() if own(budget, source))
