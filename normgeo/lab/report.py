"""Results for people: a table and a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from normgeo.lab.budgets import REFERENCE, Claim, Races
from normgeo.lab.sweep import Line
from normgeo.lab.training import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_budgets", "plot_losses", "plot_sweep", "summary"]


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
    figure, (axes,) = _figure(1, 7, 4.5)
    for curve in curves:
        (line,) = axes.plot(curve.steps, curve.train, linewidth=1.2, alpha=0.8, label=f"{curve.name}, {curve.setting}")
        axes.plot(curve.validated, curve.validation, "o", markersize=5, color=line.get_color())
    axes.plot([], [], "o", color="gray", markersize=5, label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per byte)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def plot_budgets(claims: Sequence[Claim], races: Races, shown: int = 6) -> bytes:
    """A PNG: Q* beside random operators on each quadratic, then on each landscape the best budgets and gradient descent."""
    figure, panels = _figure(len(claims) + len(races.places), 4.5, 3.6)
    for axes, claim in zip(panels, claims, strict=False):
        for other in claim.random:
            axes.plot(other, ":", color="gray", linewidth=0.8)
        axes.plot(claim.frozen, label="Q* kept")
        axes.plot(claim.renewed, label="Q* renewed")
        axes.set(title=f"equal Frobenius budgets, condition {claim.condition:g}", yscale="log", xscale="symlog")
    for axes, place in zip(panels[len(claims) :], races.places, strict=True):
        ranking = races.ranking(place, races.steps)
        kept = ranking[:shown] + [each for each in ranking[shown:] if each.budget == REFERENCE]
        for each in kept:
            steps = [step for step, x in zip(each.steps, each.curve, strict=True) if x is not None]
            axes.plot(steps, [10**x for x in each.curve if x is not None], label=each.budget)
        axes.set(title=place.name, yscale="log", xscale="symlog")
    for axes in panels:
        axes.set(xlabel="step", ylabel="loss over the first", xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return _png(figure)


def plot_sweep(lines: Sequence[Line]) -> bytes:
    """A PNG: a panel for each problem, grids as curves over the lr in units of each grid's best, the rest as levels."""
    problems = list(dict.fromkeys(line.problem for line in lines))
    figure, panels = _figure(len(problems), 4.5, 3.6)
    for axes, problem in zip(panels, problems, strict=True):
        for line in (each for each in lines if each.problem == problem):
            if line.grid:
                best = min(line.grid, key=lambda point: point[1])[0]
                points = [(lr / best, loss) for lr, loss in line.grid if math.isfinite(loss)]
                axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=line.name.split(",")[0])
            elif math.isfinite(level := sum(line.losses) / len(line.losses)):
                axes.plot([1 / 4, 4], [level, level], "--", linewidth=1, label=line.name)
        axes.set(title=problem, xlabel="lr over the best of its grid", ylabel="loss or gap", yscale="log")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    return _png(figure)


def _figure(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in rows of three."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, k + 1) for k in range(panels)]


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=140)
    return picture.getvalue()
