"""The one torch optimizer: gather and stack, smooth, direct, scale, write, constrain."""

from normgeo.optim.averages import BEMA, EMA, ScheduleFree
from normgeo.optim.direction import Direction, Dualize
from normgeo.optim.filter import Filter
from normgeo.optim.guard import NonFiniteError
from normgeo.optim.iterate import Descent, Iterate
from normgeo.optim.operate import Operate
from normgeo.optim.optimizer import Optimizer

__all__ = [
    "BEMA",
    "EMA",
    "Descent",
    "Direction",
    "Dualize",
    "Filter",
    "Iterate",
    "NonFiniteError",
    "Operate",
    "Optimizer",
    "ScheduleFree",
]
