"""Sweeps: step size rules that nobody tunes, beside every optimizer at the best point of its own grid of learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch

from normgeo.lab.baselines import BASELINES
from normgeo.lab.errors import UserError
from normgeo.lab.quality import DRAWN, Study
from normgeo.lab.trials import Entry, Outcome, Trial, Trials
from normgeo.optim import ScheduleFree
from normgeo.rules import Plain
from normgeo.steps import (
    AdaGradNorm,
    AdamNorm,
    Auto,
    Escape,
    Hypergradient,
    Linear,
    MetaAdam,
    MetaOptimize,
    Polyak,
    Prodigy,
    Schedule,
    Secant,
    Warmup,
)

__all__ = ["AGAINST", "RULES", "Line", "Sweep", "grid", "rule"]

Row = tuple[str, ...]
Curve = tuple[tuple[float, float], ...]
MOST = 12  # points of a grid
GRIDS = {"ours": 0.2, "adamw": 4e-3, "muon": 4e-2}  # where they begin
NAMES = {"ours": "normgeo", "adamw": "AdamW", "muon": "Muon + AdamW"}
AGAINST = ("adamw", "muon", *BASELINES)

RULES: dict[str, Callable[[Schedule, int, float], dict[str, Any]]] = {
    "auto": lambda down, total, x: {"lr": 0.2 * x, "step": Auto(total)},
    "power": lambda down, total, x: {"lr": 0.2 * math.sqrt(1000 / total) * x, **_short(total)},
    "distance": lambda down, total, x: {"lr": 2 / math.sqrt(total), "step": down * Escape(x)},
    "free": lambda down, total, x: {
        "lr": 0.8 * x,
        "step": Warmup(20) * AdamNorm(),
        "rule": Plain(),
        "iterate": ScheduleFree(),
    },
    "default": lambda down, total, x: {"lr": 0.2 * x, **_short(total)},
    "escape": lambda down, total, x: {"lr": 1.0, "step": down * Escape(1e-4 * x)},
    "prodigy": lambda down, total, x: {"lr": 1.0, "step": down * Prodigy(1e-6 * x)},
    "meta": lambda down, total, x: {"lr": 0.2 * x, "step": down * MetaOptimize(MetaAdam(0.02))},
    "hypergradient": lambda down, total, x: {"lr": 0.2 * x, "step": down * Hypergradient()},
    "adagrad": lambda down, total, x: {"lr": 2.0 * x, "step": down * AdaGradNorm()},
    "polyak": lambda down, total, x: {"lr": x, "step": down * Polyak()},
    "secant": lambda down, total, x: {"lr": 1.0, "step": down * Secant(start=1e-3 * x)},
}
"""Rules of ours by name: the options of `contenders.ours` from a linear schedule, the number of steps, and a factor on the
size with which the rule starts. "default" is the optimizer's own lr, "power" the same times √(1000/total). "distance" takes
2·D/√total for the peak, D the distance that `Escape` finds from a start of 1."""


def rule(text: str) -> Callable[[int], Entry]:
    """The rule that `text` names, for any number of steps: "meta", or "meta*0.01" for a start 100 times smaller.

    >>> rule("default*2")(100).lr
    0.4
    """
    name, _, times = text.partition("*")
    try:
        make, factor = RULES[name], float(times or 1)
    except KeyError:
        raise UserError(f"--ours: unknown rule {name!r}; choose from {', '.join(RULES)}") from None
    except ValueError:
        raise UserError(f"--ours: {text!r} has no number after the *; write {name}*0.01") from None
    if not (math.isfinite(factor) and factor > 0):
        raise UserError(f"--ours: the factor of {text!r} must be a finite number > 0")
    return lambda steps: Entry.of("ours", **make(Linear(steps, _warmup(steps)), steps, factor))


def grid(start: float, cost: Callable[[float], float | None]) -> list[float]:
    """Learning rates by factors of 2: three about the start, then on towards the best until that has neighbours on both
    sides. `cost` is None where it is not known yet; then these are to be run.

    >>> grid(1.0, lambda lr: None)
    [0.5, 1.0, 2.0]
    >>> grid(1.0, lambda lr: abs(lr - 4))
    [0.5, 1.0, 2.0, 4.0, 8.0]
    """
    lrs = [start / 2, start, 2 * start]
    while len(lrs) < MOST:
        costs = [cost(lr) for lr in lrs]
        known = [each for each in costs if each is not None]
        if len(known) < len(costs):
            break
        best = known.index(min(known))
        if 0 < best < len(lrs) - 1:
            break
        lrs = [*lrs, 2 * lrs[-1]] if best else [lrs[0] / 2, *lrs]
    return lrs


@dataclass(frozen=True)
class Line:
    """What one contender came to on one problem."""

    problem: str
    kind: str
    name: str
    setting: str
    losses: tuple[float, ...]
    """by seed"""
    excess: float
    """mean loss over that of the best point of our own grid, minus 1; for gaps the part of the decades that is missing"""
    grid: Curve = ()
    """lr and loss with seed 0"""


@dataclass(frozen=True)
class Sweep(Study):
    """Rules of ours at one setting for everything, beside grids of ours, AdamW and Muon and what needs no learning rate.

    Text and images are judged by the validation loss; vectors, which a network of this size learns by heart, by the
    training loss over the last tenth; problems with a known optimum by log(gap), over the log(gap) that the run began
    with, since there a gap shrinks by decades. Decay is .1 in AdamW and Muon on text and images, else 0.
    """

    problems: Sequence[str]
    ours: Sequence[str] = ("auto",)
    against: Sequence[str] = AGAINST
    title: str = "rules that nobody tunes, beside grids"
    columns: Row = ("problem", "optimizer", "setting", "loss", "over our best, %")

    def __post_init__(self) -> None:
        for name in self.ours:
            rule(name)
        if unknown := [name for name in self.against if name not in AGAINST]:
            raise UserError(f"--against: unknown optimizer {unknown[0]!r}; choose from {', '.join(AGAINST)}")
        for name in set(self.against) & set(BASELINES):
            BASELINES[name](100)  # says if its package is missing

    def rounds(self, trials: Trials, seeds: int) -> Iterator[Sequence[Trial]]:
        for problem in self.problems:
            steps = trials.make(problem, 0).steps
            fixed = [rule(name)(steps) for name in self.ours]
            fixed += [Entry.of(name) for name in self.against if name in BASELINES]
            yield [Trial(problem, entry, seed) for seed in range(seeds) for entry in fixed]
            best = []
            for kind in self._grids:
                while todo := [t for t in self._points(trials, problem, kind) if t not in trials]:
                    yield todo
                best.append(self._best(trials, problem, kind).entry)
            yield [Trial(problem, entry, seed) for seed in range(1, seeds) for entry in best]

    def lines(self, trials: Trials, seeds: int) -> list[Line]:
        return [line for problem in self.problems for line in self._on(problem, trials, seeds)]

    def _on(self, problem: str, trials: Trials, seeds: int) -> Iterator[Line]:
        steps = trials.make(problem, 0).steps
        first = _first(trials, problem) if _gap(problem) else math.nan

        def losses(entry: Entry) -> list[float]:
            return [_loss(problem, trials[Trial(problem, entry, seed)]) for seed in range(seeds)]

        def line(kind: str, name: str, setting: str, entry: Entry, grid: Curve = ()) -> Line:
            its = losses(entry)
            return Line(problem, kind, name, setting, tuple(its), _excess(its, reference, first), grid)

        reference = losses(self._best(trials, problem, "ours").entry)
        for kind in self._grids:
            points = self._points(trials, problem, kind)
            best = self._best(trials, problem, kind).entry
            curve = tuple((trial.entry.lr, _loss(problem, trials[trial])) for trial in points)
            yield line(kind, f"{NAMES[kind]}, best of {len(points)}", f"lr {best.lr:g}", best, curve)
        for kind in self.ours:
            entry = rule(kind)(steps)
            yield line(kind, f"normgeo, {kind}", entry.contender(steps).setting, entry)
        for kind in (kind for kind in self.against if kind in BASELINES):
            contender = Entry.of(kind).contender(steps)
            yield line(kind, contender.name, contender.setting, Entry.of(kind))

    def rows(self, trials: Trials, seeds: int) -> list[Row]:
        return [
            (line.problem, line.name, line.setting.split(", ")[0], _spread(line.losses), f"{100 * line.excess:+.2f}")
            for line in self.lines(trials, seeds)
        ]

    def verdicts(self, trials: Trials, seeds: int, within: float = 0.01) -> list[Row]:
        """For each of our rules: on how many problems it is within 1 % of the best point of our own grid, on how many below
        the best of AdamW's and Muon's grids, and where not."""
        lines = self.lines(trials, seeds)
        rivals = {
            problem: min(
                (each.excess for each in lines if each.problem == problem and each.kind in self._grids[1:]),
                default=math.inf,
            )
            for problem in self.problems
        }
        out: list[Row] = []
        for name in self.ours:
            its = [line for line in lines if line.name == f"normgeo, {name}"]
            far = [line.problem for line in its if not line.excess <= within]
            lost = [line.problem for line in its if not line.excess < rivals[line.problem]]
            counts = [f"{len(its) - len(those)} of {len(its)}" for those in (far, lost)]
            out.append((name, counts[0], "; ".join(far), counts[1], "; ".join(lost)))
        return out

    @property
    def _grids(self) -> list[str]:
        """Muon's comes after AdamW's, whose best lr it takes for what is no hidden matrix."""
        wanted = ["adamw", "muon"] if "muon" in self.against else [kind for kind in self.against if kind == "adamw"]
        return ["ours", *wanted]

    def _points(self, trials: Trials, problem: str, kind: str) -> list[Trial]:
        entry = self._entry(trials, problem, kind)

        def cost(lr: float) -> float | None:
            trial = Trial(problem, entry(lr), 0)
            return _loss(problem, trials[trial]) if trial in trials else None

        return [Trial(problem, entry(lr), 0) for lr in grid(GRIDS[kind], cost)]

    def _best(self, trials: Trials, problem: str, kind: str) -> Trial:
        return min(self._points(trials, problem, kind), key=lambda trial: _loss(problem, trials[trial]))

    def _entry(self, trials: Trials, problem: str, kind: str) -> Callable[[float], Entry]:
        if kind == "ours":
            short = _short(trials.make(problem, 0).steps)
            return lambda lr: Entry.of("ours", lr=lr, **short)
        decay: Mapping[str, float] = {} if _metric(problem) == "validation" and not _gap(problem) else {"decay": 0.0}
        if kind == "adamw":
            return lambda lr: Entry.of("adamw", lr=lr, **decay)
        rest = self._best(trials, problem, "adamw").entry.lr
        return lambda lr: Entry.of("muon", lr=lr, lr_rest=rest, **decay)


def _warmup(steps: int) -> int:
    return min(20, steps // 5)


def _short(steps: int) -> dict[str, Any]:
    """What a run tells `contenders.ours` if it has no room for the usual warm-up."""
    return {} if _warmup(steps) == 20 else {"warmup": _warmup(steps)}


def _gap(problem: str) -> bool:
    return problem.split()[0] in DRAWN


def _metric(problem: str) -> str:
    return "train" if problem.startswith("mlp") else "validation"


def _loss(problem: str, outcome: Outcome) -> float:
    return float(getattr(outcome, _metric(problem)))


def _first(trials: Trials, problem: str) -> float:
    make = trials.make(problem, 0)
    return make.score(make.model(), torch.device("cpu"), final=True).loss


def _excess(losses: Sequence[float], best: Sequence[float], first: float) -> float:
    """How much worse than the best, relative to it; with the gap `first` at the start, in shares of the decades since."""
    if not all(map(math.isfinite, losses)):
        return math.inf
    if math.isnan(first):
        return mean(losses) / mean(best) - 1
    ours, its = (mean(math.log(max(x, 1e-16 * first)) for x in each) for each in (losses, best))
    return (ours - its) / (math.log(first) - its)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return f"{mean(values):.4g}"
    return f"{mean(values):.4g} ± {stdev(values):.2g}"
