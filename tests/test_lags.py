"""Lag curves and the momentum that makes most of them: closed forms, scipy, brute force, and a stream that is known."""

from contextlib import nullcontext

import pytest
import torch
from helpers import gaussian, seeds
from hypothesis import given
from hypothesis import strategies as st

import normgeo as ng
from normgeo.constraints import Decay
from normgeo.rules import AdamLags, HeavyBall, LagCurve, Momentum, Retune, TunedMomentum, best_momentum, saturating_lr
from normgeo.testing import check_optimizer
from normgeo.testing.bowl import NoWaiting


def power(beta, S):
    return float((1 - beta**2) ** 0.5 * sum(beta**k * float(s) for k, s in enumerate(S)))


@given(st.floats(0.0, 0.97))
def test_geometric_correlations_want_their_own_momentum(rho):
    S = rho ** torch.arange(2000, dtype=torch.float64)
    beta, J = best_momentum(S)
    assert float(beta) == pytest.approx(rho, abs=1e-4)
    assert float(J) == pytest.approx((1 - rho**2) ** -0.5, rel=1e-7)


@given(seeds)
def test_the_search_is_that_of_scipy(seed):
    optimize = pytest.importorskip("scipy.optimize")
    S = gaussian(12, seed=seed)
    S = torch.cat([S[:1].abs() + 0.5, 0.9 ** torch.arange(1, 12) * S[1:]])
    beta, J = best_momentum(S)
    tries = [
        optimize.minimize_scalar(
            lambda b: -power(b, S), bounds=(lo, lo + 0.1), method="bounded", options={"xatol": 1e-9}
        )
        for lo in (0.1 * torch.arange(10)).clamp_max(0.899).tolist()
    ]
    best = max(*(-t.fun for t in tries), power(0.0, S))
    assert float(J) >= best - 1e-6 * abs(best)
    assert power(float(beta), S) == pytest.approx(float(J))


def test_white_noise_and_no_power_want_none():
    for S in (torch.tensor([1.0, 0.0, 0.0]), torch.tensor([-1.0, -1.0, -1.0]), torch.zeros(3)):
        assert float(best_momentum(S)[0]) == 0.0
    steady, _ = best_momentum(torch.ones(51, dtype=torch.float64))  # X0-13: as long as the lags allow
    assert float(steady) == pytest.approx(0.9757, abs=1e-3)


@given(st.floats(0.0, 0.99), st.floats(0.1, 10.0), st.integers(1, 100))
def test_the_lr_uses_the_budget(beta, budget, dim):
    eta = saturating_lr(torch.tensor(beta, dtype=torch.float64), budget, dim)
    impulse, out = torch.zeros(3000, 1, 1, dtype=torch.float64), []
    impulse[0] = 1.0
    rule = Momentum(beta)
    state = rule.init(impulse[0])
    for G in impulse:
        out.append(float(rule.update(G, state)))
    used = dim * float((eta * torch.tensor(out, dtype=torch.float64)).square().sum())
    assert used == pytest.approx(budget, rel=1e-9)


def test_a_leaf_s_scale_does_not_matter_to_its_momentum():
    S = 0.7 ** torch.arange(30.0, dtype=torch.float64) * torch.tensor([[1.0], [1e-20], [1e20]], dtype=torch.float64)
    beta, _ = best_momentum(S)
    torch.testing.assert_close(beta, torch.full((3,), 0.7, dtype=torch.float64), atol=1e-4, rtol=0)


# ---- the curve


def brute(gs, k, memory, val=None):
    """Σ memory^(T-t)·⟨g_t, g_{t-k}⟩ / Σ memory^(T-t), leaf by leaf."""
    products = [((gs if val is None else val)[t] * gs[t - k]).sum(-1) for t in range(k, len(gs))]
    weights = [memory ** (len(gs) - 1 - t) for t in range(k, len(gs))]
    return sum(w * p for w, p in zip(weights, products, strict=True)) / sum(weights)


@given(seeds, st.floats(0.5, 0.999), st.integers(3, 12))
def test_the_curve_is_the_weighted_average_of_products(seed, memory, steps):
    gs, val = gaussian(steps, 2, 5, seed=seed), gaussian(steps, 2, 5, seed=seed + 1)
    for against in (None, val):
        curve = LagCurve(lags=4, memory=memory)
        state = curve.init(gs[0])
        for t, g in enumerate(gs):
            curve.update(g, state, None if against is None else against[t])
        S = curve.read(state)
        for k in range(5):
            expected = brute(gs, k, memory, against) if k < steps else torch.zeros(2, dtype=torch.float64)
            torch.testing.assert_close(S[:, k], expected)


def ar1(rho, steps, d, seed=0, mean=0.0):
    random = torch.Generator().manual_seed(seed)
    g = torch.randn(d, generator=random, dtype=torch.float64)
    for _ in range(steps):
        yield g + mean
        g = rho * g + (1 - rho**2) ** 0.5 * torch.randn(d, generator=random, dtype=torch.float64)


@pytest.mark.parametrize(("memory", "error"), [(0.999, 0.02), (0.99, 0.05)])
def test_autoregressive_gradients_of_rho_08_want_08(memory, error):
    curve = LagCurve(lags=40, memory=memory)
    state = curve.init(torch.zeros(1, 100, dtype=torch.float64))
    for g in ar1(0.8, 2000, 100):
        curve.update(g[None], state)
    S = curve.read(state)[0]
    torch.testing.assert_close(S[:6] / S[0], 0.8 ** torch.arange(6.0, dtype=torch.float64), atol=0.06, rtol=0)
    assert float(best_momentum(S)[0]) == pytest.approx(0.8, abs=error)


def test_centring_takes_out_the_mean_and_only_that():
    """A mean of the size of the noise: centred, the momentum of the noise; as it is, as long as the lags allow."""
    betas = {}
    for center in (True, False):
        curve = LagCurve(lags=40, memory=0.999, center=center)
        state = curve.init(torch.zeros(1, 100, dtype=torch.float64))
        for g in ar1(0.8, 3000, 100, mean=1.0):
            curve.update(g[None], state)
        betas[center] = float(best_momentum(curve.read(state)[0])[0])
    assert betas[True] == pytest.approx(0.8, abs=0.03)
    assert betas[False] > 0.93


# ---- Adam


def observed(candidates, gs, **options):
    tuner = AdamLags(candidates, **options)
    state = tuner.init(gs[0])
    for g in gs:
        tuner.update(g, state)
    return tuner.best(state)


def test_adam_s_pair_by_brute_force():
    """All T[k] and J from the definition, with v per β₂ and c of geometric mean 1."""
    gs = torch.stack(list(ar1(0.6, 60, 8)))[:, None] * torch.linspace(0.1, 3, 8, dtype=torch.float64)
    best = (-1.0, None, None)
    for b2 in (0.9, 0.99):
        v, T, weights = torch.zeros(8, dtype=torch.float64), torch.zeros(6, 2, dtype=torch.float64), None
        for t in range(60):
            v = b2 * v + (1 - b2) * gs[t, 0].square()
            c = (v / (1 - b2 ** (t + 1))).sqrt()
            weights = 1 / (c / c.log().mean().exp())
            for k in range(min(t, 5) + 1):
                T[k] = 0.95 * T[k] + 0.05 * torch.stack([(gs[t, 0] * gs[t - k, 0] * weights).sum(), T.new_ones(())])
        S = T[:, 0] / T[:, 1]
        for b1 in torch.linspace(0, 0.999, 4000, dtype=torch.float64):
            J = power(float(b1), S) / float(weights.sum()) ** 0.5
            best = max(best, (J, float(b1), b2))
    beta1, beta2, J = observed((0.9, 0.99), gs, lags=5, memory=0.95)
    assert float(J) == pytest.approx(best[0], rel=1e-6)
    assert float(beta2) == pytest.approx(best[2])
    assert float(beta1) == pytest.approx(best[1], abs=1e-3)


@pytest.mark.parametrize(
    ("beta1", "beta2", "size"), [(0.9, 0.999, 0.2294), (0.9, 0.95, 0.2269), (0.95, 0.99, 0.1590), (0.99, 0.999, 0.0702)]
)
def test_adam_s_steps_on_noise_have_the_size_of_the_table(beta1, beta2, size):
    """For gradients that are noise of any size the RMS of a step is √((1-β₁)/(1+β₁)) times the lr, less O(1-β₂)."""
    w = torch.zeros(1000, requires_grad=True)
    opt = torch.optim.Adam([w], lr=1.0, betas=(beta1, beta2))
    random, steps = torch.Generator().manual_seed(0), int(4 / (1 - beta2))
    for _ in range(steps):
        w.grad = 42**0.5 * torch.randn(1000, generator=random)
        before = w.detach().clone()
        opt.step()
    assert float((w.detach() - before).square().mean().sqrt()) == pytest.approx(size, rel=0.05)
    assert size == pytest.approx(((1 - beta1) / (1 + beta1)) ** 0.5, rel=0.02)


def test_beta2_matters_and_the_scale_of_gradients_does_not_choose_it():
    """X0-14 and X0-15: with a v of its own for every β₂ the powers differ by 10 % and more, and gradients in units a
    million times smaller or larger choose the same pair; with c as it comes J would grow where v is small."""
    noise = gaussian(200, 1, 50) * torch.logspace(-1, 1, 50, dtype=torch.float64)
    pairs = [observed((0.8, 0.999), s * noise) for s in (1e-6, 1.0, 1e6)]
    assert {float(beta2) for _, beta2, _ in pairs} == {0.999}
    powers = [float(J / s**2) for s, (_, _, J) in zip((1e-6, 1.0, 1e6), pairs, strict=True)]
    assert powers == pytest.approx([powers[1]] * 3)
    short, long = (float(observed((b,), noise)[2]) for b in (0.8, 0.999))
    assert long > 1.1 * short


# ---- in training


def test_retuned_momentum_finds_the_correlation_of_each_leaf():
    rule, rho = TunedMomentum(every=50, lags=30, memory=0.999), (0.5, 0.8)
    state = rule.init(torch.zeros(2, 10, 10, dtype=torch.float64))
    streams = [ar1(r, 600, 100, seed=i) for i, r in enumerate(rho)]
    betas = []
    for t, gs in enumerate(zip(*streams, strict=True)):
        with NoWaiting() if t < 60 else nullcontext():
            rule.update(torch.stack([g.reshape(10, 10) for g in gs]), state)
        betas.append(state["beta"].clone())
    assert betas[-1].tolist() == pytest.approx(rho, abs=0.06)
    changed = [t for t in range(1, 600) if not torch.equal(betas[t], betas[t - 1])]
    assert {(t + 1) % 50 for t in changed} == {0}
    assert torch.equal(betas[48], torch.full((2,), 0.9, dtype=torch.float64))


@given(seeds)
def test_until_it_retunes_it_is_momentum(seed):
    rule, plain = TunedMomentum(0.8), Momentum(0.8)
    W = torch.zeros(2, 3, 4, dtype=torch.float64)
    state, other = rule.init(W, 1), plain.init(W, 1)
    for t in range(8):
        G = gaussian(2, 3, 4, seed=seed + t) * (gaussian(2, 3, 1, seed=seed - t) > 0)
        torch.testing.assert_close(rule.update(G, state), plain.update(G, other))


@pytest.mark.parametrize(
    "rule", [TunedMomentum(every=1, lags=1), TunedMomentum(every=2, lags=2, center=True, entries=5)]
)
def test_tuned_momentum_keeps_the_contract(rule):
    torch.manual_seed(0)
    net = (ng.nn.Linear(6, 3) @ ng.nn.ReLU() @ ng.nn.Linear(4, 6)).double()
    x = gaussian(8, 4)
    make = lambda net: ng.optimizer(net, rule=rule, constraint=Decay(0.0))  # noqa: E731
    check_optimizer(make, net, lambda net: (net(x) - 1).square().mean(), steps=6, effort="quick")


def streamed(optimizer, weights, retune, gs, after=lambda t: None):
    for t, g in enumerate(gs):
        for w, part in zip(weights, g.split([w.numel() for w in weights]), strict=True):
            w.grad = part.reshape(w.shape).clone()
        retune.step()
        after(t)
        optimizer.step()


def zeros(*sizes):
    return [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in sizes]


def test_an_sgd_run_follows_the_formulas():
    """After each window momentum and lr are those of Corollary 5 for the curve so far, and in between they stay."""
    weights, gs = zeros(60, 40), list(ar1(0.8, 1500, 100))
    opt = torch.optim.SGD(weights, lr=0.1, momentum=0.9, dampening=0.9)
    retune = Retune(opt, budget=0.25, every=300, lags=40, memory=0.999)
    curve = LagCurve(lags=40, memory=0.999)
    state, seen = curve.init(gs[0][None]), []

    def check(t):
        (group,) = opt.param_groups
        curve.update(gs[t][None], state)
        if (t + 1) % 300 == 0:
            beta = best_momentum(curve.read(state)[0])[0]
            seen.append((float(beta), float(beta), float(saturating_lr(beta, 0.25, 100))))
        expected = seen[-1] if seen else (0.9, 0.9, 0.1)
        assert (group["momentum"], group["dampening"], group["lr"]) == pytest.approx(expected)

    streamed(opt, weights, retune, gs, check)
    assert len(seen) == 5
    beta, _, lr = seen[-1]
    assert beta == pytest.approx(0.8, abs=0.03)
    assert lr**2 * 100 * (1 - beta) ** 2 / (1 - beta**2) == pytest.approx(0.25)  # the budget, all of it


def test_an_adam_run_follows_the_formulas():
    weights, gs = zeros(8), [g * torch.linspace(0.1, 3, 8, dtype=torch.float64) for g in ar1(0.6, 120, 8)]
    opt = torch.optim.Adam(weights, lr=0.1)
    streamed(opt, weights, Retune(opt, budget=0.25, every=60, lags=5, candidates=(0.9, 0.99), memory=0.95), gs)
    beta1, beta2, _ = observed((0.9, 0.99), torch.stack(gs)[:, None], lags=5, memory=0.95)
    v = torch.zeros(8, dtype=torch.float64)
    for g in gs:
        v = float(beta2) * v + (1 - float(beta2)) * g.square()
    spent = (1 / (v / (1 - float(beta2) ** 120)).sqrt()).sum()
    (group,) = opt.param_groups
    assert group["betas"] == pytest.approx((float(beta1), float(beta2)))
    assert group["lr"] == pytest.approx(float(saturating_lr(beta1, 0.25, spent)))


def test_retuning_resumes_sees_validation_and_survives_nan():
    gs = list(ar1(0.7, 80, 30, seed=2))
    runs = []
    for cut in (None, 37):
        weights = zeros(30)
        opt = torch.optim.SGD(weights, lr=0.1, momentum=0.5, dampening=0.5)
        retune = Retune(opt, budget=1.0, every=20, lags=10)
        streamed(opt, weights, retune, gs[:cut])
        if cut is not None:
            fresh = Retune(opt, budget=1.0, every=20, lags=10)
            fresh.load_state_dict(retune.state_dict())
            streamed(opt, weights, fresh, gs[cut:])
        runs.append((weights[0].detach(), opt.param_groups[0]["lr"]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    weights = zeros(30)
    opt = torch.optim.SGD(weights, lr=0.1)
    retune = Retune(opt, budget=1.0, every=20)
    for t, g in enumerate(gs[:20]):
        weights[0].grad = g if t != 3 else g * torch.nan
        retune.step(against=[torch.ones_like(g)])
    assert all(0 <= opt.param_groups[0][name] < 1 for name in ("momentum", "dampening"))
    assert opt.param_groups[0]["lr"] > 0


def test_a_momentum_of_unit_size_in_the_lags_is_a_heavy_ball():
    """√(1-β²)·Σ β^k g_{t-k}, whose power J is: the heavy ball, scaled."""
    S, beta = gaussian(30, seed=3), 0.7
    rule, gs = HeavyBall(beta), gaussian(30, 1, 1, seed=4)
    state = rule.init(gs[0])
    for g in gs:
        m = rule.update(g, state)
    kernel = beta ** torch.arange(29.0, -1.0, -1.0, dtype=torch.float64)
    torch.testing.assert_close(m.flatten(), (kernel @ gs.flatten())[None])
    assert power(beta, S) == pytest.approx(float((1 - beta**2) ** 0.5 * kernel.flip(0) @ S))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LagCurve(lags=0), "lags ≥ 1"),
        (lambda: LagCurve(memory=1.0), r"memory in \[0, 1\)"),
        (lambda: AdamLags(candidates=()), "at least one"),
        (lambda: AdamLags(candidates=(1.0,)), r"in \[0, 1\)"),
        (lambda: AdamLags(lags=0), "lags ≥ 1"),
        (lambda: TunedMomentum(beta=0.999), "beta ≤ most < 1"),
        (lambda: TunedMomentum(every=0), "every ≥ 1"),
        (lambda: TunedMomentum(lags=-1), "lags ≥ 1"),
        (lambda: Retune(torch.optim.SGD(zeros(2)), budget=0.0), "budget must be a finite number > 0"),
        (lambda: Retune(torch.optim.SGD(zeros(2)), budget=1.0, every=0), "every ≥ 1"),
        (lambda: Retune(torch.optim.SGD(zeros(2), momentum=0.5, nesterov=True), budget=1.0), "leave nesterov out"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steady_gradients_have_no_centred_correlation():
    curve = LagCurve(lags=3, center=True)
    state = curve.init(torch.zeros(2, 4, dtype=torch.float64))
    for _ in range(30):
        curve.update(torch.full((2, 4), 5.0, dtype=torch.float64), state)
    torch.testing.assert_close(curve.read(state), torch.zeros(2, 4, dtype=torch.float64))


def test_entries_that_never_have_a_gradient_do_not_count_in_adam_s_lags():
    tuner, gs = AdamLags(candidates=(0.9, 0.99)), gaussian(40, 1, 12) + 0.5
    found = []
    for dead in (0, 7):
        x = torch.cat([gs, gs.new_zeros(40, 1, dead)], 2)
        state = tuner.init(x[0])
        for g in x:
            tuner.update(g, state)
        found.append(tuner.best(state))
    torch.testing.assert_close(*found)


def test_retuning_is_for_optimizers_whose_formula_it_has():
    with pytest.raises(TypeError, match="for torch's SGD, Adam and AdamW, got RMSprop"):
        Retune(torch.optim.RMSprop(zeros(2)), budget=1.0)


def test_in_training_the_lr_and_the_momentum_follow_their_formulas():
    """SGD whose η and β are set anew in every step from the lags of its own gradients: Δw = -η·m with the best β and the η
    that uses up the budget."""
    budget = ng.budgets.OnePole(ng.budgets.DynamicDiagonal(B=2.0))
    direction = ng.optim.Filter(budget, lags=24, each="leaf", memory=0.999, size="budget")
    gs = list(ar1(0.5, 300, 40))
    state = direction.init(gs[0][None])
    for g in gs:
        direction.observe(g[None], state, None)
        D = direction(g[None], state, g[None])[0]
    beta, _ = best_momentum(state["moment"][0, :, 0])
    assert float(beta) == pytest.approx(0.5, abs=0.05)
    m = (1 - beta) * sum(beta**k * gs[-1 - k] for k in range(24))
    torch.testing.assert_close(D, saturating_lr(beta, 2.0, 1) * m, rtol=1e-3, atol=1e-3)
