"""Budgets on filters: the laws, independent solvers, both views, and the families that momentum belongs to."""

import math

import pytest
import scipy.linalg
import scipy.optimize
import torch
from helpers import exported, gaussian, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from normgeo import budgets
from normgeo.budgets import (
    Diagonal,
    DiagonalMoment,
    Dynamic,
    DynamicDataMetric,
    DynamicDiagonal,
    DynamicEllipsoid,
    DynamicFrobenius,
    Ellipsoid,
    Frobenius,
    FullMoment,
    IsotropicMoment,
    LagMoment,
    Nesterov,
    OnDiagonal,
    OnePole,
    PerFrequency,
    Restricted,
    Setting,
    Spectral,
    registry,
    transfer,
)
from normgeo.budgets.dynamic import views
from normgeo.rules import HeavyBall, Momentum
from normgeo.testing import check_budget

K, D = 4, 3
COSTS = torch.linspace(0.1, 3, D, dtype=torch.float64)


def spd(d, seed=0):
    x = gaussian(d, d, seed=seed)
    return x @ x.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)


def lags(lags=K, d=D, seed=0):
    """Lag moments of streams that begin and end: ≽ 0 at every frequency."""
    x = gaussian(4, lags, d, seed=seed)
    x = x + 0.8 * x.roll(1, 1)
    r = torch.stack([(x[:, k:].mT @ x[:, : lags - k]).sum(0) for k in range(lags)])
    return (r + r.mT) / 2


def diagonal(r):
    return r.diagonal(dim1=-2, dim2=-1)


SINGULAR = torch.diag(torch.tensor([1.0, 0.2, 0.0], dtype=torch.float64))
INSTANCES = {
    "Frobenius": DynamicFrobenius(2.3),
    "Ellipsoid": DynamicEllipsoid(spd(D), 1.3),
    "Ellipsoid, singular": DynamicEllipsoid(SINGULAR),
    "Diagonal": DynamicDiagonal(COSTS, 0.7),
    "spectral": PerFrequency(Spectral(1.0, 0.4)),
    "spectral on diagonals": PerFrequency(OnDiagonal(Spectral(1.0, 0.4))),
    "spectral, by frequency": PerFrequency(tuple(Spectral(1 / (1 + j), 0.4) for j in range(D))),
    "Frobenius at each frequency": PerFrequency(Frobenius()),
    "Diagonal at each frequency": PerFrequency(Diagonal(2.0)),
    "scaled": 2 * DynamicDiagonal(),
    "sum": DynamicDiagonal(COSTS) + 2 * DynamicDiagonal(COSTS),
}


def test_every_exported_dynamic_budget_is_checked():
    assert {type(b) for b in INSTANCES.values() if isinstance(b, Dynamic)} == set(exported(budgets, Dynamic)) - {
        Dynamic
    }


@pytest.mark.parametrize("name", [name for name in INSTANCES if name != "sum"])
@settings(max_examples=3)
@given(seed=seeds)
def test_laws(name, seed):
    check_budget(INSTANCES[name], dim=D, seed=seed)


def test_the_law_suite_sees_a_wrong_filter():
    """Printed min{λ, max(0, μσ)} at every frequency (X0-6), and a filter that is not passive."""

    class Proportional(Spectral):
        def allocate(self, s):
            return (s.clamp_min(0) * self.trace / s.clamp_min(0).sum(-1, keepdim=True).clamp_min(1e-300)).clamp_max(
                self.cap
            )

    with pytest.raises(AssertionError):
        check_budget(PerFrequency(Proportional(1.0, 0.4)), dim=D)
    assert PerFrequency(Frobenius()).gauge(torch.tensor([0.1, 1.0]).double()[:, None, None] * torch.eye(2)) == math.inf


# ---- closed forms against static budgets and independent solvers


def test_one_lag_is_the_static_budget():
    r = lags(1)
    for dynamic, static in (
        (DynamicFrobenius(2.3), Frobenius(2.3)),
        (DynamicEllipsoid(spd(D), 1.3), Ellipsoid(spd(D), 1.3)),
        (PerFrequency(Spectral(1.0, 0.4)), Spectral(1.0, 0.4)),
    ):
        torch.testing.assert_close(dynamic.maximizer(r)[0], static.maximizer(r[0]), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(dynamic.support(r), static.support(r[0]))
    torch.testing.assert_close(
        DynamicDiagonal(COSTS).maximizer(diagonal(r))[0], Diagonal(COSTS).maximizer(diagonal(r)[0])
    )


def test_ellipsoids_solve_a_lyapunov_equation_at_every_lag():
    w, r = spd(D, 3), lags(seed=1)
    budget = DynamicEllipsoid(w, 1.3)
    q = torch.stack([torch.tensor(scipy.linalg.solve_continuous_lyapunov(w.numpy(), each.numpy())) for each in r])
    q = q * (1.3 / torch.einsum("kij,jl,kli->", q, w, q)).sqrt()
    torch.testing.assert_close(budget.maximizer(r), q)
    # Cor. 9(iii) as printed is the same gain in all directions and no memory: less, unless R has none.
    flat = torch.zeros_like(r)
    flat[0] = (1.3 / w.trace()).sqrt() * torch.eye(D, dtype=w.dtype)
    assert budget.gauge(flat) == pytest.approx(1)
    assert (flat * r).sum() < 0.9 * budget.support(r)
    white = torch.zeros_like(r)
    white[0] = w
    torch.testing.assert_close(budget.maximizer(white), flat, rtol=1e-9, atol=1e-12)


def test_the_diagonal_power_is_that_of_the_dual_metric():
    r = diagonal(lags(seed=2))
    budget = DynamicDiagonal(COSTS, 0.7)
    attained = (0.7 * (r.square() / COSTS).sum()).sqrt()
    torch.testing.assert_close(budget.support(r), attained)
    assert abs((0.7 * (r.square() * COSTS).sum()).sqrt() - attained) > 0.1 * attained  # X0-24


@given(seeds)
@settings(max_examples=10)
def test_the_best_causal_filter_is_that_of_a_linear_program(seed):
    """All taps at once, causal, under the constraints at the frequencies: nothing about spectra or folding."""
    trace, cap, r = 1.0, 0.6, diagonal(lags(seed=seed))
    r = r - 0.5 * r.roll(1, 1)  # not a moment any more: some frequencies are negative
    omega = 2 * math.pi * torch.arange(K, dtype=torch.float64) / (2 * K - 1)
    cosines = torch.cos(omega[:, None] * torch.arange(K))  # Re e^{-iωk}
    each = torch.kron(cosines, torch.eye(D))  # rows (ω, coordinate), columns (lag, coordinate)
    rows = torch.cat([each, -each, torch.kron(cosines, torch.ones(1, D))]).double()
    limits = [cap] * (K * D) + [0.0] * (K * D) + [trace] * K
    best = scipy.optimize.linprog(-r.flatten().numpy(), rows.numpy(), limits, bounds=(None, None))
    budget = PerFrequency(OnDiagonal(Spectral(trace, cap)))
    assert float(budget.support(r)) == pytest.approx(-best.fun, rel=1e-8, abs=1e-10)
    assert float((budget.maximizer(r) * r).sum()) == pytest.approx(-best.fun, rel=1e-8, abs=1e-10)


def test_matrices_fill_each_frequency_in_its_own_basis():
    r, budget = lags(seed=5), PerFrequency(Spectral(1.0, 0.6))
    values = torch.linalg.eigvalsh(views.density(r, -3))
    best = 0.6 * values[:, -1] + 0.4 * values[:, -2]
    torch.testing.assert_close(budget.support(r), (best * views.weights(K, best)).sum())
    h = views.response(budget.maximizer(r), -3).real
    torch.testing.assert_close(h.diagonal(dim1=1, dim2=2).sum(1), torch.ones(K).double())
    printed = (values / values.sum(1, keepdim=True)).clamp_max(0.6)  # X0-6
    assert ((printed * values).sum(1) * views.weights(K, best)).sum() < budget.support(r)


@given(seeds)
@settings(max_examples=10)
def test_passive_filters_never_climb(seed):
    """⟨Q, R⟩ ≥ 0 for every R that a stationary stream may have; and more evidence is more power."""
    budget, r, more = PerFrequency(Spectral(1.0, 0.6)), lags(seed=seed), lags(seed=seed + 1)
    q = budget.maximizer(r)
    assert (q * more).sum() >= -1e-12
    assert budget.support(r + more) >= budget.support(r) - 1e-12


def test_frequencies_may_have_budgets_of_their_own():
    r, lone = lags(seed=6), Spectral(1.0, 0.6)
    same, half = PerFrequency((lone,) * K), PerFrequency((lone, *(0.5 * lone for _ in range(K - 1))))
    torch.testing.assert_close(same.maximizer(r), PerFrequency(lone).maximizer(r))
    assert half.gauge(half.maximizer(r)) == pytest.approx(1)
    with pytest.raises(ValueError, match="3 budgets for 4 lags"):
        PerFrequency((lone,) * 3).maximizer(r)


def test_data_metrics_are_the_diagonal_budgets_of_their_moment():
    r = diagonal(lags(seed=7))
    for power in (1.0, 1.5, 2.0):
        family = DynamicDataMetric(power, 0.7)
        torch.testing.assert_close(family.maximizer(r), family.at(r).maximizer(r))
        wanted = r / r[0] ** power
        torch.testing.assert_close(family.maximizer(r) / family.maximizer(r).norm(), wanted / wanted.norm())
    assert DynamicDataMetric().maximizer(0 * r).eq(0).all()
    assert DynamicDataMetric(2.0).maximizer(1e25 * r.float()).isfinite().all()


# ---- the two views


@given(seeds, st.integers(1, 7))
def test_both_views_have_the_same_inner_products(seed, n):
    q, r = gaussian(n, D, D, seed=seed), gaussian(n, D, D, seed=seed + 1)
    torch.testing.assert_close(views.impulse(views.response(q, -3), -3), q)
    a, b = views.response(q, -3), views.response(r, -3)
    w = views.weights(n, q)[:, None, None]
    torch.testing.assert_close((w * (a.conj() * b).real).sum(), (q * r).sum())
    torch.testing.assert_close((w * a.real * views.density(r, -3)).sum(), (q * r).sum())
    h = gaussian(n, D, seed=seed)
    torch.testing.assert_close(views.response(views.from_real_part(h, -2), -2).real, h)


RULES = {
    "heavy ball": (transfer.heavy_ball(0.8), HeavyBall(0.8)),
    "Nesterov": (transfer.nesterov(0.8), HeavyBall(0.8, nesterov=True)),
    "average": (transfer.ema(0.8), Momentum(0.8)),
    "Nesterov's average": (transfer.quasi_hyperbolic(0.8, 0.8), Momentum(0.8, nesterov=True)),
}


@pytest.mark.parametrize("name", RULES)
def test_transfer_functions_are_those_of_the_rules(name):
    form, rule = RULES[name]
    impulse = torch.zeros(30, 1, 1, dtype=torch.float64)
    impulse[0] = 1
    state = rule.init(impulse[0])
    answer = torch.stack([rule.update(g, state).clone() for g in impulse]).flatten()
    torch.testing.assert_close(form.impulse(30), answer)


def test_the_other_forms_are_their_updates():
    g = gaussian(40)
    m = slow = torch.zeros((), dtype=torch.float64)
    lion, two = [], []
    for x in g:
        lion.append(0.9 * m + 0.1 * x)
        m = 0.99 * m + 0.01 * x
        slow = 0.999 * slow + 0.001 * x
        two.append(m + 5 * slow)
    for form, wanted in ((transfer.lion(0.9, 0.99), lion), (transfer.two_averages(0.99, 0.999, 5.0), two)):
        h = form.impulse(40)
        got = torch.stack([(h[: n + 1] * g[: n + 1].flip(0)).sum() for n in range(40)])
        torch.testing.assert_close(got, torch.stack(wanted))
    lead = transfer.with_zero(0.8, -0.8 / 1.8).impulse(20)  # X0-21: γ < 0
    nesterov = transfer.nesterov(0.8).impulse(20)
    torch.testing.assert_close(lead / lead[0], nesterov / nesterov[0])


def test_responses_are_the_sums_of_their_impulses():
    omega = torch.linspace(0, math.pi, 7, dtype=torch.float64)
    for form in (transfer.nesterov(0.5), transfer.lion(0.9, 0.5), transfer.two_averages(0.3, 0.6, 2.0)):
        k = torch.arange(80)
        summed = (form.impulse(80) * torch.exp(-1j * omega[:, None] * k)).sum(1)
        torch.testing.assert_close(form.response(omega), summed)


def test_the_registry_has_the_same_impulses():
    at, found = Setting.example(), {recipe.name: recipe for recipe in registry()}
    for name, form in (
        ("Momentum (heavy ball)", transfer.ema(at.beta1)),
        ("Nesterov", transfer.nesterov(at.beta1)),
    ):
        torch.testing.assert_close(found[name].ray(at)[:, 0], form.impulse(len(at.gradients)))


# ---- families


def curve(rho, lags=60):
    return (rho ** torch.arange(lags, dtype=torch.float64)).unsqueeze(1)


@given(st.floats(0.0, 0.95))
def test_geometric_correlations_want_their_own_pole(rho):
    r = curve(rho, 400)
    beta, power = OnePole(DynamicDiagonal(B=4.0)).best(r)
    assert float(beta) == pytest.approx(rho, abs=1e-4)
    # The ray is that of R itself: the family costs nothing.
    assert float(power) == pytest.approx(float(DynamicDiagonal(B=4.0).support(r)), rel=1e-6)


@pytest.mark.parametrize("family", [OnePole, Nesterov])
@settings(max_examples=8)
@given(seed=seeds)
def test_the_best_member_is_that_of_scipy(family, seed):
    r = diagonal(lags(8, seed=seed))
    member = family(DynamicDiagonal(COSTS, 0.7))

    def minus(beta):
        a = member.taps(torch.tensor(beta, dtype=torch.float64), 8)
        q = a.unsqueeze(1) * torch.ones(D)
        return -float((q * r).sum() / member.budget.gauge(q))

    starts = [(0.0625 * k, min(0.0625 * (k + 1), 0.999)) for k in range(16)]
    tries = [scipy.optimize.minimize_scalar(minus, bounds=b, method="bounded").fun for b in starts]
    best = max(0.0, *(-t for t in tries), -minus(0.0), -minus(0.999))
    assert float(member.support(r)) == pytest.approx(best, rel=1e-5, abs=1e-9)
    q = member.maximizer(r)
    assert float((q * r).sum()) == pytest.approx(float(member.support(r)), rel=1e-9, abs=1e-12)
    if best > 0:
        assert float(member.budget.gauge(q)) == pytest.approx(1)


def test_projecting_is_only_half_of_it():
    """Lemma 4: the ray is that of the projection, its length is not, and the printed normal-cone condition fails (X0-7)."""
    r, budget = torch.tensor([[2.0], [-0.3], [1.0], [0.4]], dtype=torch.float64), DynamicDiagonal(B=2.3)
    member = OnePole(budget)
    best, q = budget.maximizer(r), member.maximizer(r)
    betas = torch.linspace(0, 0.999, 20_000, dtype=torch.float64)
    rays = member.taps(betas, K)
    rays = rays / rays.norm(dim=1, keepdim=True)
    lengths = rays @ best.flatten()
    projected = lengths.max() * rays[lengths.argmax()]
    torch.testing.assert_close(projected / projected.norm(), q.flatten() / q.norm(), rtol=1e-3, atol=1e-4)
    assert budget.gauge(projected.unsqueeze(1)) < 0.95 < 1 == pytest.approx(float(budget.gauge(q)))
    assert ((best - q) * (0 - q)).sum() > 0  # printed ≤ 0 for all members, 0 among them


def test_the_projection_is_in_the_metric_of_the_budget():
    """Adam's β₁: rays βᵏ·diag(1/c) in the metric c, where J(β) = √((1-β²)/Σ 1/c)·Σ βᵏ T[k], T = Σ r/c (Cor. 6)."""
    r = diagonal(lags(40, seed=8))
    member = OnePole(DynamicDiagonal(COSTS), along=1 / COSTS)
    beta, power = member.best(r)
    T = (r / COSTS).sum(1)
    k, betas = torch.arange(40), torch.linspace(0, 0.9, 50_000, dtype=torch.float64)[:, None]
    J = ((1 - betas[:, 0] ** 2) / (1 / COSTS).sum()).sqrt() * (betas**k @ T)
    assert float(power) == pytest.approx(float(J.max()), rel=1e-4)
    assert float(beta) == pytest.approx(float(betas[J.argmax()]), abs=1e-3)


def test_no_power_is_no_filter_and_white_noise_no_memory():
    member = OnePole(DynamicFrobenius())
    white = torch.zeros(5, 2, 2, dtype=torch.float64)
    white[0] = torch.eye(2)
    assert float(member.best(white)[0]) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(member.maximizer(white), white / 2**0.5)
    assert member.maximizer(-white).eq(0).all()
    assert member.support(-white) == 0
    batch = torch.stack([white, 3 * lags(5, 2, seed=9), -white])
    for one, out in zip(batch, member.maximizer(batch), strict=True):
        torch.testing.assert_close(member.maximizer(one), out)
    with pytest.raises(TypeError, match="OnePole takes a DynamicFrobenius"):
        OnePole(PerFrequency(Spectral()))
    assert issubclass(OnePole, Restricted)


# ---- lag moments


@given(seeds, st.sampled_from([0.0, 0.7, 0.999, 1.0]), st.integers(1, 9), st.booleans())
def test_lag_moments_are_averages_with_a_correction_for_each_lag(seed, beta, steps, validation):
    gs, val = gaussian(steps, 2, 3, seed=seed), gaussian(steps, 2, 3, seed=seed + 1)
    fresh = val if validation else gs
    moment = LagMoment(4, FullMoment(beta))
    state = moment.init(gs[0])
    for g, v in zip(gs, val, strict=True):
        moment.observe(g, state, v if validation else None)
    for k in range(4):
        wanted = torch.zeros(2, 3, 3, dtype=torch.float64)
        if steps > k:
            weights = torch.tensor([beta ** (steps - 1 - n) for n in range(k, steps)], dtype=torch.float64)
            each = torch.einsum("tni,tnj->tnij", fresh[k:], gs[: steps - k])
            wanted = torch.tensordot(weights / weights.sum(), (each + each.mT) / 2, dims=1)
        torch.testing.assert_close(state["moment"][:, k], wanted, rtol=1e-7, atol=1e-9)


def ar1(rho, steps, d, seed=0):
    noise, g = gaussian(steps, d, seed=seed), torch.zeros(d, dtype=torch.float64)
    out = []
    for x in noise:
        g = rho * g + math.sqrt(1 - rho**2) * x
        out.append(g)
    return torch.stack(out)


def test_the_lags_of_an_ar1_stream_and_its_momentum():
    gs, moment = ar1(0.8, 800, 400), LagMoment(30, IsotropicMoment(1.0))
    state = moment.init(gs[:1])
    for g in gs:
        moment.observe(g.unsqueeze(0), state)
    S = state["moment"][0]
    torch.testing.assert_close(S / S[0], curve(0.8, 30), rtol=0, atol=0.02)
    beta, _ = OnePole(DynamicDiagonal()).best(S)
    assert float(beta) == pytest.approx(0.8, abs=0.02)
    # The power that a filter has on average is ⟨Q, R⟩.
    q = DynamicDiagonal().maximizer(S).flatten()
    steps = sum(a * gs[30 - k : len(gs) - k] for k, a in enumerate(q))
    assert float((gs[30:] * steps).mean()) == pytest.approx(float((q * S.flatten()).sum()), rel=0.02)


def test_isotropic_and_diagonal_moments_are_parts_of_the_full_one():
    G, H = gaussian(5, 2, 3), gaussian(5, 2, 3, seed=1)
    dense = FullMoment().estimate(G, H)["moment"]
    torch.testing.assert_close(IsotropicMoment().estimate(G, H)["moment"][0, 0], dense[0].trace() / 6)
    torch.testing.assert_close(DiagonalMoment().estimate(G, H)["moment"], dense.diagonal(dim1=1, dim2=2))
    state = IsotropicMoment().estimate(G)
    torch.testing.assert_close(
        IsotropicMoment().matrix(state, (2, 3))[0], state["moment"][0] * torch.eye(6, dtype=torch.float64)
    )


def test_bad_input_is_one_sentence():
    for make, error, message in (
        (lambda: DynamicFrobenius(-1.0), ValueError, "B must be a finite number > 0, got -1.0"),
        (
            lambda: DynamicDiagonal(torch.tensor([1.0, 0.0])),
            ValueError,
            "every cost must be a finite number > 0, got 0",
        ),
        (lambda: DynamicEllipsoid(-torch.eye(2)), ValueError, "metric must be ≽ 0"),
        (lambda: DynamicFrobenius().maximizer(torch.ones(3, 2)), ValueError, r"about a filter \(..., lags, d, d\)"),
        (lambda: DynamicDiagonal().maximizer(torch.ones(3)), ValueError, r"about a filter \(..., lags, d\)"),
        (lambda: DynamicDiagonal().maximizer(torch.full((2, 1), torch.nan)), ValueError, "2 entries of NaN or Inf"),
        (lambda: PerFrequency(DynamicFrobenius()), TypeError, "budgets on matrices or diagonals"),
        (lambda: PerFrequency((Spectral(), Diagonal())), TypeError, "budgets of one kind"),
        (lambda: LagMoment(0), ValueError, "lags must be at least 1"),
        (lambda: DynamicDataMetric(0.0), ValueError, "power must be a finite number > 0"),
        (lambda: transfer.Transfer((1.0,), (2.0,)), ValueError, "beginning with 1"),
    ):
        with pytest.raises(error, match=message):
            make()
    odd = DynamicFrobenius().gauge(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]))
    assert odd == math.inf, "an operator that is not symmetric is in no multiple of the set"
