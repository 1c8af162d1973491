"""`normgeo bench quality`: how well optimizers train, and whether one learning rate serves all sizes."""

from __future__ import annotations

from pathlib import Path

import click

from normgeo import lab
from normgeo.cli.report import Report

__all__ = ["quality"]

TRIALS = "trials.jsonl"


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
    known = lab.studies()
    names = [name.strip() for name in studies.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise lab.UserError(f"--studies: unknown study {unknown[0]!r}; choose from {', '.join(known)}")
    sources = lab.Sources(text, classes)
    for name in names:
        for problem in known[name].problems:
            sources.of(problem)
    report = Report(out)
    trials = lab.Trials(out / TRIALS, sources, jobs)
    for name in names:
        report.study(name, known[name], trials, seeds)
    report.save({"seeds": seeds})
