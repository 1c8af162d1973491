"""`normgeo bench speed`: how long a step takes."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path

import click
import torch

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
@click.option("--compile", is_flag=True, help="Also compiled steps of norms without products.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/speed"), show_default=True, help="Folder.")
def speed(
    width: str, depth: int, threads: int, seconds: float, device: str, only: str, tokens: int, compile: bool, out: Path
) -> None:
    """Time optimizer steps beside torch's Muon and AdamW, in turn in one process, and beside their matrix products."""
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
    rates = lab.machine_rates(where)
    words = [word.strip() for word in only.split(",") if word.strip()]
    timings = [timing for each in widths for timing in lab.time_steps(each, depth, where, seconds, words)]
    entrywise = (
        [] if words else [t for each in widths for t in lab.time_entrywise(each, depth, where, seconds / 3, compile)]
    )
    accuracies = [accuracy for each in widths if each <= 1024 for accuracy in lab.accuracies(each, where)]
    report = Report(out)
    report.console.print(
        f"this machine: {rates.gflops:.0f} GFLOP/s in large products, {rates.gbytes:.1f} GB/s in copies"
    )
    report.console.print(lab.speed_table(timings, rates), soft_wrap=False)
    if entrywise:
        report.console.print(lab.speed_table(entrywise, rates, "torch AdamW, fused"), soft_wrap=False)
    shares = {
        each: lab.training_share(
            each, depth, where, tokens, next(t for t in timings if t.width == each).milliseconds[1]
        )
        for each in (widths if tokens else ())
    }
    for each, share in shares.items():
        report.console.print(f"width {each}: {100 * share:.2f} % of a training step with {tokens} tokens")
    report.console.print(lab.accuracy_table(accuracies), soft_wrap=False)
    facts = {
        "machine": torch.cuda.get_device_name(where) if device == "cuda" else platform.processor(),
        "device": device,
        "threads": threads,
        "depth": depth,
        "rates": asdict(rates),
        "timings": [asdict(timing) for timing in timings],
        "entrywise": [asdict(timing) for timing in entrywise],
        "training_share": shares,
        "accuracies": [asdict(accuracy) for accuracy in accuracies],
    }
    picture = lab.plot_speed(timings, f"GPT of depth {depth}, {device}, {threads} threads")
    report.save(facts, {PICTURE: picture})
