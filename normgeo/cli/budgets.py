"""`normgeo bench budgets`: which budget learns fastest where, what budgets cost, and how they train."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import click

from normgeo import lab
from normgeo.cli.report import Report

__all__ = ["budgets"]

CONDITIONS = (4.0, 100.0, 1000.0)
STUDIES = ("claim", "quadratic", "nonconvex", "network", "costs", "training")
RACES, TRIALS, PICTURE = "races.jsonl", "trials.jsonl", "budgets.png"


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
    if "costs" in names and find_spec("scipy") is None:
        raise lab.UserError("--studies costs: completions are measured beside a solver of scipy; pip install scipy")
    sources = lab.Sources(text)
    sources.of("gpt")
    report = Report(out)
    claims = [lab.claim(condition) for condition in CONDITIONS] if "claim" in names else []
    if claims:
        report.table("claim", "Q* for the moment, beside 10 random Q of the same Frobenius budget", lab.CLAIM_COLUMNS,
                    [row for each in claims for row in each.rows()])  # fmt: skip
    places = [place for name, found in lab.landscapes(seeds).items() if name in names for place in found]
    races = lab.Races(lab.Ledger(out / RACES, lab.Race), places, steps)
    if places:
        report.follow("races", [(len(races.todo), races.run())])
        report.table("races", f"loss over the first after {steps} steps, each budget at its best",
                    ("budget", *(place.name for place in places)), races.table())  # fmt: skip
        report.table("winners", "who wins where", lab.WINNER_COLUMNS, races.winners())
    if "costs" in names:
        for name, (title, columns, measure) in lab.COSTS.items():
            report.table(name, title, columns, measure())
    if "training" in names:
        _train(report, lab.Trials(out / TRIALS, sources), seeds)
    facts = {"seeds": seeds, "steps": steps, "claims": [asdict(each) for each in claims]}
    report.save(facts, {PICTURE: lab.plot_budgets(claims, races)} if claims or places else {})


def _train(report: Report, trials: lab.Trials, seeds: int) -> None:
    study = lab.training_study()
    report.study("training", study, trials, seeds)
    problem = trials.make(study.problem, 0)
    field = {name: study.best(trials, name).contender(problem.steps) for name in study.field}
    report.table("upkeep", "what the optimizers cost there", lab.UPKEEP_COLUMNS, lab.upkeep(problem, field))
