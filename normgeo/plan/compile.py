"""compile: the plan of a model, declared or recorded."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from normgeo.budgets import Budget, DataMetric, DynamicDataMetric, Restricted
from normgeo.geometry import unwrapped
from normgeo.geometry.outputs import Wanted
from normgeo.geometry.splits import Split
from normgeo.norms import Norm
from normgeo.optim import Direction, Filter, Operate, Optimizer
from normgeo.plan.declared import declared, declares, inputs_of
from normgeo.plan.overrides import Overrides
from normgeo.plan.patterns import overrides
from normgeo.plan.plan import Plan
from normgeo.plan.recorded import Example, recorded
from normgeo.plan.traced import traced

__all__ = ["compile", "optimizer"]

Given = Budget | DataMetric | DynamicDataMetric | Restricted | Direction
"""what `budgets=` may give a leaf"""


def compile(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    output: Wanted = None,
    sensitivity: str = "declared",
    masses: Mapping[str, float] | None = None,
    norms: Mapping[str, Norm] | None = None,
    radii: Mapping[str, float] | None = None,
    roles: Mapping[str, str] | None = None,
    splits: Mapping[str, Split] | None = None,
    budgets: Mapping[str, Given] | None = None,
    strict: bool = False,
) -> Plan:
    """The plan of any `torch.nn.Module`.

    A model whose modules all declare their geometry (those of `normgeo.nn`, and what `normgeo.geometry.register` was told)
    needs no inputs: example_inputs then set the input sizes (largest RMS over features, at least 1), which are 1 otherwise.
    Any other model is recorded: it runs once on example_inputs and example_kwargs, every weight gets its role from the
    operation that uses it, and its radius from its role (`normgeo.geometry.shares` says how).

    output: which of the tensors that the model gives counts, by name, position or function, or several at once (a tuple);
    by default the tensor itself, .logits, .last_hidden_state or the only floating tensor. sensitivity: "declared" by
    modules and roles; or at the example inputs "traced", from above (`normgeo.geometry.bounds`), or "measured", from below
    (`Plan.refresh`). masses, norms, radii: values by pattern of leaf or module names; a mass is that of each leaf. budgets:
    by pattern of parameter names, operators on gradients in place of the dual of the leaf's norm, `optim.Operate(budget)`;
    filters, in place of the momentum too, `optim.Filter(budget)`; or one of these. roles: what parameters are used as, by
    pattern, in place of what is found; "unused" for those that the output does not depend on and that may stay as they
    are. splits: blocks of fused parameters, as `{"*.qkv": "(three h d) i -> three h d i"}`.
    strict=True makes an assumed factor an error. Nothing is JIT-compiled, and the model is left as it was.

    >>> import torch, normgeo as ng
    >>> plan = ng.compile(ng.nn.MLP(784, 256, 10), masses={"4": 2.0})
    >>> [round(leaf.radius, 4) for leaf in plan.leaves]
    [0.25, 0.25, 0.5]
    >>> [leaf.role for leaf in ng.compile(torch.nn.Linear(8, 4), (torch.ones(1, 8),)).leaves]
    ['head', 'bias']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compile takes a torch.nn.Module, got {model!r}")
    if sensitivity not in ("declared", "traced", "measured"):
        raise ValueError(
            f'sensitivity={sensitivity!r} is not known here; write sensitivity="declared", "traced" or "measured"'
        )
    if sensitivity != "declared" and example_inputs is None and example_kwargs is None:
        raise ValueError(f'sensitivity="{sensitivity}" needs inputs to look at; write example_inputs=(x,)')
    if isinstance(example_inputs, Tensor):
        raise TypeError("example_inputs is a tuple of the model's arguments; write example_inputs=(x,)")
    inner = unwrapped(model)
    given = Overrides(masses, norms, radii, roles, splits, strict)
    needs_recording = any(option is not None for option in (example_kwargs, output, roles, splits))
    if not needs_recording and declares(inner, example_inputs):
        plan = declared(model, inputs_of(inner, example_inputs), given)
    else:
        plan = recorded(model, Example(example_inputs or (), example_kwargs, output), given)
    if sensitivity == "measured":
        plan = plan.refresh(model, example_inputs or (), example_kwargs, output=output)
    if sensitivity == "traced":
        plan = traced(plan, model, example_inputs or (), example_kwargs, output, strict)
    return _with_budgets(plan, budgets) if budgets else plan


def optimizer(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Optimizer:
    """compile and plan.optimizer in one line; options are those of `Plan.optimizer`.

    >>> import normgeo as ng
    >>> opt = optimizer(ng.nn.MLP(784, 256, 10), lr=0.2)
    """
    made: Optimizer = compile(model, example_inputs, example_kwargs).optimizer(model, **options)
    return made


def _with_budgets(plan: Plan, budgets: Mapping[str, Given]) -> Plan:
    """The plan with directions of their own for the parameters that a pattern names, also when it is extended."""
    given = {pattern: _direction(pattern, budget) for pattern, budget in budgets.items()}
    directions = overrides("budgets", given, list(dict.fromkeys(leaf.parameter for leaf in plan.leaves)))
    rebuild = plan.rebuild
    again = None if rebuild is None else functools.partial(_again, rebuild, budgets)
    return dataclasses.replace(plan, directions=directions, rebuild=again)


def _again(rebuild: Callable[[nn.Module], Plan], budgets: Mapping[str, Given], model: nn.Module) -> Plan:
    return _with_budgets(rebuild(model), budgets)


def _direction(pattern: str, budget: Given) -> Direction:
    if isinstance(budget, Direction):
        return budget
    if isinstance(budget, DynamicDataMetric | Restricted) or (isinstance(budget, Budget) and budget.kind == "filter"):
        return Filter(budget)
    if not isinstance(budget, Budget | DataMetric):
        raise TypeError(f"budgets: {pattern!r} takes a normgeo.Budget, got {budget!r}; norms go to norms={{...}}")
    return Operate(budget)
