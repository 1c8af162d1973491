"""Step times for people: tables and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.table import Table

from normgeo.lab.speed import Timing, by_width
from normgeo.lab.speed_clock import Rates
from normgeo.lab.speed_polars import Accuracy, PolarTiming

__all__ = ["accuracy_table", "plot_speed", "polar_table", "speed_table"]


def speed_table(timings: Sequence[Timing], rates: Rates | None = None, reference: str = "torch Muon") -> Table:
    """A line per optimizer and width; [first and third quartile] beside each median, and what part of the machine's rates
    the arithmetic, and the bytes that cannot be avoided, come to. On a device also when the host is free again."""
    table = Table(title=f"one step on the hidden matrices of a GPT: median and quartiles, ratios to {reference}")
    table.add_column("width")
    table.add_column("optimizer", no_wrap=True)
    device = any(timing.enqueuing is not None for timing in timings)
    for column in ("ms", *["host"][:device], "ratio", "GFLOP/s", "GB/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for timing in timings:
        low, median, high = timing.milliseconds
        below, ratio, above = timing.ratio
        table.add_row(
            str(timing.width),
            timing.name,
            f"{median:.2f} [{low:.2f}, {high:.2f}]",
            *[f"{timing.enqueuing or 0:.2f}"][:device],
            f"{ratio:.2f} [{below:.2f}, {above:.2f}]",
            ""
            if timing.gflops is None
            else f"{timing.gflops:.0f}{_part(timing.gflops, rates.gflops if rates else None)}",
            f"{timing.gbytes:.1f}{_part(timing.gbytes, rates.gbytes if rates else None)}",
        )
    return table


def _part(rate: float, of: float | None) -> str:
    return "" if of is None else f" ({100 * rate / of:.0f} %)"


def polar_table(timings: Sequence[PolarTiming], rates: Rates | None = None) -> Table:
    """What the polar factors alone take, and what part of the machine's rate in plain products that would be."""
    table = Table(title="polar factors alone; rates by the arithmetic of the plain iteration")
    for column in ("matrices", "policy"):
        table.add_column(column, no_wrap=True)
    for column in ("ms", "GFLOP/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in timings:
        part = _part(each.gflops, rates.gflops if rates else None)
        size = f"{each.count} of {each.m} × {each.n}"
        table.add_row(size, each.name, f"{each.milliseconds:.3f}", f"{each.gflops:.0f}{part}")
    return table


def accuracy_table(accuracies: Sequence[Accuracy]) -> Table:
    """How near the polar factors of the optimizers come to the exact one."""
    table = Table(title="polar factors: singular values where those of G/‖G‖_F are ≥ 1e-3, and least ⟨G, P⟩/‖G‖*")
    table.add_column("width")
    table.add_column("optimizer")
    for column in ("least", "largest", "descent"):
        table.add_column(column, justify="right")
    for each in accuracies:
        numbers = (f"{value:.4f}" for value in (each.least, each.largest, each.descent))
        table.add_row(str(each.width), each.name, *numbers)
    return table


def plot_speed(timings: Sequence[Timing], title: str) -> bytes:
    """A PNG: for each width the median ratios as bars, with their quartiles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = by_width(timings)
    figure = Figure(figsize=(4.5 * len(groups), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (width, its) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        ratios = [timing.ratio for timing in its]
        spread = [[r[1] - r[0] for r in ratios], [r[2] - r[1] for r in ratios]]
        axes.barh([timing.name for timing in its], [r[1] for r in ratios], xerr=spread, capsize=3)
        axes.axvline(1, color="gray", linewidth=1)
        axes.invert_yaxis()
        axes.set(xlabel="time of a step / torch Muon's", title=f"width {width}")
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=140)
    return picture.getvalue()
