"""`normgeo bench distributed`: what ranks send each other in a step."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from normgeo.cli.report import Report

__all__ = ["distributed"]


@click.command()
@click.option("--width", type=int, default=128, show_default=True, help="Width of the GPT.")
@click.option("--depth", type=int, default=2, show_default=True, help="Blocks; each has six matrices.")
@click.option("--ranks", type=int, default=4, show_default=True, help="Processes, on the CPU of this machine.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/distributed"), show_default=True, help="Folder."
)
def distributed(width: int, depth: int, ranks: int, out: Path) -> None:
    """Count the bytes that ranks send each other in a step of the optimizer, beside the least that whole matrices need."""
    from normgeo.lab.distributed import traffic  # it imports DTensors, which take a while

    found = traffic(width, depth, ranks)
    report = Report(out)
    columns = ("weights are", "ranks", "sent", "busiest rank", "at least", "all gather all", "collectives")
    rows = [
        (each.way, str(each.ranks), *map(_size, (each.sent, each.most, each.least, each.gathered)), str(each.calls))
        for each in found
    ]
    report.table("traffic", f"kB per rank and step, GPT of width {width} and depth {depth}, float32", columns, rows)
    report.save({"width": width, "depth": depth, "traffic": [asdict(each) for each in found]})


def _size(count: float) -> str:
    return f"{count / 1e3:,.1f}"
