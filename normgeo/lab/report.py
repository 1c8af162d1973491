"""Results for people: a table and a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.table import Table

from normgeo.lab.training import Curve

__all__ = ["plot_losses", "summary"]


def summary(curves: Sequence[Curve]) -> Table:
    """Final losses and speed, a line per contender."""
    table = Table(title="loss in nats per byte, lower is better")
    for column in ("optimizer", "setting"):
        table.add_column(column)
    for column in ("validation", "train", "tokens/s", "seconds"):
        table.add_column(column, justify="right")
    for c in curves:
        numbers = (f"{c.validation[-1]:.4f}", f"{c.train[-1]:.4f}", f"{c.examples_per_second:,.0f}", f"{c.seconds:.0f}")
        table.add_row(c.name, c.setting, *numbers)
    return table


def plot_losses(curves: Sequence[Curve], title: str) -> bytes:
    """A PNG: training losses as lines, validation losses as marks of the same colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in curves:
        (line,) = axes.plot(curve.steps, curve.train, linewidth=1.2, alpha=0.8, label=f"{curve.name}, {curve.setting}")
        axes.plot(curve.validated, curve.validation, "o", markersize=5, color=line.get_color())
    axes.plot([], [], "o", color="gray", markersize=5, label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per byte)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=140)
    return picture.getvalue()
