"""`normgeo bench budgets`: which budget learns fastest where, what budgets cost, and how they train."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import normgeo as ng
from normgeo import lab

__all__ = ["budgets"]

T = TypeVar("T")
CONDITIONS = (4.0, 100.0, 1000.0)
STUDIES = ("claim", "quadratic", "nonconvex", "network", "costs", "training")
RACES, TRIALS, RESULTS, PICTURE = "races.jsonl", "trials.jsonl", "results.json", "budgets.png"


@click.command()
@click.option(
    "--studies", default="claim,quadratic,nonconvex,network", show_default=True, help="Also: costs, training."
)
@click.option("--steps", type=click.IntRange(min=20), default=100, show_default=True, help="Of a race on a landscape.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="For landscapes and training.")
@click.option("--text", type=click.Path(path_type=Path), help="Text to train on. [default: the standard library]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/budgets"), show_default=True, help="Folder.")
def budgets(studies: str, steps: int, seeds: int, text: Path | None, out: Path) -> None:
    """Race all static budgets over grids of their parameters: the best operator beside random ones (claim), on quadratics
    of several condition numbers, on nonconvex losses and on a small network.

    Two minutes on a free core. costs: closed forms, completions and directions, each beside its reference, a minute.
    training: budgets as directions of a small GPT, 2000 steps, a quarter of an hour. What is done is kept in --out.
    """
    names = [name.strip() for name in studies.split(",") if name.strip()]
    if unknown := [name for name in names if name not in STUDIES]:
        raise lab.UserError(f"--studies: unknown study {unknown[0]!r}; choose from {', '.join(STUDIES)}")
    sources = lab.Sources(text)
    sources.of("gpt")
    out.mkdir(parents=True, exist_ok=True)
    shown = _Shown()
    claims = [lab.claim(condition) for condition in CONDITIONS] if "claim" in names else []
    if claims:
        shown.table("claim", "Q* for the moment, beside 10 random Q of the same Frobenius budget", lab.CLAIM_COLUMNS,
                    [row for each in claims for row in each.rows()])  # fmt: skip
    places = [place for name, found in lab.landscapes(seeds).items() if name in names for place in found]
    races = lab.Races(lab.Ledger(out / RACES, lab.Race), places, steps)
    if places:
        shown.follow("races", races.run(), len(races.todo))
        shown.table("races", f"loss over the first after {steps} steps, each budget at its best",
                    ("budget", *(place.name for place in places)), races.table())  # fmt: skip
        shown.table("winners", "who wins where", lab.WINNER_COLUMNS, races.winners())
    if claims or places:
        lab.write_whole(out / PICTURE, lab.plot_budgets(claims, races))
    if "costs" in names:
        for name, (title, columns, measure) in lab.COSTS.items():
            shown.table(name, title, columns, measure())
    if "training" in names:
        _train(shown, lab.Trials(out / TRIALS, sources), seeds)
    facts = {"normgeo": ng.__version__, "torch": torch.__version__, "python": platform.python_version(), "seeds": seeds}
    report = {**facts, "steps": steps, "studies": shown.report, "claims": [asdict(each) for each in claims]}
    lab.write_whole(out / RESULTS, json.dumps(report, indent=1).encode())
    shown.console.print(f"saved {out / RESULTS}")


def _train(shown: _Shown, trials: lab.Trials, seeds: int) -> None:
    study = lab.training_study()
    for todo in study.rounds(trials, seeds):
        shown.follow("training", trials.run(todo), len([trial for trial in todo if trial not in trials]))
    shown.table("training", study.title, study.columns, study.rows(trials, seeds))
    problem = trials.make(study.problem, 0)
    field = {name: study.best(trials, name).contender(problem.steps) for name in study.field}
    shown.table("upkeep", "what the optimizers cost there", lab.UPKEEP_COLUMNS, lab.upkeep(problem, field))


class _Shown:
    """Tables on the console, and the same for the report."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        self.report: dict[str, Any] = {}

    def table(self, name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table, soft_wrap=False)
        self.report[name] = {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}

    def follow(self, name: str, work: Iterable[object], total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(name, total=total)
            for _ in work:
                progress.advance(task)
