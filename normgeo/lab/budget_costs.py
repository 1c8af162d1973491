"""What budgets cost: closed forms beside the eigendecomposition they need, completions beside solvers, directions beside
Shampoo. Processor time, work interleaved, so that a busy machine is as busy for all."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from normgeo.budgets import (
    Budget,
    DataMetric,
    Diagonal,
    DiagonalMoment,
    Ellipsoid,
    Frobenius,
    KroneckerMoment,
    NumericalWarning,
    Spectral,
    on_values,
)
from normgeo.budgets.barrier import Constraint
from normgeo.optim import Operate
from normgeo.steps import Stats

__all__ = ["COSTS", "closed_forms", "completions", "directions", "waterfill"]

Row = tuple[str, ...]


def processor_times(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each in each round, after one round that does not count."""
    out: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, act in work.items():
            start = time.process_time()
            act()
            if number:
                out[name].append(time.process_time() - start)
    return out


def _rows(size: str, reference: str, times: Mapping[str, list[float]]) -> list[Row]:
    """what, size, milliseconds, and the median over rounds of the ratio to the reference."""
    base = times[reference]
    ratios = {name: median(t / b for t, b in zip(each, base, strict=True)) for name, each in times.items()}
    return [(name, size, f"{1e3 * median(each):.3g}", f"{ratios[name]:.3g}") for name, each in times.items()]


def closed_forms(dims: Sequence[int] = (200, 1000), rounds: int = 5) -> list[Row]:
    """Maximizers of dense moments (float64) over one `eigh` of the same matrix."""
    out = []
    for d in dims:
        generator = torch.Generator().manual_seed(d)
        x, y = (torch.randn(d, d, generator=generator, dtype=torch.float64) for _ in range(2))
        m = x @ x.mT / d
        ellipsoid = Ellipsoid(y @ y.mT / d + torch.eye(d).to(y))
        work: dict[str, Callable[[], object]] = {"one eigh": partial(torch.linalg.eigh, m)}
        both: dict[str, Budget] = {"Frobenius": Frobenius(), "Spectral": Spectral(d / 4, 1.0), "Ellipsoid": ellipsoid}
        both["Frobenius + Spectral"] = both["Frobenius"] + both["Spectral"]
        for name, budget in both.items():
            work[name] = partial(budget.maximizer, m)
        work["DataMetric"] = partial(_lifted, DataMetric(1.5), m)
        work["Diagonal"] = partial(Diagonal().maximizer, m.diagonal())
        out += _rows(f"{d} × {d}", "one eigh", processor_times(work, rounds if d > 500 else 4 * rounds))
    return out


def _lifted(budget: Budget | DataMetric, m: Tensor) -> Tensor:
    s, u = torch.linalg.eigh(m)
    return (u * _allotted(budget, s)) @ u.mT


def _allotted(budget: Budget | DataMetric, s: Tensor) -> Tensor:
    best = on_values(budget)
    assert best is not None
    return best(s.unsqueeze(0))


# ---- completions


@dataclass(frozen=True)
class Limits(Budget):
    """{Q ≽ 0 : tr Q ≤ trace, Q ≼ cap·I, ‖Q‖²_F ≤ B}, told by its constraints only."""

    trace: float
    cap: float
    B: float

    def constraints(self) -> list[Constraint]:
        return [
            lambda q: 1 - q.trace() / self.trace,
            lambda q: torch.eye(len(q)).to(q) - q / self.cap,
            lambda q: 1 - q.square().sum() / self.B,
        ]


def waterfill(s: Tensor, limits: Limits) -> Tensor:  # (d,) -> (d,)
    """argmax Σ qᵢsᵢ over 0 ≤ q ≤ cap, Σ q ≤ trace, Σ q² ≤ B: q = clip((s - μ)/ν, 0, cap), both multipliers by bisection.

    >>> waterfill(torch.tensor([3.0, 1.0]).double(), Limits(trace=1.5, cap=0.9, B=1.0)).round(decimals=4)
    tensor([0.9000, 0.4359], dtype=torch.float64)
    """
    top = float(s.max())
    if top <= 0:
        return torch.zeros_like(s)

    def at(mu: float) -> Tensor:
        return _bisected(lambda nu: ((s - mu) / nu).clamp(0, limits.cap), 1e-12 * top, 1e6 * top, limits.B)

    def spent(q: Tensor) -> float:
        return float(q.sum())

    if spent(at(0.0)) <= limits.trace:
        return at(0.0)
    low, high = 0.0, top
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(at(middle)) > limits.trace else (low, middle)
    return at(high)


def _bisected(q: Callable[[float], Tensor], low: float, high: float, limit: float) -> Tensor:
    """q(ν) for the least ν at which Σ q² ≤ limit; in log ν."""
    if float(q(low).square().sum()) <= limit:
        return q(low)
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if float(q(middle).square().sum()) > limit else (low, middle)
    return q(high)


def _general(
    goal: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, limits: list[dict]
) -> np.ndarray:
    from scipy.optimize import minimize

    return minimize(
        goal, start, jac=True, method="SLSQP", constraints=limits, options={"maxiter": 1000, "ftol": 1e-12}
    ).x


def completions(dims: Sequence[int] = (4, 8), spectra: Sequence[int] = (8, 32), rounds: int = 3) -> list[Row]:
    """Limits completed from constraints on matrices, and as an intersection on spectra, beside bisection of the spectrum
    and SLSQP (on matrices over Q = LLᵀ): what, size, milliseconds, ratio to the bisection, relative shortfall of power."""
    out: list[Row] = []
    for d in dims:
        m, limits = _moment(d), _limits(d)
        eye = np.eye(d)

        def structured(m: Tensor = m, limits: Limits = limits) -> Tensor:
            s, u = torch.linalg.eigh(m)
            return (u * waterfill(s, limits)) @ u.mT

        def general(m: Tensor = m, limits: Limits = limits, d: int = d, eye: np.ndarray = eye) -> Tensor:
            a = m.numpy()

            def goal(z: np.ndarray) -> tuple[float, np.ndarray]:
                x = z.reshape(d, d)
                return -float((x @ x.T * a).sum()), (-2 * a @ x).ravel()

            def square(z: np.ndarray) -> np.ndarray:
                x = z.reshape(d, d)
                return x @ x.T

            walls = [
                {"type": "ineq", "fun": lambda z: limits.trace - (z * z).sum()},
                {"type": "ineq", "fun": lambda z: limits.cap - np.linalg.eigvalsh(square(z))},
                {"type": "ineq", "fun": lambda z: limits.B - (square(z) ** 2).sum()},
            ]
            start = (eye * 0.5 * min(limits.cap, limits.trace / d) ** 0.5).ravel()
            return torch.from_numpy(square(_general(goal, start, walls)))

        ways: dict[str, Callable[[], Tensor]] = {
            "bisection": structured,
            "completed from constraints": partial(limits.maximizer, m),
            "SLSQP": general,
        }
        out += _compared(f"{d} × {d}", ways, m, rounds)
    for d in spectra:
        s, limits = torch.linalg.eigvalsh(_moment(d)), _limits(d)
        both = Frobenius(limits.B) & Spectral(limits.trace, limits.cap)

        def solved(s: Tensor = s, limits: Limits = limits, d: int = d) -> Tensor:
            a = s.numpy()
            walls = [
                {"type": "ineq", "fun": lambda q: limits.trace - q.sum(), "jac": lambda q: -np.ones(d)},
                {"type": "ineq", "fun": lambda q: limits.cap - q, "jac": lambda q: -np.eye(d)},
                {"type": "ineq", "fun": lambda q: q, "jac": lambda q: np.eye(d)},
                {"type": "ineq", "fun": lambda q: limits.B - (q * q).sum(), "jac": lambda q: -2 * q},
            ]
            return torch.from_numpy(_general(lambda q: (-float(q @ a), -a), np.full(d, 1e-3), walls))

        ways = {
            "bisection": partial(waterfill, s, limits),
            "completed intersection": partial(_allotted, both, s),
            "SLSQP": solved,
        }
        out += _compared(f"spectrum of {d}", ways, s, rounds)
    return out


def _compared(size: str, ways: Mapping[str, Callable[[], Tensor]], m: Tensor, rounds: int) -> list[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        powers = {name: float((way().reshape(m.shape) * m).sum()) for name, way in ways.items()}
        times = processor_times(ways, rounds)
    best = powers["bisection"]
    return [(*row, f"{1 - powers[row[0]] / best:.1g}") for row in _rows(size, "bisection", times)]


def _moment(d: int) -> Tensor:
    x = torch.randn(d, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    return x @ torch.diag(torch.logspace(0, -2, d, dtype=torch.float64)) @ x.mT


def _limits(d: int) -> Limits:
    """All three of them active."""
    return Limits(trace=0.31, cap=0.2, B=0.05)


# ---- directions


class Shampoo:
    """L ← βL + (1-β)GGᵀ, R ← βR + (1-β)GᵀG, D = L^-¼ G R^-¼, with new roots in every step or the old ones."""

    def __init__(self, g: Tensor, beta: float = 0.99, renew: bool = True) -> None:
        self.sides = [torch.eye(n).to(g) * 1e-6 for n in g.shape]
        self.roots = [_root(side) for side in self.sides]
        self.beta, self.renew = beta, renew

    def __call__(self, g: Tensor) -> Tensor:
        for side, new in zip(self.sides, (g @ g.mT, g.mT @ g), strict=True):
            side.lerp_(new, 1 - self.beta)
        if self.renew:
            self.roots = [_root(side) for side in self.sides]
        return self.roots[0] @ g @ self.roots[1]


def _root(side: Tensor) -> Tensor:
    s, u = torch.linalg.eigh(side)
    return (u * s.clamp_min(1e-12).pow(-0.25)) @ u.mT


def directions(size: int = 1024, rounds: int = 3, dtype: torch.dtype = torch.float32) -> list[Row]:
    """One step of a leaf (size, size), beside one step of Shampoo with new roots (two eigh) and with the old ones."""
    g = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    out: list[Row] = []
    for renew in (True, False):
        shampoo = Shampoo(g, renew=renew)
        work: dict[str, Callable[[], object]] = {"Shampoo": partial(shampoo, g)}
        every = 1 if renew else 10**6
        named: dict[str, Operate] = {
            "Frobenius, Kronecker": Operate(Frobenius(), KroneckerMoment(), every, "budget"),
            "Spectral, Kronecker": Operate(Spectral(size**2 / 4), KroneckerMoment(), every, "budget"),
            "DataMetric, Kronecker": Operate(DataMetric(1.5), KroneckerMoment(), every, "budget"),
            "Diagonal": Operate(Diagonal(), DiagonalMoment(), every, "budget"),
            "DataMetric, diagonal": Operate(DataMetric(1.5), DiagonalMoment(), every, "budget"),
            "Spectral, diagonal": Operate(Spectral(size**2 / 4), DiagonalMoment(), every, "budget"),
        }
        for name, operate in named.items():
            work[name] = _stepper(operate, g)
        label = f"{size} × {size}, " + ("new decompositions" if renew else "old decompositions")
        out += _rows(label, "Shampoo", processor_times(work, rounds))
    return out


def _stepper(operate: Operate, g: Tensor) -> Callable[[], Tensor]:
    G, state, stats = g.unsqueeze(0), operate.init(g.unsqueeze(0)), Stats(torch.tensor(0.0))

    def step() -> Tensor:
        operate.observe(G, state, stats)
        return operate(G, state, G)

    return step


_COLUMNS = ("what", "size", "ms", "ratio")
COSTS: dict[str, tuple[str, Row, Callable[[], list[Row]]]] = {
    "closed forms": ("maximizers beside one eigendecomposition, float64", _COLUMNS, closed_forms),
    "completions": ("tr Q ≤ τ, Q ≼ λ, ‖Q‖²_F ≤ B by three ways", (*_COLUMNS, "power short of"), completions),
    "directions": ("a step of one leaf beside a step of Shampoo, float32", _COLUMNS, directions),
}
