"""Budgets against each other: the best operator for the moment beside random ones, and all budgets on landscapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo import budgets
from normgeo.budgets import DataMetric, DiagonalMoment, Frobenius, FullMoment, KroneckerMoment, Moment, OnDiagonal
from normgeo.lab.landscapes import Factors, Landscape, Network, Quadratic, Rosenbrock, curvature
from normgeo.lab.ledger import Ledger
from normgeo.norms import Frobenius as FrobeniusNorm
from normgeo.norms import Linf
from normgeo.norms import Spectral as SpectralNorm
from normgeo.optim import Direction, Operate
from normgeo.steps import Stats

__all__ = [
    "CLAIM_COLUMNS",
    "REFERENCE",
    "WINNER_COLUMNS",
    "Claim",
    "Place",
    "Race",
    "Races",
    "Way",
    "claim",
    "horizons",
    "landscapes",
    "race",
    "ways",
]

CLAIM_COLUMNS = ("condition", "step", "Q* kept (rank)", "Q* renewed (rank)", "random Q")
WINNER_COLUMNS = ("problem", "step", "winner", "at", "loss", "next", "its loss", "gradient descent")

# ---- is the best operator for the moment the fastest?


@dataclass(frozen=True)
class Claim:
    """Losses of one quadratic over its first: (steps + 1,) each; `random` has a row for each of the others."""

    condition: float
    frozen: list[float]
    """Q* for the moment at the start, kept"""
    renewed: list[float]
    """Q* for the moment of each step"""
    random: list[list[float]]

    def rank(self, losses: Sequence[float], step: int) -> int:
        """1 if none of the random ones is lower."""
        return 1 + sum(other[step] < losses[step] for other in self.random)

    def rows(self) -> list[tuple[str, ...]]:
        out = []
        for step in (1, 2, 5, 20, len(self.frozen) - 1):
            random = sorted(other[step] for other in self.random)
            cells = [f"{x[step]:.3g} ({self.rank(x, step)})" for x in (self.frozen, self.renewed)]
            out.append((f"{self.condition:g}", str(step), *cells, f"{random[0]:.3g} to {random[-1]:.3g}"))
        return out


def claim(
    condition: float, *, dim: int = 10, B: float = 1.0, steps: int = 199, others: int = 10, seed: int = 0
) -> Claim:
    """θ ← θ - Q·Hθ from θ ~ N(0, I), in expectation: S = E[θθᵀ] goes to (I - QH)·S·(I - HQ), the loss is ½ tr(HS) and
    the moment of the gradients HSH. All Q fill the Frobenius budget B: Q* for the moment, others for random moments.

    >>> first = claim(1000.0)
    >>> first.rank(first.frozen, 1), first.rank(first.frozen, 199), first.rank(first.renewed, 199)
    (1, 11, 1)
    """
    generator = torch.Generator().manual_seed(seed)
    h = curvature(condition, dim, generator)
    x = torch.randn(others, dim, dim, generator=generator, dtype=torch.float64)
    budget, eye = Frobenius(B), torch.eye(dim, dtype=torch.float64)
    q = budget.maximizer(torch.cat([(h @ h).expand(2, dim, dim), x @ x.mT]))
    s = eye.expand(len(q), dim, dim)
    losses = []
    for _ in range(steps + 1):
        losses.append(torch.einsum("ij,nji->n", h, s) / 2)
        q = torch.cat([budget.maximizer(h @ s[:1] @ h), q[1:]])
        left = eye - q @ h
        s = left @ s @ left.mT
    renewed, frozen, *rest = (torch.stack(losses) / losses[0]).mT.tolist()
    return Claim(condition, frozen, renewed, rest)


# ---- all budgets on landscapes


@dataclass(frozen=True)
class Way:
    """A budget with values of its parameters, as a direction; the size of the set is what a race searches over."""

    budget: str
    setting: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.budget}, {self.setting}" if self.setting else self.budget


@dataclass(frozen=True)
class Race:
    """What became of one way at every scale: log₁₀ of the loss over the first, mean over seeds; None if it diverged."""

    landscape: str
    budget: str
    setting: str
    scales: list[float]
    steps: list[int]
    """where losses were taken"""
    losses: list[list[float | None]]
    """per scale"""

    def best(self, step: int) -> Place:
        """The lowest at this step."""
        column = self.steps.index(step)
        at = [math.inf if x is None else x for x in (each[column] for each in self.losses)]
        k = min(range(len(at)), key=at.__getitem__)
        return Place(
            self.budget, self.setting, self.scales[k], at[k], k in (0, len(at) - 1), self.steps, self.losses[k]
        )


@dataclass(frozen=True)
class Place:
    """How well a budget did at its best parameters."""

    budget: str
    setting: str
    scale: float
    loss: float
    edge: bool
    """the best scale is an end of the grid"""
    steps: list[int]
    curve: list[float | None]

    def shown(self) -> str:
        return f"{self.setting}, " * bool(self.setting) + f"size {self.scale:.2g}" + " (end of the grid)" * self.edge


class Descent(Direction):
    """The gradient itself."""

    def __call__(self, M: Tensor, state: dict[str, Tensor], W: Tensor) -> Tensor:
        return M


@dataclass(frozen=True)
class LayerMoment(Moment):
    """S_ℓ = tr M_ℓ for layers that are columns of a weight."""

    columns: tuple[int, ...] = ()

    def parts(self, G: Tensor, H: Tensor) -> dict[str, Tensor]:
        return {"moment": torch.stack([x.sum((1, 2)) for x in (G * H).split(self.columns, -1)], 1)}

    def spectrum(self, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return state["moment"], {}

    def rotate(self, V: Tensor, basis: Mapping[str, Tensor]) -> Tensor:
        return V.flatten(1)

    def back(self, x: Tensor, basis: Mapping[str, Tensor], like: Tensor) -> Tensor:
        return x.reshape(like.shape)

    def apply(self, q: Tensor, basis: Mapping[str, Tensor], V: Tensor) -> Tensor:
        return torch.repeat_interleave(q, torch.tensor(self.columns), 1).unsqueeze(1) * V


BETA = 0.9  # of the moments
REFERENCE = "none: gradient descent"


def ways(place: Landscape, runs: int) -> list[Way]:
    """All static budgets with the moments they can use, on a grid of their parameters other than the size."""
    d = place.rows * place.columns
    full, diagonal, kronecker = FullMoment(BETA), DiagonalMoment(BETA), KroneckerMoment(BETA)
    rows = budgets.BlockMoment(BETA)

    def on(moment: Moment | None, budget: budgets.Budget | DataMetric, every: int = 1) -> Operate:
        return Operate(budget, moment, every=every, size="budget")

    shares = [max(1, round(d * share)) for share in (1 / 6, 1 / 3, 2 / 3, 1)]
    out = [
        Way(REFERENCE, "", Descent()),
        Way("Frobenius", "", on(full, Frobenius())),
        Way("Frobenius, Kronecker", "", on(kronecker, Frobenius())),
        Way("Frobenius, blocks", "", on(rows, Frobenius())),
        *(Way("Spectral", f"{k} of {d}", on(full, budgets.Spectral(float(k)))) for k in shares),
    ]
    for power in (0.5, 1.0, 1.5, 2.0):
        for damping in (0.0, 0.1):
            metric, setting = DataMetric(power, damping=damping), f"power {power:g}, damping {damping:g}"
            out.append(Way("DataMetric", setting, on(full, metric)))
            out.append(Way("DataMetric, Kronecker", setting, on(kronecker, metric)))
            out.append(Way("Diagonal, data metric", setting, on(diagonal, metric)))
    out += [
        Way("Diagonal", "", on(diagonal, budgets.Diagonal())),
        *(
            Way("Diagonal, spectral", f"{k} of {d}", on(diagonal, OnDiagonal(budgets.Spectral(float(k)))))
            for k in shares
        ),
        Way("Frobenius + Spectral", "", on(full, Frobenius() + budgets.Spectral(1.0, 0.5))),
        # Twenty times the price of the others: there is no closed form.
        Way(
            "Frobenius ∩ Spectral",
            "renewed every 40 steps",
            on(full, Frobenius() & budgets.Spectral(1.0, 0.5), every=40),
        ),
        Way("Step, Frobenius norm", "", on(None, budgets.Step(FrobeniusNorm()))),
        Way("Step, largest entry", "", on(None, budgets.Step(Linf()))),
        Way("Step, spectral norm", "", on(None, budgets.Step(SpectralNorm()))),
    ]
    if isinstance(place, Quadratic):
        hessian = place.hessian.expand(runs, *place.hessian.shape).flatten(0, 1)
        out.append(Way("Ellipsoid of the Hessian", "", on(full, budgets.Ellipsoid(hessian))))
    if place.layers:
        sizes = torch.stack([x.norm(dim=(1, 2)).mean() for x in place.start().split(place.layers, -1)]).clamp_min(0.1)
        layers = budgets.LayerWise(sizes, tuple(place.rows * columns for columns in place.layers))
        out.append(Way("LayerWise", "", on(LayerMoment(BETA, place.layers), layers)))
    return out


def race(place: Landscape, way: Way, scales: Sequence[float], steps: int) -> Race:
    """w ← w - c·Q*·g for every scale c and seed at once; c·𝒬 is the budget. What passes 100 times its first loss is out."""
    w = place.start().expand(len(scales), place.seeds, place.rows, place.columns).clone()
    c = torch.tensor(scales, dtype=w.dtype)[:, None, None, None]
    first = place.loss(w)
    alive = torch.ones_like(first, dtype=torch.bool)
    state = way.direction.init(w.flatten(0, 1))
    taken = sorted({0, steps, *(round(steps ** (k / 24)) for k in range(24)), *horizons(steps)})
    losses = [torch.zeros_like(first)]
    for step in range(steps):
        keep = alive[..., None, None]
        g = torch.where(keep, place.gradient(w, step), 0).flatten(0, 1)
        way.direction.observe(g, state, Stats(torch.tensor(float(step))))
        d = way.direction(g, state, w.flatten(0, 1)).reshape(w.shape)
        ahead = torch.where(keep, w - c * d, w)
        ratio = place.loss(ahead) / first
        alive = alive & (ratio <= 100)
        w = torch.where(alive[..., None, None], ahead, w)
        if step + 1 in taken:
            losses.append(torch.where(alive, ratio.clamp_min(1e-30).log10(), torch.inf))
    table = torch.stack(losses, 1).mean(-1)  # (scales, taken)
    rounded = [[round(x, 4) if math.isfinite(x) else None for x in row] for row in table.tolist()]
    return Race(place.name, way.budget, way.setting, list(scales), taken, rounded)


def horizons(steps: int) -> tuple[int, int, int]:
    """Early, on the way, at the end."""
    return max(1, steps // 20), max(1, steps // 4), steps


def landscapes(seeds: int = 3) -> dict[str, list[Landscape]]:
    """By what they are to show."""
    return {
        "quadratic": [Quadratic(condition, seeds) for condition in (4.0, 100.0, 1000.0)],
        "nonconvex": [Rosenbrock(seeds), Factors(seeds)],
        "network": [Network(seeds)],
    }


SCALES = tuple(2.0**k for k in range(-12, 5))


class Races:
    """All ways on some landscapes, kept in a ledger."""

    def __init__(
        self, ledger: Ledger[Race], places: Sequence[Landscape], steps: int, scales: Sequence[float] = SCALES
    ) -> None:
        self.ledger, self.places, self.steps, self.scales = ledger, places, steps, scales
        self.todo = [(place, way) for place in places for way in ways(place, len(scales))]

    def key(self, place: Landscape, way: Way) -> str:
        grid = f"{len(self.scales)} scales from {self.scales[0]:g} to {self.scales[-1]:g}"
        return f"{place.name} | {way} | {self.steps} steps | {place.seeds} seeds | {grid}"

    def run(self) -> Iterator[Race]:
        for place, way in self.todo:
            key = self.key(place, way)
            if key not in self.ledger.done:
                self.ledger.keep(key, race(place, way, self.scales, self.steps))
            yield self.ledger.done[key]

    def ranking(self, place: Landscape, step: int) -> list[Place]:
        """Each budget at the best of its grid for this step, the lowest loss first."""
        best: dict[str, Place] = {}
        for at, way in self.todo:
            if at.name == place.name:
                found = self.ledger.done[self.key(at, way)].best(step)
                if way.budget not in best or found.loss < best[way.budget].loss:
                    best[way.budget] = found
        return sorted(best.values(), key=lambda found: found.loss)

    def winners(self) -> list[tuple[str, ...]]:
        """landscape, step, the best budget, its parameters, its loss, the next budget and its loss, gradient descent."""
        out: list[tuple[str, ...]] = []
        for place in self.places:
            for step in horizons(self.steps):
                ranking = self.ranking(place, step)
                first, second = [each for each in ranking if each.budget != REFERENCE][:2]
                plain = next(each for each in ranking if each.budget == REFERENCE)
                losses = (f"{10**first.loss:.3g}", second.budget, f"{10**second.loss:.3g}", f"{10**plain.loss:.3g}")
                out.append((place.name, str(step), first.budget, first.shown(), *losses))
        return out

    def table(self) -> list[tuple[str, ...]]:
        """Every budget's loss at the end, over the first, on all landscapes."""
        ends = [{each.budget: each.loss for each in self.ranking(place, self.steps)} for place in self.places]
        names = dict.fromkeys(way.budget for _, way in self.todo)
        return [(name, *(f"{10 ** end[name]:.3g}" if name in end else "" for end in ends)) for name in names]
