"""What the commands that measure have in common: tables, a bar for long work, and a file with all of it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import normgeo as ng
from normgeo import lab

__all__ = ["Report"]

RESULTS = "results.json"
WIDTH = 110  # where the output is no terminal


class Report:
    """Tables on the console and the same in `out`/results.json, beside the versions that they were measured with."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.console = Console(highlight=False, markup=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self.tables: dict[str, Any] = {}

    def table(self, name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table, soft_wrap=False)
        self.tables[name] = {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}

    def follow(self, name: str, rounds: Iterable[tuple[int, Iterable[object]]]) -> None:
        """Do the work of all rounds under one bar; a round is the number of its pieces and the pieces as they get done."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            task, total = progress.add_task(name, total=None), 0
            for pieces, work in rounds:
                total += pieces
                progress.update(task, total=total)
                for _ in work:
                    progress.advance(task)

    def study(self, name: str, study: lab.Study, trials: lab.Trials, seeds: int) -> None:
        """Run what of it is not done, then its table."""
        missing = ([t for t in dict.fromkeys(todo) if t not in trials] for todo in study.rounds(trials, seeds))
        self.follow(name, ((len(todo), trials.run(todo)) for todo in missing))
        self.table(name, study.title, study.columns, study.rows(trials, seeds))

    def save(self, facts: Mapping[str, Any], pictures: Mapping[str, bytes] | None = None, say: bool = True) -> None:
        """Write results.json and the pictures, each whole or not at all."""
        versions = {"normgeo": ng.__version__, "torch": torch.__version__, "python": platform.python_version()}
        studies = {"studies": self.tables} if self.tables else {}
        content = json.dumps({**versions, **facts, **studies}, indent=1)
        files = {RESULTS: content.encode(), **(pictures or {})}
        for name, each in files.items():
            lab.write_whole(self.out / name, each)
        if say:
            self.console.print("saved " + " and ".join(str(self.out / name) for name in files))
