"""Dynamic budgets in training: filters on the leaves of real networks."""

import pytest
import torch
from helpers import gaussian

import normgeo as ng
from normgeo.budgets import (
    DynamicDataMetric,
    DynamicDiagonal,
    DynamicFrobenius,
    Frobenius,
    Nesterov,
    OnDiagonal,
    OnePole,
    PerFrequency,
    Spectral,
)
from normgeo.optim import Filter, Operate
from normgeo.rules import Momentum, Plain
from normgeo.testing import check_optimizer

X, Y = gaussian(16, 4), gaussian(16, 3, seed=1)


def model():
    torch.manual_seed(0)
    return ng.nn.Sequential(
        up=ng.nn.Linear(4, 5), act=ng.nn.ReLU(), down=ng.nn.Linear(5, 5), bias=ng.nn.Bias(5), head=ng.nn.Linear(5, 3)
    ).double()


def loss(net):
    return (net(X) - Y).square().mean()


def train(opt, net, steps):
    for _ in range(steps):
        opt.zero_grad()
        loss(net).backward()
        opt.step()


DIRECTIONS = {
    "entries": Filter(DynamicDiagonal(), lags=4),
    "entries, scaled": Filter(DynamicDataMetric(1.5), lags=4, memory=0.9),
    "leaves": Filter(DynamicDiagonal(), each="leaf", lags=6),
    "one pole": Filter(OnePole(DynamicDiagonal()), lags=12),
    "Nesterov": Filter(Nesterov(DynamicDiagonal()), lags=6),
    "passive": Filter(PerFrequency(OnDiagonal(Spectral(1.0, 0.1))), lags=3),
    "matrices": Filter(DynamicFrobenius(), lags=2),
    "one pole of matrices": Filter(OnePole(DynamicFrobenius()), lags=2),
    "raw size": Filter(DynamicDiagonal(), lags=4, size="budget"),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_filters_train_and_keep_the_contract(name):
    def make(net):
        return ng.optimizer(net, direction=DIRECTIONS[name], rule=Plain(), lr=0.1)

    check_optimizer(make, model(), loss, effort="quick")
    net = model()
    start = loss(net)
    train(make(net), net, 25)
    assert loss(net) < (0.97 if name == "raw size" else 0.9) * start


def steps_of(direction, gs, rule):
    """The directions for a stream of gradients."""
    memory, state, out = rule.init(gs[0]), direction.init(gs[0]), []
    for g in gs:
        m = rule.update(g, memory)
        direction.observe(g, state, None)
        out.append(direction(m.clone(), state, g).clone())
    return torch.stack(out), state


@pytest.mark.parametrize("rule", [Plain(), Momentum(0.8)])
def test_the_direction_is_the_best_filter_of_what_the_rule_gives(rule):
    """Q from E[g[n] m[n-k]ᵀ] by hand, then Σ Q[k] m[n-k]; nothing of the rule is ignored."""
    gs = gaussian(9, 2, 3, seed=4)
    memory, ms = rule.init(gs[0]), []
    for g in gs:
        ms.append(rule.update(g, memory).clone())
    got, _ = steps_of(Filter(DynamicDiagonal(B=2.0), lags=3, memory=1.0, size="budget"), gs, rule)
    R = torch.stack([torch.stack([gs[n] * ms[n - k] for n in range(k, 9)]).mean(0) for k in range(3)], 1)
    q = DynamicDiagonal(B=2.0).maximizer(R)
    torch.testing.assert_close(got[-1], sum(q[:, k] * ms[8 - k] for k in range(3)))


def test_one_pole_filters_find_the_momentum_of_the_stream():
    """AR(1) gradients with ρ = .8 want β = .8, and the direction is then that of the exponential average."""
    g, gs = torch.zeros(1, 400, dtype=torch.float64), []
    for noise in gaussian(600, 1, 400, seed=2):
        g = 0.8 * g + 0.6 * noise
        gs.append(g)
    family = OnePole(DynamicDiagonal())
    got, state = steps_of(Filter(family, lags=40, memory=0.998, size="budget"), torch.stack(gs), Plain())
    beta, _ = family.best(state["moment"])
    assert float(beta) == pytest.approx(0.8, abs=0.03)
    rule = Momentum(float(beta))
    memory = rule.init(gs[0])
    for g in gs:
        m = rule.update(g, memory)
    torch.testing.assert_close(got[-1] / got[-1].norm(), m / m.norm(), rtol=1e-3, atol=1e-4)


def test_size_is_one_in_the_norm_of_the_leaf():
    norm, gs = ng.norms.RMSToRMS(ng.linalg.SVD()), gaussian(6, 2, 4, 3)
    got, _ = steps_of(Filter(DynamicDiagonal()).bind(norm), gs, Plain())
    torch.testing.assert_close(norm.norm(got), torch.ones(6, 2, dtype=torch.float64))


def test_what_is_no_longer_seen_stops():
    gs = torch.cat([gaussian(3, 1, 4, 2), torch.zeros(9, 1, 4, 2, dtype=torch.float64)])
    got, _ = steps_of(Filter(OnePole(DynamicDiagonal()), lags=5), gs, Plain())
    assert got[3].any()
    assert not got[7:].any()


def test_compile_gives_leaves_their_filters_without_momentum_in_front(tmp_path):
    net = model()
    plan = ng.compile(
        net, budgets={"up": DynamicDiagonal(), "down": DynamicDataMetric(1.5), "head": Operate(Frobenius())}
    )
    opt = plan.optimizer(net, lr=0.3)
    start = loss(net)
    train(opt, net, 25)
    assert loss(net) < 0.7 * start
    assert opt.state[net.up.weight]["direction.moment"].shape == (8, 20)
    assert "rule.momentum" not in opt.state[net.up.weight]
    assert "rule.momentum" in opt.state[net.head.weight]
    own = plan.groups({"up": dict(rule=Momentum(0.5))}, model=net)
    assert Momentum(0.5) in [group.get("rule") for group in own]
    saved = ng.compile(net, budgets={"down": DynamicDataMetric(1.5), "up": PerFrequency(OnDiagonal(Spectral()))})
    saved.save(tmp_path / "plan.json")
    assert ng.Plan.load(tmp_path / "plan.json") == saved


def test_families_are_saved_with_the_plan():
    plan = ng.compile(model(), budgets={"up": OnePole(DynamicDiagonal(2.0))})
    loaded = ng.Plan.from_json(plan.to_json())
    assert repr(loaded.directions) == repr(plan.directions)


def test_bfloat16_weights_have_float32_filters():
    net = model().bfloat16()
    opt = ng.optimizer(net, direction=Filter(DynamicDiagonal(), lags=3), rule=Plain())
    (net(X.bfloat16()) - Y.bfloat16()).square().mean().backward()
    opt.step()
    assert opt.state[net.up.weight]["direction.moment"].dtype == torch.float32


def test_bad_settings_are_one_sentence():
    for make, message in (
        (lambda: Filter(Frobenius()), "takes a budget on filters"),
        (lambda: Filter(Plain()), "takes a budget on filters"),
        (lambda: Operate(DynamicDiagonal()), r"write normgeo.optim.Filter\(budget\)"),
        (lambda: Operate(2 * DynamicDiagonal()), r"write normgeo.optim.Filter\(budget\)"),
        (lambda: Filter(DynamicDiagonal(), each="row"), 'each must be "entry" or "leaf"'),
        (lambda: Filter(DynamicFrobenius(), each="leaf"), "is about matrices"),
        (lambda: Filter(DynamicDiagonal(), lags=0), "lags must be at least 1"),
        (lambda: Filter(DynamicDiagonal(), memory=1.5), r"beta is the weight on the past and must be in \[0, 1\]"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            make()
