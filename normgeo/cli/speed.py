"""`normgeo bench speed`: how long a step takes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table

from normgeo import lab
from normgeo.cli.report import Report

__all__ = ["speed"]

PICTURE = "speed.png"


@click.command()
@click.option("--width", default="64,256", show_default=True, help="Widths of the GPTs, separated by commas.")
@click.option("--depth", type=int, default=4, show_default=True, help="Blocks; each has six matrices.")
@click.option("--threads", type=int, default=1, show_default=True, help="Threads of torch.")
@click.option("--seconds", type=float, default=12.0, show_default=True, help="For each width, about.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--only", default="", help="Words in the names of optimizers, separated by commas; torch Muon always runs."
)
@click.option("--tokens", type=int, default=0, help="Also the share of a training step with batches of so many tokens.")
@click.option("--vocabulary", type=int, default=0, help="Also the step of all leaves, with tables of so many rows.")
@click.option("--compile", is_flag=True, help="Also compiled steps of norms without products.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/speed"), show_default=True, help="Folder.")
def speed(
    width: str,
    depth: int,
    threads: int,
    seconds: float,
    device: str,
    only: str,
    tokens: int,
    vocabulary: int,
    compile: bool,
    out: Path,
) -> None:
    """Time optimizer steps beside torch's Muon and AdamW, in turn in one process, and beside their matrix products. What is
    measured is printed and saved as it comes."""
    try:
        widths = [int(each) for each in width.split(",")]
    except ValueError:
        raise lab.UserError(f"--width: numbers separated by commas, got {width!r}") from None
    if threads < 1:
        raise lab.UserError(f"--threads: at least 1, got {threads}")
    if device == "cuda" and not torch.cuda.is_available():
        raise lab.UserError("--device: this torch sees no CUDA device; write --device cpu")
    torch.set_num_threads(threads)
    where = torch.device(device)
    words = [word.strip() for word in only.split(",") if word.strip()]
    report, rates = Report(out), lab.machine_rates(where)
    facts: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(where) if device == "cuda" else platform.processor(),
        "device": device,
        "threads": threads,
        "depth": depth,
        "rates": asdict(rates),
        "timings": [],
        "entrywise": [],
        "polars": [],
        "training_share": {},
        "accuracies": [],
    }

    def tell(name: str, found: Sequence[Any], table: Table) -> None:
        facts[name] += [asdict(each) for each in found]
        report.console.print(table, soft_wrap=False)
        report.save(facts, say=False)

    report.console.print(
        f"this machine: {rates.gflops:.0f} GFLOP/s in large products, {rates.gbytes:.1f} GB/s in copies"
    )
    timings: list[lab.Timing] = []
    for each in widths:
        found = lab.time_steps(each, depth, where, seconds, words)
        timings += found
        tell("timings", found, lab.speed_table(found, rates))
        polars = lab.time_polars(each, depth, where)
        tell("polars", polars, lab.polar_table(polars, rates))
        step = found[0]
        if vocabulary:
            whole, stacks = lab.time_whole(each, depth, where, vocabulary, seconds / 3)
            step = whole[0]
            reference = f"the first; {step.matrices} leaves in {stacks} stacks"
            tell("timings", whole, lab.speed_table(whole, rates, reference))
        if tokens:
            share = lab.training_share(each, depth, where, tokens, step.milliseconds[1], vocabulary or 65)
            facts["training_share"][each] = share
            report.console.print(
                f"width {each}: {100 * share:.2f} % of a training step with {tokens} tokens, {step.name}"
            )
    for each in [] if words else widths:
        entrywise = lab.time_entrywise(each, depth, where, seconds / 3, compile)
        tell("entrywise", entrywise, lab.speed_table(entrywise, rates, "torch AdamW, fused"))
    for each in (each for each in widths if each <= (1024 if device == "cpu" else 2048)):
        accuracies = lab.accuracies(each, where)
        tell("accuracies", accuracies, lab.accuracy_table(accuracies))
    picture = lab.plot_speed(timings, f"GPT of depth {depth}, {device}, {threads} threads")
    report.save(facts, {PICTURE: picture})
