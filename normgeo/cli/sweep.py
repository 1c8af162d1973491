"""`normgeo sweep`: step size rules that nobody tunes, beside grids of learning rates."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from normgeo import lab
from normgeo.cli.report import Report

__all__ = ["sweep"]

TRIALS, PICTURE = "trials.jsonl", "sweep.png"
VERDICTS = ("rule", "within 1 % of our grid", "not on", "below AdamW's and Muon's grids", "not on")


@click.command()
@click.option(
    "--problems",
    default="quadratic,logistic",
    show_default=True,
    help='By kind and sizes, separated by commas: "gpt width 64 depth 2 batch 16", "mlp width 256", "vit width 64 depth '
    '2", "quadratic condition 1000", "logistic".',
)
@click.option("--steps", default="200,1000", show_default=True, help="Each problem is run for each of these.")
@click.option(
    "--ours",
    default="auto,default",
    show_default=True,
    help=f"Of {', '.join(lab.RULES)}; meta*0.01 starts 100 times smaller.",
)
@click.option("--against", default=",".join(lab.AGAINST), show_default=True, help='Or "none".')
@click.option(
    "--text", type=click.Path(path_type=Path), help="UTF-8 text for the GPTs. [default: the standard library]"
)
@click.option("--classes", type=click.Path(path_type=Path), help="An .npz with x_train, y_train, x_test, y_test.")
@click.option(
    "--images", type=click.Path(path_type=Path), help="The same, examples of shape (h, w) or (h, w, channels)."
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Grids are searched on the first."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at once; a thread each if several."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/sweep"), show_default=True, help="Folder.")
def sweep(
    problems: str,
    steps: str,
    ours: str,
    against: str,
    text: Path | None,
    classes: Path | None,
    images: Path | None,
    seeds: int,
    jobs: int,
    out: Path,
) -> None:
    """Run step size rules at one setting for everything beside the best of grids of learning rates, ours and those of AdamW
    and Muon, and beside optimizers from PyPI that need none.

    A minute as it stands, hours with networks. Each run that is done is kept in --out, and the same command goes on where
    it stopped.
    """
    study = lab.Sweep(_problems(problems, steps), _names(ours), [name for name in _names(against) if name != "none"])
    sources = lab.Sources(text, classes, images)
    for name in study.problems:
        sources.of(name)
        sources(name, 0)
    report = Report(out)
    trials = lab.Trials(out / TRIALS, sources, jobs)
    report.study("sweep", study, trials, seeds)
    report.table("verdicts", "where a rule does as well as a grid", VERDICTS, study.verdicts(trials, seeds))
    lines = study.lines(trials, seeds)
    facts = {"seeds": seeds, "lines": [asdict(line) for line in lines]}
    report.save(facts, {PICTURE: lab.plot_sweep(lines)})


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _problems(problems: str, steps: str) -> list[str]:
    try:
        lengths = [int(each) for each in _names(steps)]
    except ValueError:
        raise lab.UserError(f"--steps: whole numbers separated by commas, got {steps!r}") from None
    if not lengths or min(lengths) < 10:
        raise lab.UserError(f"--steps: at least one number, all at least 10, got {steps!r}")
    if not _names(problems):
        raise lab.UserError("--problems: name at least one, for instance quadratic")
    return [f"{name} steps {length}" for name in _names(problems) for length in lengths]
