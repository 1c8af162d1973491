"""Trials: the runs of a study, in several processes, kept line by line in a file that a stopped study goes on from."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from normgeo.lab.baselines import dadaptation, prodigy, schedulefree
from normgeo.lab.contenders import Contender, adamw, auto, muon, operated, ours
from normgeo.lab.errors import Diverged
from normgeo.lab.ledger import Ledger
from normgeo.lab.problems import Problem
from normgeo.lab.training import Training

__all__ = ["Entry", "Outcome", "Trial", "Trials"]

MAKERS: dict[str, Callable[..., Contender]] = {
    "ours": ours,
    "auto": auto,
    "adamw": adamw,
    "muon": muon,
    "budget": operated,
    "prodigy": prodigy,
    "dadaptation": dadaptation,
    "schedulefree": schedulefree,
}


@dataclass(frozen=True)
class Entry:
    """An optimizer as plain data: which, and the options of its maker in `contenders`.

    >>> Entry.of("adamw", lr=1e-3).lr
    0.001
    """

    maker: str
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, maker: str, **options: Any) -> Entry:
        return cls(maker, tuple(sorted(options.items())))

    @property
    def lr(self) -> float:
        return float(dict(self.options)["lr"])

    @property
    def others(self) -> Entry:
        """The same with all options but the learning rate."""
        return Entry(self.maker, tuple(option for option in self.options if option[0] != "lr"))

    def contender(self, steps: int) -> Contender:
        return MAKERS[self.maker](steps, **dict(self.options))


@dataclass(frozen=True)
class Trial:
    """One run: a problem, by the name that makes it, an optimizer and a seed."""

    problem: str
    entry: Entry
    seed: int

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.entry.options)
        return f"{self.problem} | {self.entry.maker}({options}) | seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a run came to; losses are infinite if it diverged."""

    train: float
    """mean over the last tenth of the run"""
    validation: float
    accuracy: float | None
    seconds: float


class Source(Protocol):
    """Where problems come from; it is sent to other processes."""

    def of(self, name: str) -> str:
        """Which data a problem is made of."""

    def __call__(self, name: str, seed: int) -> Problem: ...


class Trials:
    """Outcomes by trial, kept in a file of JSON lines."""

    def __init__(self, path: Path, make: Source, jobs: int = 1) -> None:
        self.make, self.jobs = make, jobs
        self.ledger = Ledger(path, Outcome)

    def key(self, trial: Trial) -> str:
        return f"{self.make.of(trial.problem)} | {trial}"

    def __getitem__(self, trial: Trial) -> Outcome:
        return self.ledger.done[self.key(trial)]

    def __contains__(self, trial: Trial) -> bool:
        return self.key(trial) in self.ledger.done

    def run(self, trials: Iterable[Trial]) -> Iterator[Trial]:
        """Run those that are not done yet; each is given back when it is. Several jobs take a thread each."""
        todo = list(dict.fromkeys(trial for trial in trials if trial not in self))
        if self.jobs == 1:
            for trial in todo:
                self._keep(trial, _run(self.make, trial))
                yield trial
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_one_thread) as pool:
            futures = {pool.submit(_run, self.make, trial): trial for trial in todo}
            try:
                for future in as_completed(futures):
                    self._keep(futures[future], future.result())
                    yield futures[future]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _keep(self, trial: Trial, outcome: Outcome) -> None:
        self.ledger.keep(self.key(trial), outcome)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run(make: Source, trial: Trial) -> Outcome:
    problem = make(trial.problem, trial.seed)
    training = Training(trial.entry.contender(problem.steps), problem, torch.device("cpu"), validations=1)
    try:
        while not training.done:
            training.advance()
    except Diverged:
        return Outcome(math.inf, math.inf, None, training.curve.seconds)
    curve = training.curve
    accuracy = curve.accuracy[-1] if curve.accuracy else None
    return Outcome(curve.final_train(), curve.validation[-1], accuracy, curve.seconds)
