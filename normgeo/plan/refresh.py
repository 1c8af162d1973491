"""A plan with the sensitivities of its leaves measured."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from normgeo.geometry import measure, unwrapped

if TYPE_CHECKING:
    from normgeo.plan.plan import Plan

__all__ = ["refreshed"]


def refreshed(
    plan: Plan,
    model: nn.Module,
    batch: Sequence[Any] | Mapping[str, Any],
    kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Plan:
    if isinstance(batch, Tensor):
        raise TypeError("batch is a tuple or a dict of the model's arguments; write plan.refresh(model, (x,))")
    args, named = ((), batch) if isinstance(batch, Mapping) else (tuple(batch), kwargs or {})
    found = measure(unwrapped(model), plan.leaves, plan.find(model), args, named, axis=plan.axis, **options)
    again = plan.rebuild and functools.partial(_again, plan.rebuild, batch=batch, kwargs=kwargs, options=options)
    return dataclasses.replace(plan, leaves=found.apply(plan.leaves), rebuild=again)


def _again(rebuild: Callable[[nn.Module], Plan], model: nn.Module, **given: Any) -> Plan:
    return refreshed(rebuild(model), model, **given)
