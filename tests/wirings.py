"""Every way to wire our optimizer: each rule, step size, constraint, average, operator and filter, and what it asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

import normgeo as ng
from normgeo import budgets, constraints, optim, rules, steps


@dataclass(frozen=True)
class Wiring:
    options: dict = field(default_factory=dict)
    closure: str = "none"
    decays: bool = False

    def make(self, model: nn.Module, **options: object):
        return ng.optimizer(model, **{**self.options, **options})

    def asks(self) -> dict:
        return {"closure": self.closure, "decays": self.decays, "group": group}


def group(model: nn.Module, names: Sequence[str]) -> dict:
    (one,) = ng.compile(model).groups(model=model, only=list(names))
    return one


def step(value, closure="none", **options) -> Wiring:
    return Wiring({"step": value, "lr": 0.1, **options}, closure)


def constraint(value, decays=True) -> Wiring:
    return Wiring({"constraint": value, "lr": 0.1}, decays=decays)


SCHEDULES = {
    "Constant": steps.Constant(),
    "Linear": steps.Linear(100, warmup=3),
    "Cosine": steps.Cosine(100),
    "Sqrt": steps.Sqrt(100),
    "WSD": steps.WSD(100),
    "OneCycle": steps.OneCycle(100),
    "Stairs": steps.Stairs(10),
    "Exponential": steps.Exponential(100),
    "Spike": steps.Spike(10, 0.5),
    "Warmup * Constant": steps.Warmup(5) * steps.Constant(),
}
STEPS = {
    "Auto": step(steps.Auto(100)),
    "Majorize": step(steps.Majorize(1.0)),
    "Cauchy": step(steps.Cauchy(every=2), "graph"),
    "Secant": step(steps.Secant(every=2), "loss"),
    "Armijo": step(steps.Armijo(), "loss"),
    "Wolfe": step(steps.Wolfe(), "loss"),
    "Polyak": step(steps.Polyak(most=0.5), "loss"),
    "AdaGradNorm": step(steps.AdaGradNorm()),
    "AdamNorm": step(steps.AdamNorm()),
    "Escape": step(steps.Escape(start=0.1)),
    "Prodigy": step(steps.Prodigy(start=0.1)),
    "Hypergradient": step(steps.Hypergradient()),
    "IDBD": step(steps.IDBD(), "loss"),
    "MetaOptimize": step(steps.MetaOptimize()),
    "MetaOptimize per role": step(steps.MetaOptimize(blocks="role")),
    "MetaOptimize per row": step(steps.MetaOptimize(blocks="row")),
    "Linear * Escape": step(steps.Linear(100) * steps.Escape(start=0.1)),
}
CONSTRAINTS = {
    "Decay": constraint(constraints.Decay(0.1)),
    "DecoupledDecay": constraint(constraints.DecoupledDecay(0.01)),
    "CorrectedDecay": constraint(constraints.CorrectedDecay(0.1)),
    "ScheduledDecay": constraint(constraints.ScheduledDecay(0.1)),
    "L2Penalty": constraint(constraints.L2Penalty(0.1)),
    "FrankWolfe": constraint(constraints.FrankWolfe(2.0)),
    "Ball": constraint(constraints.Ball(0.5)),
    "Normalize": constraint(constraints.Normalize(0.5)),
    "HardCap": constraint(constraints.HardCap(0.5)),
    "SoftCap": constraint(constraints.SoftCap(0.5)),
    "SpectralHammer": constraint(constraints.SpectralHammer(0.5)),
    "SpectralDecay": constraint(constraints.SpectralDecay(0.1)),
    "RowCap": constraint(constraints.RowCap(0.5)),
    "Oblique": constraint(constraints.Oblique(1.0)),
    "Sphere": constraint(constraints.Sphere()),
    "Sphere(frobenius)": constraint(constraints.Sphere(1.0, frobenius=True)),
    "Stiefel": constraint(constraints.Stiefel(1.0)),
}
AVERAGES = {
    "EMA": Wiring({"iterate": optim.EMA(0.9)}),
    "BEMA": Wiring({"iterate": optim.BEMA()}),
    "ScheduleFree": Wiring({"iterate": optim.ScheduleFree(), "rule": rules.Plain()}),
}
RULES = {
    "Plain": Wiring({"rule": rules.Plain()}),
    "Momentum": Wiring({"rule": rules.Momentum(0.9)}),
    "HeavyBall": Wiring({"rule": rules.HeavyBall(0.9, nesterov=True)}),
    "Stored": Wiring({"rule": rules.Stored(rules.Momentum(0.9))}),
    "TunedMomentum": Wiring({"rule": rules.TunedMomentum()}),
}
DIRECTIONS = {
    "Operate(Frobenius)": Wiring({"direction": optim.Operate(budgets.Frobenius())}),
    "Operate(Spectral)": Wiring({"direction": optim.Operate(budgets.Spectral(trace=8.0))}),
    "Operate(Diagonal)": Wiring({"direction": optim.Operate(budgets.Diagonal())}),
    "Operate(DataMetric, every=2)": Wiring({"direction": optim.Operate(budgets.DataMetric(power=1.5), every=2)}),
    "Filter(one pole)": Wiring(
        {"direction": optim.Filter(budgets.OnePole(budgets.DynamicDiagonal()), lags=4), "rule": rules.Plain()}
    ),
    "Filter(entries)": Wiring({"direction": optim.Filter(budgets.DynamicDiagonal(), lags=4), "rule": rules.Plain()}),
}
PRECISIONS = {
    'precision="fast"': Wiring({"precision": "fast"}),
    'precision="exact"': Wiring({"precision": "exact"}),
    'nonfinite="zero"': Wiring({"nonfinite": "zero"}),
}
WIRINGS = {
    "default": Wiring(),
    **RULES,
    **{name: step(value) for name, value in SCHEDULES.items()},
    **STEPS,
    **CONSTRAINTS,
    **AVERAGES,
    **DIRECTIONS,
    **PRECISIONS,
}
