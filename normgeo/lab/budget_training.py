"""Operator budgets as directions in the training of a small GPT, beside Adam and Muon."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from normgeo.budgets import DataMetric, Diagonal, Frobenius, Spectral
from normgeo.lab.budget_costs import processor_times
from normgeo.lab.contenders import Contender, Many
from normgeo.lab.problems import Problem
from normgeo.lab.quality import Comparison
from normgeo.lab.trials import Entry
from normgeo.optim import Operate

__all__ = ["UPKEEP_COLUMNS", "training_study", "upkeep"]

UPKEEP_COLUMNS = ("optimizer", "ms per step", "over that of the gradients", "state, over the weights")


def training_study(steps: int = 2000, every: int = 10) -> Comparison:
    """Frobenius, spectral and diagonal budgets with moments averaged over steps, on every weight; each at one setting."""

    def budget(lr: float, operate: Operate) -> list[Entry]:
        return [Entry.of("budget", lr=lr, direction=operate)]

    field = {
        "Frobenius": budget(0.2, Operate(Frobenius(), every=every)),
        "Spectral": budget(0.2, Operate(Spectral(trace=512.0), every=every)),
        "Diagonal": budget(0.2, Operate(Diagonal())),
        "AdamW": [Entry.of("adamw", lr=1e-2)],
        "Muon + AdamW": [Entry.of("muon", lr=0.06, lr_rest=1e-2)],
        "DataMetric, power 3/2": budget(0.2, Operate(DataMetric(1.5, damping=1e-4), every=every)),
        "normgeo": [Entry.of("ours", lr=0.2)],
    }
    sizes = f"gpt width 32 depth 2 context 32 batch 8 steps {steps}"
    return Comparison(f"GPT of width 32, depth 2, {steps} steps", [sizes], field, "validation")


def upkeep(problem: Problem, field: Mapping[str, Contender], rounds: int = 40) -> list[tuple[str, ...]]:
    """optimizer, processor milliseconds of a step of the optimizer alone (mean over rounds, so that what is renewed every
    few steps counts in proportion), the same over that of the gradients, and bytes of state per byte of weights."""
    models = {name: problem.model() for name in field}
    optimizers = {name: contender.make(models[name]) for name, contender in field.items()}
    size = sum(p.numel() * p.element_size() for p in next(iter(models.values())).parameters())
    work: dict[str, Callable[[], object]] = {}

    def gradients(model: torch.nn.Module) -> None:
        x, y = problem.batch(0)
        model.zero_grad()
        problem.loss(model, x, y).backward()

    for name, model in models.items():
        work[f"gradients for {name}"] = partial(gradients, model)
        work[name] = optimizers[name].step
    times = {name: sum(each) / rounds for name, each in processor_times(work, rounds).items()}
    base = sum(t for name, t in times.items() if name not in field) / len(field)
    return [
        (name, f"{1e3 * times[name]:.3g}", f"{times[name] / base:.2f}", f"{held(optimizers[name]) / size:.2f}")
        for name in field
    ]


def held(optimizer: Many) -> int:
    """Bytes of tensors in the state."""

    def size(x: object) -> int:
        if isinstance(x, Tensor):
            return x.numel() * x.element_size()
        parts: Sequence[object] = (
            list(x.values()) if isinstance(x, Mapping) else x if isinstance(x, list | tuple) else ()
        )
        return sum(size(part) for part in parts)

    return sum(size(each.state_dict()["state"]) for each in optimizer.optimizers)
