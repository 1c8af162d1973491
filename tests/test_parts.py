"""Rules and step sizes: the law-suite over all that is exported, and torch as the oracle."""

import pytest
import torch
from helpers import called, exported, gaussian, seeds
from hypothesis import given
from hypothesis import strategies as st

from normgeo import rules, steps
from normgeo.rules import HeavyBall, Momentum, Plain, Rule, Stored, TunedMomentum
from normgeo.steps import (
    IDBD,
    WSD,
    AdaGradNorm,
    AdamNorm,
    Armijo,
    Auto,
    Cauchy,
    Constant,
    Cosine,
    Escape,
    Exponential,
    Hypergradient,
    Linear,
    Majorize,
    MetaAdam,
    MetaLion,
    MetaOptimize,
    MetaSGD,
    OneCycle,
    Polyak,
    Prodigy,
    Product,
    Secant,
    Spike,
    Sqrt,
    Stairs,
    Stats,
    StepSize,
    StepState,
    Table,
    Warmup,
    Wolfe,
)
from normgeo.steps.base import Move
from normgeo.testing import check_rule, check_step

RULES = [
    Plain(),
    Stored(Momentum(0.9)),
    Momentum(0.9),
    Momentum(0.9, nesterov=True),
    Momentum(0.0),
    HeavyBall(0.9),
    HeavyBall(0.5, nesterov=True),
    TunedMomentum(every=2, lags=2),
    TunedMomentum(every=1, lags=1, center=True, entries=2),
]
STEPS = [
    Constant(),
    Linear(100),
    Linear(100, warmup=10, final=0.1),
    Cosine(100, warmup=5),
    WSD(100, warmup=5, cooldown=0.3),
    WSD(100, decay="lowered-linear"),
    Exponential(30),
    OneCycle(100, warmup=30),
    Spike(10),
    Sqrt(100, warmup=5),
    Stairs(30),
    Table((0.5, 1.0, 0.25)),
    Warmup(10),
    Product(Warmup(10), Stairs(30)),
    Auto(total=100),
    Majorize(2.0),
    Majorize(0.0, growth=1.0, most=0.5),
    Cauchy(),
    Cauchy(beta=0.0, every=1, most=float("inf")),
    Secant(),
    Armijo(),
    Wolfe(),
    Polyak(),
    AdaGradNorm(),
    AdamNorm(),
    AdamNorm(beta=0.9),
    Escape(),
    Prodigy(),
    Hypergradient(),
    Hypergradient(rate=1e-3, normalized=False),
    IDBD(rate=1e-3),
    *(MetaOptimize(MetaLion(), blocks=blocks) for blocks in ("group", "role", "leaf", "row", "weight")),
    MetaOptimize(MetaAdam(rate=0.01), blocks=lambda leaf: leaf.name[0], gamma=0.99, decay=0.1),
    MetaOptimize(MetaSGD(rate=1e-4), blocks="leaf"),
    Linear(200) * MetaOptimize() * Escape(start=0.1),
]


def test_everything_exported_is_checked():
    assert {type(x) for x in RULES} == set(exported(rules, Rule))
    assert {type(x) for x in STEPS} == set(exported(steps, StepSize))


@pytest.mark.parametrize("rule", RULES, ids=called)
@given(seed=seeds)
def test_rules(rule, seed):
    check_rule(rule, seed=seed)


@pytest.mark.parametrize("step", STEPS, ids=called)
def test_steps(step):
    check_step(step)


@given(st.floats(0.0, 0.99), seeds)
def test_momentum_is_the_geometric_average(beta, seed):
    gs = [gaussian(2, 3, seed=seed + t) for t in range(6)]
    for nesterov in (False, True):
        rule = Momentum(beta, nesterov)
        state = rule.init(gs[0])
        for t, g in enumerate(gs):
            m = rule.update(g, state)
            average = sum((1 - beta) * beta ** (t - s) * gs[s] for s in range(t + 1))
            expected = beta * average + (1 - beta) * g if nesterov else average
            torch.testing.assert_close(m, expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_is_torch_sgd(nesterov):
    w = torch.nn.Parameter(gaussian(4, 3))
    sgd = torch.optim.SGD([w], lr=1.0, momentum=0.9, nesterov=nesterov)
    rule = HeavyBall(0.9, nesterov)
    state = rule.init(w.detach().unsqueeze(0))
    for t in range(5):
        before, w.grad = w.detach().clone(), gaussian(4, 3, seed=t)
        sgd.step()
        torch.testing.assert_close(rule.update(w.grad.unsqueeze(0), state)[0], before - w.detach())


@pytest.mark.parametrize(
    "rule", [Momentum(0.95), Momentum(0.9, nesterov=True), HeavyBall(0.95), Momentum(0.0)], ids=str
)
def test_a_row_seen_once_is_followed_for_its_memory_and_then_dropped(rule):
    W = torch.zeros(1, 2, 3)
    state = rule.init(W, independent=1)
    G = torch.zeros(1, 2, 3)
    G[0, 0] = 1.0
    followed = sum(bool(rule.update(G if t == 0 else torch.zeros_like(G), state)[0, 0].any()) for t in range(200))
    assert followed == round(1 / (1 - rule.beta))
    assert not state["momentum"][0, 0].any()
    again = torch.zeros_like(G)
    again[0, 1] = 2.0
    assert rule.update(again, state)[0].any(-1).tolist() == [False, True]


def test_rows_that_are_seen_often_enough_are_never_dropped():
    rule = Momentum(0.95)
    W = torch.zeros(1, 2, 3)
    kept, free = rule.init(W, independent=1), rule.init(W)
    for t in range(100):
        G = torch.zeros(1, 2, 3)
        G[0, t % 19 == 0] = gaussian(3, seed=t, dtype=torch.float32)
        assert torch.equal(rule.update(G, kept), rule.update(G, free))


@given(st.integers(1, 50), st.integers(1, 200))
def test_schedules_go_up_once_and_come_down_to_their_end(warmup, more):
    total = warmup + more
    t = torch.arange(float(total + 5))
    for schedule in (Linear(total, warmup, final=0.1), Cosine(total, warmup, final=0.1), WSD(total, warmup, final=0.1)):
        value = schedule.at(t)
        assert (value[1:warmup] > value[: warmup - 1]).all()
        assert (value[warmup + 1 :] <= value[warmup:-1] + 1e-6).all()
        assert value[warmup] == 1
        torch.testing.assert_close(value[total:], torch.full((5,), 0.1))


def test_linear_is_torch_linear_lr():
    w = torch.nn.Parameter(torch.zeros(1))
    opt = torch.optim.SGD([w], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.2, total_iters=10)
    for t in range(15):
        assert opt.param_groups[0]["lr"] == pytest.approx(float(Linear(10, final=0.2).at(torch.tensor(float(t)))))
        opt.step()
        scheduler.step()


def test_dual_norm_is_only_for_those_who_ask():
    with pytest.raises(RuntimeError, match=r"needs = {.moves.: 1}"):
        _ = Stats(torch.tensor(0.0)).dual_norm
    one = torch.ones(2, 3)
    stats = Stats(torch.tensor(0.0), moves=[Move(one, one, one, one, torch.full((2, 1), 0.5))] * 2)
    assert stats.dual_norm == 6.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(1.0), r"in \[0, 1\)"),
        (lambda: HeavyBall(-0.1), r"in \[0, 1\)"),
        (lambda: Linear(0), "0 ≤ warmup < total"),
        (lambda: Cosine(10, warmup=10), "0 ≤ warmup < total"),
        (lambda: Linear(10.5), "whole numbers"),
        (lambda: Linear(4, final=-1.0), "finite number ≥ 0"),
        (lambda: Cosine(4, final=float("nan")), "finite number ≥ 0"),
        (lambda: WSD(10, cooldown=0.0), r"share of the run in \(0, 1\]"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_constant_step_has_the_dtype_of_the_count():
    assert Constant().value(Stats(torch.tensor(0.0)), StepState()).dtype == torch.float32
