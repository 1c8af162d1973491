"""A plan for trainers that make the optimizer themselves, once they have wrapped the model."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from torch import nn

from normgeo.optim import Optimizer

if TYPE_CHECKING:
    from normgeo.plan.plan import Plan

__all__ = ["Factory", "for_trainer"]


class Factory:
    """What `transformers.Trainer` takes in place of an optimizer class: made without arguments, called with the model."""

    def __call__(self, model: nn.Module, *, plan: Plan, **options: Any) -> Optimizer:
        made: Optimizer = plan.optimizer(model, **options)
        return made


def for_trainer(plan: Plan, options: dict[str, Any]) -> tuple[type[Factory], dict[str, Any]]:
    """The plan goes as it would to another process, without tensors: parameters are found by name in the model at hand."""
    return Factory, {"plan": dataclasses.replace(copy.copy(plan), unused=plan.unused), **options}
