"""Parameter groups, learning rates and options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler

from normgeo.testing.clauses.clause import clause
from normgeo.testing.report import NotAsked
from normgeo.testing.subject import Subject, moved, quietly, refusable, same, weights

Scheduler = Any
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Scheduler]] = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda t: 0.9),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [1, 3]),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, total_iters=2),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, start_factor=0.01, total_iters=4),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.8),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 4, 2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 2),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 1e-3, 1e-2, 2, cycle_momentum=False),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 1e-2, total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, 1.0, 2), lr_scheduler.ExponentialLR(opt, 0.9)], [2]
    ),
}


def _under(name: str) -> None:
    @clause(f"{name} sets its lr", "quick" if name == "LambdaLR" else "full")
    def _(s: Subject) -> None:
        model, opt = s.fresh()
        twin = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=float(opt.param_groups[0]["lr"]))
        schedule, expected = SCHEDULERS[name](opt), SCHEDULERS[name](twin)
        for t in range(4):
            before = weights(model)
            s.train(opt, model)
            twin.step()
            assert opt.param_groups[0]["lr"] or same(before, weights(model)), f"lr is 0 at step {t} and weights move"
            with quietly():  # SequentialLR warns about itself
                schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
                expected.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            seen, wanted = float(opt.param_groups[0]["lr"]), float(twin.param_groups[0]["lr"])
            assert seen == wanted, f"lr is {seen} after step {t}, with SGD {wanted}"


for scheduler in SCHEDULERS:
    _under(scheduler)


@clause("a tensor lr does what the number does")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    twin, other = s.fresh()
    for group in other.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float64)
    for _ in range(2):
        s.train(opt, model)
        s.train(other, twin)
        for group in (*opt.param_groups, *other.param_groups):
            group["lr"] = group["lr"] / 2
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def _groups(s: Subject, model: torch.nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    names = [name for name, _ in model.named_parameters()]
    if len(names) < 2:
        raise NotAsked("it takes two weights")
    return s.group(model, names[:1]), s.group(model, names[1:])


def _class(s: Subject) -> Callable[..., torch.optim.Optimizer]:
    return type(s.fresh()[1])


def _of_groups(s: Subject, *groups: dict[str, Any]) -> torch.optim.Optimizer:
    """Made from groups; an optimizer whose groups need more than parameters says how they are made."""
    with refusable("plan.groups"):
        return _class(s)(groups)


@clause("an empty list is refused")
def _(s: Subject) -> None:
    try:
        _class(s)([])
    except ValueError:
        return
    raise AssertionError("an optimizer of nothing is made")


@clause("named parameters keep their names")
def _(s: Subject) -> None:
    model, _ = s.fresh()
    names = [name for name, _ in model.named_parameters()]
    group = s.group(model, names)
    named = _of_groups(s, {**group, "params": list(zip(names, group["params"], strict=True))})
    assert named.param_groups[0].get("param_names") == names, (
        f"param_names is {named.param_groups[0].get('param_names')}"
    )
    assert named.state_dict()["param_groups"][0]["param_names"] == names, "state_dict has no names"


@clause("groups have lr and options of their own")
def _(s: Subject) -> None:
    s.plainly()
    model, opt = s.fresh()
    rest, first = _groups(s, model)
    opt = _of_groups(s, {**first, "lr": 0.05}, {**rest, "lr": 0.0})
    before = weights(model)
    s.train(opt, model, s.steps)
    changed = moved(before, weights(model))
    names = list(before)
    assert names[0] not in changed, f"{names[0]} has lr 0 and moves"
    assert changed, "the other group does not move"


@clause("add_param_group before and after steps")
def _(s: Subject) -> None:
    s.plainly()
    for steps in (0, 2):
        model, _ = s.fresh()
        late, first = _groups(s, model)
        opt = _of_groups(s, {**first, "lr": 0.05})
        s.train(opt, model, steps)
        opt.add_param_group({**late, "lr": 0.01})
        assert opt.param_groups[1]["lr"] == 0.01
        before = weights(model)
        s.train(opt, model, s.steps)
        name = next(iter(before))
        assert name in moved(before, weights(model)), f"{name}, added after {steps} steps, does not move"
    try:
        opt.add_param_group({**late, "lr": 0.01})
    except ValueError:
        return
    raise AssertionError("a weight is in two groups")


@clause("maximize climbs, or is refused by name")
def _(s: Subject) -> None:
    s.takes_options()
    s.plainly()
    with refusable("maximize"):
        up, climbing = s.fresh(maximize=True)
    down, falling = s.fresh()
    start = weights(down)
    s.train(climbing, up)
    s.train(falling, down)
    climbed = sum(
        float((w.detach() - start[n]).double().mul(weights(down)[n] - start[n]).sum()) for n, w in up.named_parameters()
    )
    assert climbed < 0, "maximize=True goes the same way"


def _option(name: str) -> None:
    @clause(f"{name}=True works or is refused by name")
    def _(s: Subject) -> None:
        s.takes_options()
        with refusable(name):
            model, opt = s.fresh(None, **{name: True})
            before = weights(model)
            s.train(opt, model, 2)
        twin, other = s.fresh()
        s.train(other, twin, 2)
        assert moved(before, weights(model)), "nothing moves"
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b)


for option in ("foreach", "fused", "capturable"):
    _option(option)


@clause("differentiable=True works or is refused by name")
def _(s: Subject) -> None:
    s.takes_options()
    start = torch.eye(3, requires_grad=True)
    w = start.clone()
    w.retain_grad()
    w.grad = torch.ones(3, 3) + torch.eye(3)
    with refusable("differentiable"):
        opt = _class(s)([w], lr=0.01, differentiable=True)
        opt.step()
    w.sum().backward()
    assert start.grad is not None, "the step has no derivative"
