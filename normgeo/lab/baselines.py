"""Optimizers of others that ask for no learning rate, from their own packages and at their defaults."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import torch
from torch import nn

from normgeo.lab.contenders import Contender, Many
from normgeo.lab.errors import UserError
from normgeo.steps import Linear

__all__ = ["BASELINES", "dadaptation", "prodigy", "schedulefree"]


def prodigy(steps: int) -> Contender:
    """Prodigy of prodigyopt, with a linear schedule on top as its authors advise."""
    return _adam("Prodigy", "prodigyopt", lambda package: package.Prodigy, steps)


def dadaptation(steps: int) -> Contender:
    """DAdaptAdam of dadaptation, with a linear schedule on top as its authors advise."""
    return _adam("D-Adaptation", "dadaptation", lambda package: package.DAdaptAdam, steps)


def schedulefree(steps: int) -> Contender:
    """AdamWScheduleFree of schedulefree; it has no schedule."""
    package = _package("schedulefree")

    def make(model: nn.Module) -> Many:
        optimizer = package.AdamWScheduleFree(model.parameters())
        optimizer.train()
        return Many(optimizer)

    return Contender("schedule-free AdamW", "defaults", make)


BASELINES: dict[str, Callable[[int], Contender]] = {
    "prodigy": prodigy,
    "dadaptation": dadaptation,
    "schedulefree": schedulefree,
}


def _adam(
    name: str, package: str, cls: Callable[[ModuleType], Callable[..., torch.optim.Optimizer]], steps: int
) -> Contender:
    optimizer = cls(_package(package))
    return Contender(
        name,
        "defaults, linear to 0",
        lambda model: Many(optimizer(model.parameters()), schedule=Linear(total=steps)),
    )


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f"--against: {name} is not installed; write pip install 'normgeo[baselines]', or leave it out"
        ) from None
