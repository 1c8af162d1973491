"""Studies of training quality: optimizers side by side, and whether one learning rate serves all sizes."""

from __future__ import annotations

import math
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from normgeo.constraints import Decay
from normgeo.lab.corpus import Corpus, standard_library, text_file
from normgeo.lab.errors import UserError
from normgeo.lab.models import FAMILIES, ResNetPictures, TransformerText, heads_of
from normgeo.lab.optima import Bowl, Logistic
from normgeo.lab.problems import Classes, Classify, Pictures, Problem, Settings, Text, labelled_file
from normgeo.lab.trials import Entry, Outcome, Trial, Trials

__all__ = ["Comparison", "Parabola", "Sources", "Study", "Transfer", "studies"]

Row = tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """Where the data are; makes a problem from its name and a seed: "gpt width 128 depth 3 steps 500". Kinds are gpt, gpt2
    and llama (text), mlp (classes), vit and resnet18 (images), quadratic and logistic."""

    text: Path | None = None
    classes: Path | None = None
    images: Path | None = None

    def of(self, name: str) -> str:
        """Which data the problem is made of, so that runs on other data are not taken for these."""
        kind = name.split()[0]
        if kind not in KINDS:
            raise UserError(f"--problems: unknown kind {kind!r}; choose from {', '.join(KINDS)}")
        if kind in DRAWN:
            return "drawn"
        paths = {"--text": self.text, "--images": self.images, "--classes": self.classes}
        option = "--text" if kind in TEXTS else "--images" if kind in IMAGES else "--classes"
        path = paths[option]
        if path is None and option == "--text":
            return f"Python {platform.python_version()}"
        if path is None:
            what = f"{kind} needs labelled {'vectors' if option == '--classes' else 'images'}"
            raise UserError(f"{option}: {what}; give an .npz file, or leave the study out")
        try:
            return f"{path.name}, {path.stat().st_size} bytes"
        except OSError as error:
            raise UserError(f"{option}: cannot read {path}: {error.strerror}; give the path of a file") from error

    def __call__(self, name: str, seed: int) -> Problem:
        kind, *rest = name.split()
        try:
            sizes = dict(zip(rest[::2], map(int, rest[1::2]), strict=True))
        except ValueError:
            raise UserError(
                f"--problems: {name!r} is not a kind and its sizes; write for instance 'mlp width 64'"
            ) from None
        if unknown := sorted(set(sizes) - KINDS[kind]):
            raise UserError(f"--problems: {kind} has no {unknown[0]!r}; choose from {', '.join(sorted(KINDS[kind]))}")
        if kind in FAMILIES:
            sizes.setdefault("heads", heads_of(sizes.get("width", Settings.width)))
            return TransformerText(Settings(**sizes, seed=seed), _corpus(self.text), kind)
        if kind == "gpt":
            return Text(Settings(**sizes, seed=seed), _corpus(self.text))
        if kind in DRAWN:
            return DRAWN[kind](**sizes, seed=seed)
        path = self.images if kind in IMAGES else self.classes
        assert path is not None, "`of` asks for it"
        if kind in IMAGES:
            return IMAGES[kind](_classes(path, "--images"), **sizes, seed=seed)
        return Classify(_classes(path), **sizes, seed=seed)


DRAWN: dict[str, Callable[..., Problem]] = {"quadratic": Bowl, "logistic": Logistic}
IMAGES: dict[str, type[Pictures]] = {"vit": Pictures, "resnet18": ResNetPictures}
TEXTS = ("gpt", *FAMILIES)
KINDS = {
    kind: {each.name for each in fields(made)} - {"data", "seed", "lr"}
    for kind, made in {
        **dict.fromkeys(TEXTS, Settings),
        "mlp": Classify,
        **IMAGES,
        "quadratic": Bowl,
        "logistic": Logistic,
    }.items()
}


# Every trial and every row of a table asks for its problem; the data are read once.


@lru_cache(maxsize=1)
def _corpus(path: Path | None) -> Corpus:
    return standard_library() if path is None else text_file(path)


@lru_cache(maxsize=2)
def _classes(path: Path, option: str = "--classes") -> Classes:
    return labelled_file(path, option)


class Study(ABC):
    """Runs to make, in rounds, since later ones may depend on what came out, and what to say about them."""

    title: str
    columns: Row
    problems: Sequence[str]

    @abstractmethod
    def rounds(self, trials: Trials, seeds: int) -> Iterator[Sequence[Trial]]:
        """Each round is done before the next is asked for."""

    @abstractmethod
    def rows(self, trials: Trials, seeds: int) -> list[Row]:
        """The table, once all rounds are done."""


@dataclass(frozen=True)
class Comparison(Study):
    """Each optimizer at the best of its settings on seed 0 by `metric`, then on every seed."""

    title: str
    problems: Sequence[str]
    field: Mapping[str, Sequence[Entry]]
    metric: str
    columns: Row = ("optimizer", "setting", "train loss", "validation loss", "accuracy, %")

    @property
    def problem(self) -> str:
        (problem,) = self.problems
        return problem

    def best(self, trials: Trials, name: str) -> Entry:
        return min(self.field[name], key=lambda entry: _cost(trials[Trial(self.problem, entry, 0)], self.metric))

    def at_end(self, name: str, entry: Entry) -> bool:
        """Whether the lr is the first or last of three or more that were tried with the same other options."""
        lrs = [each.lr for each in self.field[name] if each.others == entry.others]
        return len(lrs) > 2 and entry.lr in (min(lrs), max(lrs))

    def rounds(self, trials: Trials, seeds: int) -> Iterator[Sequence[Trial]]:
        yield [Trial(self.problem, entry, 0) for grid in self.field.values() for entry in grid]
        best = [self.best(trials, name) for name in self.field]
        yield [Trial(self.problem, entry, seed) for entry in best for seed in range(1, seeds)]

    def rows(self, trials: Trials, seeds: int) -> list[Row]:
        out: list[Row] = []
        for name, grid in self.field.items():
            entry = self.best(trials, name)
            got = [trials[Trial(self.problem, entry, seed)] for seed in range(seeds)]
            accuracies = [100 * each.accuracy for each in got if each.accuracy is not None]
            end = ", end of the grid" if self.at_end(name, entry) else ""
            tuned = f" (best of {len(grid)}{end})" if len(grid) > 1 else ""
            setting = entry.contender(trials.make(self.problem, 0).steps).setting + tuned
            numbers = (_spread([o.train for o in got]), _spread([o.validation for o in got]), _spread(accuracies, 1))
            out.append((name, setting, *numbers))
        return out


@dataclass(frozen=True)
class Transfer(Study):
    """The best learning rate of the first problem, used on all: what it costs, and how far the optima wander.

    Optima are vertices of parabolas in log lr around the best point of a grid, over the mean validation loss of all seeds.
    """

    title: str
    problems: Sequence[str]
    field: Mapping[str, Sequence[Entry]]
    columns: Row = ("optimizer", "problem", "losses by lr", "best lr", "best loss", "cost of the first's lr, %")

    def rounds(self, trials: Trials, seeds: int) -> Iterator[Sequence[Trial]]:
        for seed in range(seeds):
            yield [Trial(p, entry, seed) for p in self.problems for grid in self.field.values() for entry in grid]

    def losses(self, trials: Trials, name: str, problem: str, seeds: int) -> list[float]:
        each = ([trials[Trial(problem, entry, s)].validation for s in range(seeds)] for entry in self.field[name])
        return [mean(losses) for losses in each]

    def rows(self, trials: Trials, seeds: int) -> list[Row]:
        out: list[Row] = []
        for name, grid in self.field.items():
            lrs = [entry.lr for entry in grid]
            curves = {p: self.losses(trials, name, p, seeds) for p in self.problems}
            fits = {p: Parabola.through(lrs, losses) for p, losses in curves.items()}
            first = fits[self.problems[0]].lr
            for problem, losses in curves.items():
                fit = fits[problem]
                shown = "  ".join(f"{lr:g}: {loss:.3f}" for lr, loss in zip(lrs, losses, strict=True))
                cost = 100 * (Parabola.near(first, lrs, losses).at(first) / fit.loss - 1)
                out.append((name, problem, shown, fit.shown(), f"{fit.loss:.4f}", f"{cost:.2f}"))
            optima = [fit.lr for fit in fits.values()]
            edge = " at least" if any(fit.edge for fit in fits.values()) else ""
            out.append((name, "all", "", f"span{edge} ×{max(optima) / min(optima):.2f}", "", ""))
        return out


@dataclass(frozen=True)
class Parabola:
    """loss(lr) = loss + curvature·(log lr - log lr*)², by least squares over the points within a factor 2 of one.

    >>> fit = Parabola.through([0.1, 0.2, 0.4], [1.0, 0.5, 1.0])
    >>> round(fit.lr, 3), round(fit.loss, 3), fit.edge
    (0.2, 0.5, False)
    """

    lr: float
    loss: float
    curvature: float
    edge: bool = False
    """the best point is at an end of the grid, and the optimum may lie beyond"""

    @classmethod
    def through(cls, lrs: Sequence[float], losses: Sequence[float]) -> Parabola:
        """Around the best point; at an end of the grid it is that point."""
        best = int(np.argmin(losses))
        edge = best in (0, len(lrs) - 1)
        return cls(lrs[best], losses[best], 0.0, edge=True) if edge else cls._around(lrs[best], lrs, losses)

    @classmethod
    def near(cls, lr: float, lrs: Sequence[float], losses: Sequence[float]) -> Parabola:
        """Around the point of the grid closest to lr that has neighbours on both sides."""
        inner = lrs[1:-1]
        return cls._around(min(inner, key=lambda each: abs(math.log(each / lr))), lrs, losses)

    @classmethod
    def _around(cls, centre: float, lrs: Sequence[float], losses: Sequence[float]) -> Parabola:
        x, y = np.log(lrs), np.array(losses)
        near = (np.abs(x - math.log(centre)) < math.log(2) + 1e-6) & np.isfinite(y)
        if near.sum() < 3:  # a neighbour diverged
            return cls(centre, float(y[list(lrs).index(centre)]), 0.0)
        a, b, c = np.polyfit(x[near], y[near], 2)
        return cls(float(np.exp(-b / (2 * a))), float(c - b * b / (4 * a)), float(a))

    def at(self, lr: float) -> float:
        return self.loss + self.curvature * math.log(lr / self.lr) ** 2

    def shown(self) -> str:
        return f"{self.lr:.3g}" + (" (end of the grid)" if self.edge else "")


def studies() -> dict[str, Study]:
    """The studies of `normgeo bench quality`."""
    ours = {
        "normgeo": [Entry.of("ours", lr=0.2)],
        "normgeo, decay": [Entry.of("ours", lr=0.2, constraint=Decay(0.045))],
        "normgeo, Auto": [Entry.of("auto", lr=0.2)],
        "normgeo, Auto, decay": [Entry.of("auto", lr=0.2, constraint=Decay(0.045))],
    }
    text_field = {
        **ours,
        "AdamW": [Entry.of("adamw", lr=lr) for lr in (3e-3, 1e-2, 3e-2)],
        "Muon + AdamW": [
            Entry.of("muon", lr=lr, lr_rest=rest)
            for lr, rest in ((0.03, 1e-2), (0.06, 3e-3), (0.06, 1e-2), (0.12, 1e-2))
        ],
    }
    classes_field = {
        **ours,
        "AdamW": [Entry.of("adamw", lr=lr) for lr in (3e-4, 1e-3, 3e-3, 1e-2)],
        "Muon + AdamW, decay 0.1": [Entry.of("muon", lr=lr, lr_rest=1e-3) for lr in (0.03, 0.1, 0.3)],
        "Muon + AdamW, decay 0": [Entry.of("muon", lr=lr, lr_rest=1e-3, decay=0.0) for lr in (0.01, 0.03, 0.1)],
    }
    muon = [Entry.of("muon", lr=lr, lr_rest=1e-2) for lr in (0.02, 0.04, 0.08, 0.16)]
    by_width = {
        "normgeo": [Entry.of("ours", lr=lr) for lr in (0.1, 0.2, 0.28, 0.4)],
        "AdamW": [Entry.of("adamw", lr=lr) for lr in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)],
        "Muon + AdamW": muon,
    }
    by_depth = {
        "normgeo": [Entry.of("ours", lr=lr) for lr in (0.1, 0.2, 0.28, 0.4, 0.57, 0.8)],
        "AdamW": [Entry.of("adamw", lr=lr) for lr in (4e-3, 8e-3, 1.6e-2, 3.2e-2)],
        "Muon + AdamW": muon,
    }
    gpt, mlp = ["gpt width 128 depth 3 steps 500"], ["mlp width 256 steps 1950"]
    widths = [f"mlp width {width} steps 195" for width in (64, 256, 1024)]
    depths = [f"gpt width 64 depth {depth} batch 16 steps 150" for depth in (2, 4, 8, 16)]
    return {
        "gpt": Comparison("GPT of width 128, depth 3, 500 steps", gpt, text_field, "validation"),
        "mlp": Comparison("MLP of width 256, 1950 steps, tuned for accuracy", mlp, classes_field, "accuracy"),
        "fit": Comparison("MLP of width 256, 1950 steps, tuned for training loss", mlp, classes_field, "train"),
        "width": Transfer("one learning rate for MLPs of all widths, 195 steps", widths, by_width),
        "depth": Transfer("one learning rate for GPTs of all depths, width 64, 150 steps", depths, by_depth),
    }


def _cost(outcome: Outcome, metric: str) -> float:
    value = getattr(outcome, metric)
    return -value if metric == "accuracy" else value


def _spread(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return ""
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return f"{mean(values):.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"
