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
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/speed"), show_default=True, help="Folder.")
def speed(width: str, depth: int, threads: int, seconds: float, device: str, out: Path) -> None:
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
    timings = [timing for each in widths for timing in lab.time_steps(each, depth, where, seconds)]
    accuracies = [accuracy for each in widths if each <= 1024 for accuracy in lab.accuracies(each, where)]
    report = Report(out)
    report.console.print(lab.speed_table(timings), soft_wrap=False)
    report.console.print(lab.accuracy_table(accuracies), soft_wrap=False)
    facts = {
        "machine": torch.cuda.get_device_name(where) if device == "cuda" else platform.processor(),
        "device": device,
        "threads": threads,
        "depth": depth,
        "timings": [asdict(timing) for timing in timings],
        "accuracies": [asdict(accuracy) for accuracy in accuracies],
    }
    picture = lab.plot_speed(timings, f"GPT of depth {depth}, {device}, {threads} threads")
    report.save(facts, {PICTURE: picture})
