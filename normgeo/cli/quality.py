"""`normgeo bench quality`: how well optimizers train, and whether one learning rate serves all sizes."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import normgeo as ng
from normgeo import lab

__all__ = ["quality"]

TRIALS, RESULTS = "trials.jsonl", "results.json"


@click.command()
@click.option(
    "--text", type=click.Path(path_type=Path), help="UTF-8 text for the GPTs. [default: the standard library]"
)
@click.option("--classes", type=click.Path(path_type=Path), help="An .npz with x_train, y_train, x_test, y_test.")
@click.option("--studies", default=",".join(lab.studies()), show_default=True, help="Which, separated by commas.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="For weights and batches.")
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at once; a thread each if several."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/quality"), show_default=True, help="Folder.")
def quality(text: Path | None, classes: Path | None, studies: str, seeds: int, jobs: int, out: Path) -> None:
    """Compare training with AdamW and Muon, and measure whether the best learning rate moves with width and depth.

    Hours on a CPU. Each run that is done is kept in --out, and the same command goes on where it stopped.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    known = lab.studies()
    names = [name.strip() for name in studies.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise lab.UserError(f"--studies: unknown study {unknown[0]!r}; choose from {', '.join(known)}")
    sources = lab.Sources(text, classes)
    for name in names:
        for problem in known[name].problems:
            sources.of(problem)
    out.mkdir(parents=True, exist_ok=True)
    trials = lab.Trials(out / TRIALS, sources, jobs)
    report = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    for name in names:
        study = known[name]
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(name, total=None)
            for todo in study.rounds(trials, seeds):
                progress.update(task, total=(progress.tasks[task].total or 0) + len(todo))
                progress.advance(task, sum(trial in trials for trial in todo))
                for _ in trials.run(todo):
                    progress.advance(task)
        table = Table(*study.columns, title=study.title)
        report[name] = study.rows(trials, seeds)
        for row in report[name]:
            table.add_row(*row)
        console.print(table, soft_wrap=False)
    facts = {"normgeo": ng.__version__, "torch": torch.__version__, "python": platform.python_version(), "seeds": seeds}
    lab.write_whole(out / RESULTS, json.dumps({**facts, "studies": report}, indent=1).encode())
    console.print(f"saved {out / RESULTS}")
