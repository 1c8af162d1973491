"""Optimizers to compare on one model: ours as the compiler derives it, and the usual ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import normgeo as ng
from normgeo.constraints import Constraint
from normgeo.lab.errors import UserError
from normgeo.optim import Direction

__all__ = ["COMPARISONS", "Contender", "Many", "adamw", "auto", "contenders", "muon", "operated", "ours"]

COMPARISONS = ("adamw", "muon", "grid", "none")
GRID = (1e-3, 3e-3, 1e-2, 3e-2)
HIDDEN = ("linear", "convolution")
Compile = Callable[..., ng.Plan]


class Many:
    """Several optimizers and their schedulers, stepped, saved and loaded as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer, schedule: ng.steps.Schedule | None = None) -> None:
        self.optimizers = optimizers
        self.schedulers: list[torch.optim.lr_scheduler.LambdaLR] = []
        if schedule is not None:
            value = schedule.at
            self.schedulers = [
                torch.optim.lr_scheduler.LambdaLR(opt, lambda t: float(value(torch.tensor(float(t)))))
                for opt in optimizers
            ]

    @property
    def _all(self) -> list[Any]:
        return [*self.optimizers, *self.schedulers]

    @property
    def needs(self) -> set[str]:
        """What parts of ours want beyond gradients."""
        ours = (opt for opt in self.optimizers if isinstance(opt, ng.optim.Optimizer))
        return {name for opt in ours for parts in opt.parts for part in parts for name in part.needs}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As in torch; a closure is for one optimizer without schedulers."""
        if closure is not None:
            (optimizer,) = self._all
            return optimizer.step(closure)
        for part in self._all:
            part.step()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the weights to be evaluated."""
        with ExitStack() as stack:
            for opt in self.optimizers:
                if isinstance(opt, ng.optim.Optimizer):
                    stack.enter_context(opt.averaged())
                elif (evaluate := getattr(opt, "eval", None)) is not None:  # schedulefree's
                    evaluate()
                    stack.callback(opt.train)  # type: ignore[attr-defined]
            yield

    def zero_grad(self) -> None:
        for opt in self.optimizers:
            opt.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._all]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for part, state in zip(self._all, saved["parts"], strict=True):
            part.load_state_dict(state)


class Flattened(torch.optim.Muon):
    """torch's Muon, which takes matrices only, on weights of any shape: each as the matrix (out, rest) in its memory."""

    def __init__(self, params: Iterable[nn.Parameter], **options: Any) -> None:
        self.weights = list(params)
        super().__init__([nn.Parameter(p.detach().view(len(p), -1)) for p in self.weights], **options)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.reshape(matrix.shape)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for weight in self.weights:
            weight.grad = None


@dataclass(frozen=True)
class Contender:
    """A name, what it was given, and how to make its optimizer for a model."""

    name: str
    setting: str
    make: Callable[..., Many]
    """for a model"""
    compiles: bool = False
    """`make` takes a second argument too, the function that compiles the plan of the model, in place of normgeo.compile"""


def contenders(compare: Iterable[str], *, steps: int, lr: float, warmup: int) -> list[Contender]:
    """Ours first, then those asked for. All go down linearly to 0 after their warm-up."""
    out = [ours(steps, lr, warmup)]
    for name in (each.lower() for each in compare):
        if name == "adamw":
            out.append(adamw(steps, 3e-3))
        elif name == "grid":
            out += [adamw(steps, each) for each in GRID]
        elif name == "muon":
            out.append(muon(steps, 0.06, 1e-2))  # the best of six settings tried on the default GPT (docs/results.md)
        elif name != "none":
            raise UserError(f"--compare: unknown optimizer {name!r}; choose from {', '.join(COMPARISONS)}")
    return list({contender.name + contender.setting: contender for contender in out}.values())


def ours(
    steps: int,
    lr: float = 0.2,
    warmup: int = 20,
    constraint: Constraint | None = None,
    step: ng.steps.StepSize | None = None,
    rule: ng.rules.Rule | None = None,
    iterate: ng.optim.Iterate | None = None,
) -> Contender:
    """What the compiler derives, with the parts that are given in place of its own."""
    setting = f"lr {lr:g}, {warmup} warm-up steps, linear to 0" if step is None else f"lr {lr:g}, {step}"
    given = {"constraint": constraint, "rule": rule, "iterate": iterate}
    options: dict[str, Any] = {name: part for name, part in given.items() if part is not None}
    schedule = ng.steps.Linear(total=steps, warmup=warmup) if step is None else step

    def make(model: nn.Module, compile: Compile = ng.compile) -> Many:
        return Many(compile(model).optimizer(model, lr=lr, step=schedule, **options))

    return Contender("normgeo", ", ".join([setting, *map(str, options.values())]), make, compiles=True)


def auto(steps: int, lr: float = 0.2, constraint: Constraint | None = None) -> Contender:
    """The same with `steps.Auto` for all these steps."""
    return ours(steps, lr, constraint=constraint, step=ng.steps.Auto(steps))


def adamw(steps: int, lr: float, decay: float = 0.1, warmup: int = 100) -> Contender:
    """torch.optim.AdamW on every parameter."""
    schedule = ng.steps.Linear(total=steps, warmup=min(warmup, steps // 5))

    def make(model: nn.Module) -> Many:
        return Many(
            torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=decay), schedule=schedule
        )

    return Contender("AdamW", f"lr {lr:g}, {schedule.warmup} warm-up steps, linear to 0, decay {decay:g}", make)


def muon(steps: int, lr: float, lr_rest: float, decay: float = 0.1) -> Contender:
    """torch.optim.Muon on hidden matrices and kernels, AdamW on embeddings, head and the rest."""
    schedule = ng.steps.Linear(total=steps, warmup=min(20, steps // 5))

    def make(model: nn.Module, compile: Compile = ng.compile) -> Many:
        leaves = {leaf.parameter: leaf.role for leaf in compile(model).leaves}
        hidden = [p for name, p in model.named_parameters() if leaves[name] in HIDDEN]
        rest = [p for name, p in model.named_parameters() if leaves[name] not in HIDDEN]
        parts: list[torch.optim.Optimizer] = []
        if hidden:
            parts.append(Flattened(hidden, lr=lr, weight_decay=decay))
        if rest:
            parts.append(torch.optim.AdamW(rest, lr=lr_rest, betas=(0.9, 0.95), weight_decay=decay))
        return Many(*parts, schedule=schedule)

    setting = f"lr {lr:g} and {lr_rest:g}, {schedule.warmup} warm-up steps, linear to 0, decay {decay:g}"
    return Contender("Muon + AdamW", setting, make, compiles=True)


def operated(steps: int, lr: float, direction: Direction, warmup: int = 20) -> Contender:
    """The compiled plan with an operator budget on every weight in place of the dual of its norm; lr keeps its meaning."""
    schedule = ng.steps.Linear(total=steps, warmup=warmup)

    def make(model: nn.Module, compile: Compile = ng.compile) -> Many:
        return Many(compile(model, budgets={"*": direction}).optimizer(model, lr=lr, step=schedule))

    return Contender("budget", f"lr {lr:g}, {warmup} warm-up steps, linear to 0", make, compiles=True)
