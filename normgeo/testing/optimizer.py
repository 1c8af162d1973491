"""The contract of a torch optimizer, as a report and as an assertion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from normgeo.testing.clauses import CLAUSES, EFFORTS, Effort
from normgeo.testing.probe import Probe, probe_loss
from normgeo.testing.report import Report
from normgeo.testing.subject import Closure, Group, Loss, Make, Subject

__all__ = ["check_optimizer", "examine_optimizer"]


def check_optimizer(
    make: Make,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    *,
    steps: int = 3,
    decays: bool = False,
    closure: Closure = "none",
    group: Group | None = None,
    probes: bool | None = None,
    effort: Effort = "full",
) -> None:
    """`examine_optimizer`, and an AssertionError that lists every clause that is not met.

    >>> import torch, normgeo as ng
    >>> data = torch.ones(2, 4)
    >>> check_optimizer(ng.optimizer, ng.nn.MLP(4, 8, 2), lambda model: (model(data) - 1).square().mean(), effort="quick")
    """
    report = examine_optimizer(
        make, model, loss, steps=steps, decays=decays, closure=closure, group=group, probes=probes, effort=effort
    )
    failed = "\n".join(f"  {finding.clause}: {finding.note}" for finding in report.failures)
    assert not report.failures, f"{len(report.failures)} clauses are not met:\n{failed}"


def examine_optimizer(
    make: Make,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    *,
    steps: int = 3,
    decays: bool = False,
    closure: Closure = "none",
    group: Group | None = None,
    probes: bool | None = None,
    effort: Effort = "full",
) -> Report:
    """Each clause of the contract that users of torch optimizers rely on, tried on an optimizer, ours or anybody's.

    `make(model)` builds it; a `make(model, **options)` is also asked for lr=-1, maximize, foreach, capturable, fused and
    differentiable. `loss(model)` is a differentiable 0-D tensor; the model is not changed. Without a model there is one,
    and `make` is also tried on models with weights of 0 to 5 axes, of other dtypes and layouts; `probes=True` asks for
    these beside a model of yours. `decays=True` leaves out zero gradients, for optimizers that shrink weights unasked.
    `closure="loss"` steps with a closure throughout, for parts that need the loss; `"graph"` with one that leaves
    backward to the optimizer, for parts that need Hessian-vector products. `group(model, names)` makes the parameter
    group of these parameters, by default {"params": ...}. `effort="quick"` is what a
    single part may break; "slow" adds torch.compile and another process.

    >>> import torch
    >>> report = examine_optimizer(lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    >>> report["deepcopy continues to the bit, on its own"].verdict
    'met'
    >>> print(report["a NaN or Inf leaves weights and state as they were"])
    failed     a NaN or Inf leaves weights and state as they were: nan in one gradient moves weights.a
    """
    asked = subject(make, model, loss, steps, decays, closure, group, probes)
    return Report(tuple(each.examine(asked) for each in CLAUSES if EFFORTS.index(each.effort) <= EFFORTS.index(effort)))


def subject(
    make: Make,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    steps: int = 3,
    decays: bool = False,
    closure: Closure = "none",
    group: Group | None = None,
    probes: bool | None = None,
) -> Subject:
    """What clauses are asked about."""
    return Subject(
        make,
        Probe({"a": (4, 3), "b": (3, 3), "c": (3, 4)}) if model is None else model,
        loss or probe_loss,
        group or _plain_group,
        steps,
        decays,
        closure,
        model is None if probes is None else probes,
    )


def _plain_group(model: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    parameters = dict(model.named_parameters())
    return {"params": [parameters[name] for name in names]}
