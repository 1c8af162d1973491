"""Mass: the share of the change that a part of the network is allowed to cause. It belongs to atoms and adds up."""

import math
from collections.abc import Iterator

from torch import nn

__all__ = ["atoms", "mass", "tare"]

_ATTRIBUTE = "_normgeo_mass"


def atoms(module: nn.Module) -> Iterator[nn.Module]:
    """The modules inside (or the module itself) that own parameters directly, each once."""
    return (m for m in module.modules() if next(m.parameters(recurse=False), None) is not None)


def mass(module: nn.Module) -> float:
    """Σ of the masses of its atoms, 1 each unless `tare` changed it.

    >>> mass(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))
    2.0
    """
    return float(sum(getattr(atom, _ATTRIBUTE, 1.0) for atom in atoms(module)))


def tare(module: nn.Module, absolute: float = 1.0, relative: float | None = None) -> None:
    """Rescale the masses of all atoms inside so that they add up to `absolute`, or by the factor `relative`.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> tare(model, absolute=5)
    >>> mass(model), mass(model[0])
    (5.0, 2.5)
    """
    wanted = absolute if relative is None else relative
    if not (math.isfinite(wanted) and wanted >= 0):
        raise ValueError(f"tare: a mass is a finite number ≥ 0, got {wanted}")
    total = mass(module)
    if relative is None and total == 0:
        raise ValueError(f"tare: {type(module).__name__} has no mass to rescale; use it on modules with parameters")
    factor = absolute / total if relative is None else relative
    for atom in atoms(module):
        setattr(atom, _ATTRIBUTE, getattr(atom, _ATTRIBUTE, 1.0) * factor)
