"""What `normgeo bench quality` and `normgeo bench models` have in common: studies by name, over runs that are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from normgeo import lab
from normgeo.cli.report import Report

__all__ = ["studying"]

TRIALS = "trials.jsonl"


def studying(
    name: str, known: Callable[[], Mapping[str, lab.Study]], what: str, *, pictures: bool = False
) -> click.Command:
    """The command that runs these studies. what: it compares, for its help. pictures: the labelled examples are images."""
    option, shape = ("--images", "examples (h, w) or (h, w, channels)") if pictures else ("--classes", "vectors")

    @click.command(
        name,
        help=f"{what}\n\nHours on a CPU. Each run that is done is kept in --out, and the same command goes on where it "
        "stopped.",
    )
    @click.option(
        "--text", type=click.Path(path_type=Path), help="UTF-8 text to learn. [default: the standard library]"
    )
    @click.option(
        option,
        "labelled",
        type=click.Path(path_type=Path),
        help=f"An .npz with x_train, y_train, x_test, y_test; {shape}.",
    )
    @click.option("--studies", default=",".join(known()), show_default=True, help="Which, separated by commas.")
    @click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="For weights and batches.")
    @click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Runs at once; a thread each if several.",
    )
    @click.option(
        "--out", type=click.Path(path_type=Path), default=Path(f"runs/{name}"), show_default=True, help="Folder."
    )
    def command(text: Path | None, labelled: Path | None, studies: str, seeds: int, jobs: int, out: Path) -> None:
        found = known()
        names = [each.strip() for each in studies.split(",") if each.strip()]
        if unknown := [each for each in names if each not in found]:
            raise lab.UserError(f"--studies: unknown study {unknown[0]!r}; choose from {', '.join(found)}")
        sources = lab.Sources(text, images=labelled) if pictures else lab.Sources(text, labelled)
        for each in names:
            for problem in found[each].problems:
                sources.of(problem)
        report = Report(out)
        trials = lab.Trials(out / TRIALS, sources, jobs)
        for each in names:
            report.study(each, found[each], trials, seeds)
        report.save({"seeds": seeds})

    return command
