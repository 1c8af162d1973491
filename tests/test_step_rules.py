"""Step size rules: what each formula claims, against closed forms, autograd and brute force."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import gaussian, seeds
from hypothesis import given, settings
from torch.nn import Parameter

import normgeo as ng
from normgeo.constraints import Ball, Decay
from normgeo.optim import Direction, Optimizer
from normgeo.rules import Momentum, Plain
from normgeo.steps import (
    IDBD,
    AdaGradNorm,
    AdamNorm,
    Armijo,
    Auto,
    Cauchy,
    Escape,
    Hypergradient,
    Linear,
    Majorize,
    MetaOptimize,
    Polyak,
    Prodigy,
    Secant,
    Stats,
    StepSize,
    StepState,
    Wolfe,
)
from normgeo.steps.base import Move
from normgeo.testing import check_optimizer

INF = math.inf
NORMS = {
    "L2": ng.norms.L2(),
    "Linf": ng.norms.Linf(),
    "RMS": ng.norms.RMS(),
    "L1": ng.norms.L1(),
    "spectral": ng.norms.RMSToRMS(polar=ng.linalg.SVD()),
    "rows": ng.norms.L1ToRMS(),
}


class Gradient(Direction):
    """D = M: plain gradient descent."""

    def __call__(self, M, state, W):
        return M


def alone(w, norm, **options):
    """An optimizer of one leaf with radius 1."""
    leaf = ng.Leaf("w", "w", tuple(w.shape), "linear", norm)
    return Optimizer([{"params": [w], "leaves": [(leaf,)]}], **{"rule": Plain(), "lr": 1.0, **options})


def start(norm, seed=0):
    return Parameter(gaussian(*((4, 3) if norm.ndim == 2 else (6,)), seed=seed))


def psd(n, seed):
    A = gaussian(n, n, seed=seed)
    return A @ A.mT / n + 0.05 * torch.eye(n, dtype=A.dtype)


def bowl(H):
    return lambda w: w.flatten() @ H @ w.flatten() / 2


def run(opt, w, f, n=1, backward=True):
    """n steps on f; the losses before each."""

    def closure():
        opt.zero_grad()
        value = f(w)
        if backward:
            value.backward()
        return value

    return [opt.step(closure).detach() for _ in range(n)]


# ---- majorisation


@given(seeds)
@settings(max_examples=5)
def test_majorisation_minimises_its_bound_in_the_modular_norm(seed):
    torch.manual_seed(seed)
    net = (ng.nn.Linear(6, 3) @ ng.nn.ReLU() @ ng.nn.Linear(4, 6)).double()
    plan, lam, before = ng.compile(net), 0.7, {n: w.detach().clone() for n, w in net.named_parameters()}
    opt = plan.optimizer(net, step=Majorize(lam), rule=Plain(), lr=1.0, precision="exact")
    net(gaussian(8, 4, seed=seed)).square().mean().backward()
    g = {n: w.grad for n, w in net.named_parameters()}
    opt.step()
    delta = {n: w.detach() - before[n] for n, w in net.named_parameters()}

    def bound(change):
        return sum((g[n] * c).sum() for n, c in change.items()) + lam / 2 * plan.norm(change) ** 2

    torch.testing.assert_close(bound(delta), -(plan.dual_norm(g) ** 2) / (2 * lam), rtol=1e-6, atol=0)
    for k in range(5):
        other = {n: c + 0.1 * c.abs().max() * gaussian(*c.shape, seed=seed + k) for n, c in delta.items()}
        assert bound(other) >= bound(delta)


@pytest.mark.parametrize("name", ["Linf", "L2", "spectral"])
def test_majorisation_descends_on_a_bowl_by_what_it_promises(name):
    norm = NORMS[name]
    w = start(norm)
    H = psd(w.numel(), 1)
    # sup ⟨Δ, HΔ⟩ over the unit ball, or a bound of it: RMS→RMS norm 1 means ‖Δ‖_F² ≤ rank·out/in
    lam = {
        "Linf": H.abs().sum(),
        "L2": torch.linalg.eigvalsh(H)[-1],
        "spectral": 3 * 4 / 3 * torch.linalg.eigvalsh(H)[-1],
    }
    opt, f = alone(w, norm, step=Majorize(float(lam[name]))), bowl(H)
    for _ in range(30):
        (loss,) = run(opt, w, f)
        assert f(w) <= loss - norm.dual_norm(w.grad) ** 2 / (2 * lam[name]) + 1e-12


def test_curvature_that_grows_with_the_gradient():
    """cosh: f'' = cosh ≤ 1 + |f'|. λ = 1 + |f'| descends from 8; λ = 1, the curvature at 0, goes to -1482."""
    for growth, good in ((1.0, True), (0.0, False)):
        w = Parameter(torch.tensor([8.0], dtype=torch.float64))
        opt = alone(w, ng.norms.L2(), step=Majorize(1.0, growth))
        losses = [run(opt, w, lambda w: torch.cosh(w).sum())[0]]
        assert (abs(w) <= 8) == good
        if good:
            losses += run(opt, w, lambda w: torch.cosh(w).sum(), 20)
            assert all(a >= b for a, b in pairwise(losses))
            assert losses[-1] == pytest.approx(1.0, abs=1e-4)


# ---- curvature


@pytest.mark.parametrize("name", NORMS)
def test_cauchy_is_exact_line_search_on_bowls(name):
    norm = NORMS[name]
    w = start(norm)
    H = psd(w.numel(), 1)
    f, g, d = bowl(H), (H @ w.detach().flatten()), norm.dualize((H @ w.detach().flatten()).reshape(w.shape)).flatten()
    before = w.detach().clone()
    run(alone(w, norm, step=Cauchy(beta=0.0, every=1, most=INF)), w, f, backward=False)
    torch.testing.assert_close(w.detach().flatten(), before.flatten() - (g @ d) / (d @ H @ d) * d)
    here = f(w)
    assert all(f(before - eta * (before - w)) >= here - 1e-12 for eta in torch.linspace(0, 2, 21))


def test_cauchy_and_polyak_are_two_rules():
    """X0-22: gᵀg/gᵀHg minimises the loss along g, (f - f*)/gᵀg the distance to the minimiser that convexity guarantees."""
    H = psd(6, 2)
    sizes = {}
    for name, step, backward in (("Cauchy", Cauchy(0.0, 1, INF), False), ("Polyak", Polyak(), True)):
        w = start(NORMS["L2"], seed=3)
        before, f = w.detach().clone(), bowl(H)
        g = H @ before
        run(alone(w, NORMS["L2"], step=step), w, f, backward=backward)
        sizes[name] = float(((before - w.detach()) @ g) / (g @ g))
    assert sizes["Cauchy"] == pytest.approx(float(g @ g / (g @ H @ g)))
    assert sizes["Polyak"] == pytest.approx(float(before @ H @ before / 2 / (g @ g)))
    assert sizes["Cauchy"] != pytest.approx(sizes["Polyak"], rel=0.05)


@pytest.mark.parametrize("name", NORMS)
def test_the_secant_on_one_batch_is_cauchys_step_on_bowls(name):
    norm, positions = NORMS[name], []
    H = psd(12 if norm.ndim == 2 else 6, 1)
    for step, backward in ((Secant(0.0, 1, start=0.3, change=1e6, most=INF), True), (Cauchy(0.0, 1, INF), False)):
        w = start(norm)
        run(alone(w, norm, step=step), w, bowl(H), 4, backward=backward)
        positions.append(w.detach())
    torch.testing.assert_close(*positions)


def test_the_secant_grows_from_a_start_that_is_far_too_small():
    w = start(NORMS["L2"])
    opt = alone(w, NORMS["L2"], step=Secant(every=1, start=1e-6, most=INF))
    losses = run(opt, w, bowl(psd(6, 1)), 60)
    assert losses[-1] < 0.05 * losses[0]


def noisy(step, backward, n=400, noise=1.0, **options):
    """A bowl whose gradient has noise of its own in every batch; the step sizes that a rule chooses."""
    w, H = Parameter(0.1 * gaussian(20)), psd(20, 1)
    opt, sizes = alone(w, ng.norms.L2(), step=step, rule=Momentum(0.9), **options), []
    for t in range(n):
        before, xi = w.detach().clone(), noise * gaussian(20, seed=100 + t)
        run(opt, w, lambda w, xi=xi: bowl(H)(w) + xi @ w, backward=backward)
        sizes.append(float((w.detach() - before).norm()))
    return torch.tensor(sizes), H, w


def test_curvature_on_one_batch_is_not_moved_by_noise_where_the_naive_secant_is():
    """Noise that is linear in w leaves the curvature of a batch as it is, so Cauchy and Secant agree with the bowl; the
    secant of two batches, ⟨g_t(w_t) - g_{t-1}(w_{t-1}), Δ⟩/‖Δ‖², is wrong by more than its value in most steps."""
    H = psd(20, 1)
    lam = torch.linalg.eigvalsh(H)
    w, last, naive = 0.1 * gaussian(20), None, []
    for t in range(200):
        g = H @ w + gaussian(20, seed=100 + t)
        if last is not None:
            dw, dg = w - last[0], g - last[1]
            naive.append(float(dw @ dg / (dw @ dw)))
        last, w = (w, g), w - 0.02 * g / g.norm()
    wrong = sum(not lam[0] <= k <= lam[-1] for k in naive)
    assert wrong > 180
    for step, backward in ((Cauchy(0.0, 1, INF), False), (Secant(0.0, 1, start=0.1, change=1e9, most=INF), True)):
        opt = alone(Parameter(0.1 * gaussian(20)), ng.norms.L2(), step=step, rule=Momentum(0.9))
        (w,) = opt.param_groups[0]["params"]
        for t in range(50):
            run(opt, w, lambda w, t=t: bowl(H)(w) + gaussian(20, seed=100 + t) @ w, backward=backward)
            assert lam[0] - 1e-9 <= float(opt.state[w]["shared.curvature"]) <= lam[-1] + 1e-9


@pytest.mark.parametrize(
    ("step", "backward"), [(Cauchy(every=3), False), (Secant(every=3), True)], ids=["Cauchy", "Secant"]
)
def test_with_noise_they_stay_stable_and_reach_the_floor_of_the_noise(step, backward):
    sizes, H, w = noisy(Linear(400) * step, backward, noise=0.1)
    first = bowl(H)(0.1 * gaussian(20))
    assert sizes.max() < 0.5
    assert bowl(H)(w) < 0.3 * first


# ---- line searches


def rosenbrock(w):
    return (1 - w[:-1]).square().sum() + 100 * (w[1:] - w[:-1].square()).square().sum()


@pytest.mark.parametrize("name", ["L2", "Linf", "RMS", "L1"])
@pytest.mark.parametrize(
    "step", [Armijo(decrease=0.2), Wolfe(decrease=0.01, flatness=0.5)], ids=lambda s: type(s).__name__
)
def test_line_searches_meet_their_conditions(name, step):
    norm, w = NORMS[name], Parameter(gaussian(4, seed=5))
    opt = alone(w, norm, step=step)
    for _ in range(20):
        before = w.detach().clone()
        (loss,) = run(opt, w, rosenbrock)
        slope = -norm.dual_norm(w.grad)
        eta = norm.norm(before - w.detach())
        assert eta > 0
        assert rosenbrock(w.detach()) <= loss + step.decrease * eta * slope
        if isinstance(step, Wolfe):
            d = norm.dualize(w.grad)
            new = torch.func.grad(rosenbrock)(w.detach())
            assert abs(new @ d) <= step.flatness * abs(slope) * (1 + 1e-9)


def test_armijo_takes_the_first_of_its_trials_that_passes():
    w = Parameter(torch.tensor([1.0], dtype=torch.float64))
    opt = alone(w, ng.norms.L2(), step=Armijo(start=8.0, decrease=0.25))
    run(opt, w, lambda w: w.square().sum() / 2)  # passes iff η ≤ 2·(1 - .25) = 1.5
    assert float(w.detach()) == pytest.approx(0.0)
    assert float(opt.state[w]["shared.eta"]) == 1.0


@pytest.mark.parametrize("step", [Armijo(start=64.0), Wolfe(start=64.0)], ids=["Armijo", "Wolfe"])
def test_where_the_loss_is_nan_a_search_turns_back(step):
    w = Parameter(torch.full((3,), 0.5, dtype=torch.float64))
    barrier = lambda w: -(w.log().sum()) - (1 - w).log().sum() + w[0]  # noqa: E731
    opt = alone(w, ng.norms.L2(), step=step)
    losses = run(opt, w, barrier, 15)
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] == pytest.approx(float(min(losses)))
    root = (3 - math.sqrt(5)) / 2  # -1/w + 1/(1-w) + 1 = 0
    assert w.detach()[0] == pytest.approx(root, abs=1e-3)


@pytest.mark.parametrize("step", [Armijo(), Wolfe()], ids=["Armijo", "Wolfe"])
def test_a_direction_that_climbs_gets_no_step(step):
    class Uphill(Direction):
        def __call__(self, M, state, W):
            return -M

    w = start(NORMS["L2"])
    before = w.detach().clone()
    run(alone(w, NORMS["L2"], step=step, direction=Uphill()), w, bowl(psd(6, 1)))
    assert torch.equal(w.detach(), before)


def test_two_groups_search_one_after_the_other():
    torch.manual_seed(0)
    net = (ng.nn.Linear(6, 3) @ ng.nn.Tanh() @ ng.nn.Linear(4, 6)).double()
    plan, x = ng.compile(net), gaussian(8, 4)
    opt = plan.optimizer(plan.groups({"0": {}, "2": {}}), step=Armijo(), rule=Plain(), lr=1.0)
    losses = []
    for _ in range(15):

        def closure():
            opt.zero_grad()
            value = (net(x) - 1).square().mean()
            value.backward()
            return value

        losses.append(opt.step(closure).detach())
    assert len(opt.param_groups) == 2
    assert all(b < a for a, b in pairwise(losses))


# ---- Polyak, AdaGrad


@given(seeds)
def test_polyaks_step_never_leaves_a_minimiser(seed):
    A = gaussian(4, 6, seed=seed)
    x = gaussian(6, seed=seed + 1)
    w = start(NORMS["L2"], seed=seed + 2)
    f = lambda w: (A @ (w - x)).abs().sum()  # noqa: E731  convex, not smooth, least value 0 at x
    opt, distance = alone(w, NORMS["L2"], step=Polyak()), [(w.detach() - x).norm()]
    for _ in range(20):
        run(opt, w, f)
        distance.append((w.detach() - x).norm())
    assert all(b <= a + 1e-12 for a, b in pairwise(distance))


@pytest.mark.parametrize("name", NORMS)
def test_polyak_goes_where_the_linear_model_reaches_the_best_loss(name):
    norm, c = NORMS[name], gaussian(12, seed=4)
    w = start(norm)
    f = lambda w: (w.flatten() @ c[: w.numel()]) + 7  # noqa: E731
    run(alone(w, norm, step=Polyak(best=-3.0)), w, f)
    assert float(f(w.detach())) == pytest.approx(-3.0)
    run(alone(w, norm, step=Polyak(best=0.0)), w, f)  # already below
    assert float(f(w.detach())) == pytest.approx(-3.0)


@given(seeds)
@settings(max_examples=5)
def test_adagrad_norm_keeps_its_regret(seed):
    """On any stream of linear losses over a ball: regret ≤ 1.5·D·√Σ‖g‖², and √2·D·√Σ‖g‖² with D/√2. D = 2 here."""
    for lr, factor in ((2.0, 1.5), (math.sqrt(2), math.sqrt(2))):
        w = Parameter(torch.zeros(5, dtype=torch.float64))
        opt = alone(w, ng.norms.L2(), step=AdaGradNorm(), lr=lr, constraint=Ball(1.0))
        drift, gs, paid = gaussian(5, seed=seed), [], 0.0
        for t in range(60):
            g = gaussian(5, seed=seed + t) * (1 + 3 * (t % 7 == 0)) + 0.3 * drift
            paid += float(g @ w.detach())
            gs.append(g)
            run(opt, w, lambda w, g=g: g @ w)
            assert w.detach().norm() <= 1 + 1e-9
        G = torch.stack(gs)
        regret = paid + G.sum(0).norm()  # the best fixed point is -Σg/‖Σg‖
        assert regret <= factor * 2.0 * G.square().sum().sqrt()


# ---- escape velocity


@pytest.mark.parametrize(
    "step", [Escape(start=1e-3), Prodigy(start=1e-3, beta=0.0, every=1)], ids=["Escape", "Prodigy"]
)
@pytest.mark.parametrize("name", NORMS)
def test_on_a_linear_loss_the_steps_are_fibonacci_numbers(name, step):
    norm = NORMS[name]
    w = start(norm)
    c, at = gaussian(*w.shape, seed=9), [w.detach().clone()]
    opt = alone(w, norm, step=step)
    for _ in range(11):
        run(opt, w, lambda w: (w * c).sum())
        at.append(w.detach().clone())
    sizes = [float(norm.norm(b - a)) / 1e-3 for a, b in pairwise(at)]
    assert sizes == pytest.approx([1, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55], rel=1e-6)


def test_escape_velocity_in_the_modular_norm_of_a_network():
    torch.manual_seed(0)
    net = (ng.nn.Linear(6, 3) @ ng.nn.Linear(4, 6)).double()
    plan = ng.compile(net)
    opt = plan.optimizer(net, step=Escape(1e-4), rule=Plain(), lr=1.0, precision="exact")
    c = {n: gaussian(*w.shape, seed=i) for i, (n, w) in enumerate(net.named_parameters())}
    first = {n: w.detach().clone() for n, w in net.named_parameters()}
    far = []
    for _ in range(8):
        opt.zero_grad()
        sum((w * c[n]).sum() for n, w in net.named_parameters()).backward()
        opt.step()
        far.append(float(plan.norm({n: w.detach() - first[n] for n, w in net.named_parameters()})) / 1e-4)
    assert far == pytest.approx([1, 2, 3, 5, 8, 13, 21, 34], rel=1e-6)


@pytest.mark.parametrize("step", [Escape(1e-6), Prodigy(1e-6)], ids=["Escape", "Prodigy"])
def test_it_stops_growing_at_a_minimum_and_never_shrinks(step):
    w = Parameter(torch.full((6,), 2.0, dtype=torch.float64))
    opt, etas = alone(w, ng.norms.Linf(), step=step), []
    for _ in range(200):
        run(opt, w, lambda w: (w - 1).abs().sum())
        etas.append(float(opt.state[w]["shared.eta" if isinstance(step, Escape) else "shared.d"]))
    assert all(b >= a for a, b in pairwise(etas))
    assert etas[-1] == etas[100]
    assert 0.1 < etas[-1] <= 1.0  # the distance to the minimum is 1


@pytest.mark.parametrize("coefficient", [1.0, 0.5])
def test_prodigy_is_the_published_one_on_sign_descent(coefficient):
    """As prodigyopt computes it with betas (1e-14, 0), written out: d, r, s with weights d²/d₀ and ‖s‖₁."""
    w = Parameter(gaussian(6))
    opt = alone(w, ng.norms.Linf(), step=Prodigy(1e-4, coefficient=coefficient, growth=3.0, every=1))
    H, beta = psd(6, 1), math.sqrt(0.999)
    x = x0 = w.detach().clone()
    d, r, s = 1e-4, 0.0, torch.zeros(6, dtype=torch.float64)
    for t in range(80):
        noise = 0.1 * gaussian(6, seed=t)
        run(opt, w, lambda w, noise=noise: bowl(H)(w) + noise @ w)
        g = H @ x + noise
        r = beta * r + (d / 1e-4) * d * float(g @ (x0 - x))
        s = beta * s + (d / 1e-4) * d * g
        x = x - d * g.sign()
        d = max(d, min(coefficient * r / float(s.abs().sum()), 3.0 * d))
        torch.testing.assert_close(w.detach(), x)
    assert d > 1e-2


def test_prodigy_measures_every_so_many_steps_and_forgets_nothing_in_between():
    """With every=5 d stands still between measurements, and its r and s are the sums over all steps."""
    w = Parameter(gaussian(6))
    opt = alone(w, ng.norms.Linf(), step=Prodigy(1e-4, every=5))
    x0, c = w.detach().clone(), gaussian(6, seed=1)
    d, r, s, beta = 1e-4, 0.0, torch.zeros(6, dtype=torch.float64), math.sqrt(0.999)
    for t in range(23):
        away = float(c @ (x0 - w.detach()))
        run(opt, w, lambda w: w @ c)
        r, s = beta * r + (d / 1e-4) ** 2 * away, beta * s + (d / 1e-4) ** 2 * c
        d = max(d, r / float(s.abs().sum())) if t % 5 == 0 else d
        assert float(opt.state[w]["shared.d"]) == pytest.approx(d, rel=1e-9)
    assert d > 1e-4


# ---- hypergradients


def test_hypergradient_is_the_published_rule():
    w, H, rate, lr = Parameter(gaussian(6)), psd(6, 1), 0.01, 0.05
    opt = alone(w, ng.norms.L2(), step=Hypergradient(rate / lr, normalized=False), direction=Gradient(), lr=lr)
    x, u, alpha = w.detach().clone(), torch.zeros(6, dtype=torch.float64), lr
    for _ in range(30):
        run(opt, w, bowl(H))
        g = H @ x
        alpha = alpha + rate * float(g @ u)
        x, u = x - alpha * g, g
        torch.testing.assert_close(w.detach(), x)


def test_its_signal_is_the_derivative_of_the_loss_in_the_last_step_size():
    H, x = psd(6, 1), gaussian(6)
    u = H @ x
    eta = torch.tensor(0.3, dtype=torch.float64)
    derivative = torch.func.grad(lambda eta: bowl(H)(x - eta * u))(eta)
    torch.testing.assert_close(derivative, -(H @ (x - eta * u)) @ u)


@pytest.mark.parametrize("name", NORMS)
def test_a_normalized_hypergradient_grows_on_a_slope_and_shrinks_at_a_kink(name):
    norm = NORMS[name]
    w = start(norm)
    c = gaussian(*w.shape, seed=2)
    opt = alone(w, norm, step=Hypergradient(rate=0.1), lr=0.01)
    run(opt, w, lambda w: (w * c).sum(), 11)
    alpha = float(opt.state[w]["shared.alpha"])
    assert alpha == pytest.approx(1.1**10)  # the directions agree fully, the first has no predecessor
    for sign in (-1, 1, -1, 1):
        run(opt, w, lambda w, sign=sign: sign * (w * c).sum())
    assert float(opt.state[w]["shared.alpha"]) == pytest.approx(alpha * 0.9**4)


def lms(seed, n=20):
    a = gaussian(n, seed=seed)
    return a, a[:5].sum() * (1 if (seed // 20) % 2 else -1)


def test_idbd_is_suttons_rule_for_a_linear_unit():
    w, theta, lr = Parameter(torch.zeros(20, dtype=torch.float64)), 0.01, 0.05
    opt = alone(w, ng.norms.L2(), step=IDBD(theta), direction=Gradient(), lr=lr)
    x, h = w.detach().clone(), torch.zeros(20, dtype=torch.float64)
    beta = torch.full((20,), math.log(lr), dtype=torch.float64)
    for t in range(200):
        a, b = lms(t)
        run(opt, w, lambda w, a=a, b=b: (a @ w - b).square() / 2)
        delta = b - a @ x  # Sutton's signs: h grows with α·δ·a
        beta = beta + theta * delta * a * h
        alpha = beta.exp()
        x = x + alpha * delta * a
        h = h * (1 - alpha * a.square()).clamp_min(0) + alpha * delta * a
        torch.testing.assert_close(w.detach(), x)


def test_idbd_finds_the_weights_that_matter():
    """Sutton's tracking task: 5 of 20 inputs matter, and every 20 examples the sign of one of them flips."""
    step, w, one = IDBD(0.01), torch.zeros(1, 20, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    state = StepState(
        {name: torch.tensor(x, dtype=torch.float64) for name, x in step.init_shared().items()}, [step.init(w)]
    )
    random, signs = torch.Generator().manual_seed(0), torch.ones(5, dtype=torch.float64)
    for t in range(4000):
        if t % 20 == 0:
            signs[int(torch.randint(5, (), generator=random))] *= -1
        a = torch.randn(20, generator=random, dtype=torch.float64)
        error = a @ w[0] - signs @ a[:5]
        move = Move(G := (error * a).unsqueeze(0), G, G, w, one)
        (alpha,) = step.value(Stats(torch.tensor(float(t)), error.square() / 2, [move]), state)
        move.update = -0.05 * alpha * G
        w = w + move.update
        step.follow([move], state)
    beta = state.leaves[0]["beta"][0]
    assert beta[:5].min() > beta[5:].max() + 0.5


# ---- Adam's second moment


@given(seeds)
@settings(max_examples=10)
def test_adamnorm_is_the_ratio_of_its_formula(seed):
    """Two leaves of one shape, one of them without a gradient now and then; sums over all steps, in float64."""
    beta, ages = 0.7, [[], []]
    ws = [Parameter(torch.zeros(4, 3, dtype=torch.float64)) for _ in range(2)]
    leaves = [(ng.Leaf(name, name, (4, 3), "linear", ng.norms.Frobenius()),) for name in "ab"]
    momentum = Momentum(0.6, nesterov=True)
    opt = Optimizer([{"params": ws, "leaves": leaves}], rule=momentum, step=AdamNorm(beta), lr=0.3)
    means = [torch.zeros_like(w) for w in ws]
    for t in range(6):
        before = [w.detach().clone() for w in ws]
        for i, w in enumerate(ws):
            w.grad = None if (t, i) == (2, 1) else gaussian(4, 3, seed=seed + 10 * t + i) * 3.0**t
        opt.step()
        for i, (w, old) in enumerate(zip(ws, before, strict=True)):
            if w.grad is None:
                assert torch.equal(w, old)
                continue
            means[i] = 0.6 * means[i] + 0.4 * w.grad
            M = 0.6 * means[i] + 0.4 * w.grad
            ages[i].insert(0, float(w.grad.square().sum()))
            weights = [beta**k for k in range(len(ages[i]))]
            v = sum(a * b for a, b in zip(weights, ages[i], strict=True)) / sum(weights)
            size = min(1.0, float(M.norm()) / math.sqrt(v))
            torch.testing.assert_close(old - w.detach(), 0.3 * leaves[i][0].mass / 2 * size * M / M.norm())


def test_adamnorm_tells_noise_from_agreement():
    """1 in the end where gradients agree; √Σ w_k² where they are noise, which for Nesterov's β is .27 at .9."""
    sizes = {}
    for name, gradient in {
        "agreement": lambda t: torch.ones(10_000),
        "noise": lambda t: gaussian(10_000, seed=t),
    }.items():
        w = Parameter(torch.zeros(10_000))
        opt = alone(w, ng.norms.Linf(), rule=Momentum(0.9, nesterov=True), step=AdamNorm())
        for t in range(80):
            before, w.grad = w.detach().clone(), gradient(t).float()
            opt.step()
        sizes[name] = float((w.detach() - before).abs().max())
    weights = [0.1 * 1.9, *(0.1 * 0.9 ** (k + 1) for k in range(1, 80))]
    assert sizes["agreement"] == pytest.approx(1.0, abs=1e-3)
    assert sizes["noise"] == pytest.approx(math.hypot(*weights), rel=0.03)
    assert math.hypot(*weights) == pytest.approx(0.27, abs=0.005)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_adamnorm_does_not_feel_the_scale_of_the_loss(scale):
    ends = []
    for c in (1.0, scale):
        w = Parameter(torch.zeros(6))
        opt = alone(w, ng.norms.RMS(), rule=Momentum(0.5), step=AdamNorm(0.9))
        for t in range(5):
            w.grad = gaussian(6, seed=t).float() * c
            opt.step()
        ends.append(w.detach())
    assert torch.equal(*ends)


def test_a_gradient_that_grows_suddenly_takes_no_step_longer_than_the_lr():
    w = Parameter(torch.zeros(6, dtype=torch.float64))
    opt = alone(w, ng.norms.Linf(), step=AdamNorm(), lr=0.1)
    for t in range(20):
        before, w.grad = w.detach().clone(), gaussian(6, seed=t) * (1e6 if t == 19 else 1.0)
        opt.step()
    assert float((w.detach() - before).abs().max()) == pytest.approx(0.1)


def test_without_noise_the_last_steps_shrink_with_the_gradient():
    """½wᵀHw, 400 steps: the gap is a thousandth of what steps of given size leave, same schedule, best lr."""
    w0, f, gaps = start(ng.norms.L2()), bowl(psd(6, seed=3)), {}
    for name, step, lrs in (
        ("given", Linear(400), [0.4 / 2**k for k in range(8)]),
        ("AdamNorm", Linear(400) * AdamNorm(), [0.8]),
    ):
        ends = []
        for lr in lrs:
            w = Parameter(w0.detach().clone())
            run(alone(w, ng.norms.L2(), rule=Momentum(0.9, nesterov=True), step=step, lr=lr), w, f, 400)
            ends.append(float(f(w.detach())))
        gaps[name] = min(ends)
    assert gaps["AdamNorm"] < 1e-3 * gaps["given"]


@pytest.mark.parametrize(("total", "peak"), [(8, 4.5), (200, 4.5), (3200, 2.25)])
def test_auto_is_adamnorm_that_goes_down_from_less_in_longer_runs(total, peak):
    ends = []
    for step, lr in ((Auto(total), 0.1), (Linear(total) * AdamNorm(), 0.1 * peak)):
        w = start(ng.norms.Linf())
        opt = alone(w, ng.norms.Linf(), rule=Momentum(0.9), step=step, lr=lr)
        run(opt, w, bowl(psd(6, seed=1)), 8)
        ends.append(w.detach())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize(("dtype", "exponent"), [(torch.float64, 200), (torch.float64, -200), (torch.float32, 37)])
def test_adamnorm_of_gradients_whose_squares_leave_float64(dtype, exponent):
    """The same steps as at any size: finite gradients leave finite weights."""
    ends = []
    for scale in (1.0, 10.0**exponent):
        w = Parameter(torch.zeros(6, dtype=dtype))
        opt = alone(w, ng.norms.Linf(), rule=Momentum(0.9), step=AdamNorm())
        for t in range(3):
            w.grad = scale * gaussian(6, seed=t).to(dtype)
            opt.step()
        ends.append(w.detach())
    torch.testing.assert_close(*ends)


def test_what_a_group_shares_changes_once_a_step_beside_adamnorm():
    """Not once for every stack, of which there are two."""

    class Harmonic(StepSize):
        def init_shared(self):
            return {"t": 0.0}

        def value(self, stats, state):
            state.shared["t"] = state.shared["t"] + 1
            return 1 / state.shared["t"]

    ws = [Parameter(torch.ones(shape, dtype=torch.float64)) for shape in ((3,), (2, 2))]
    norms = ng.norms.Linf(), ng.norms.Frobenius()
    leaves = [(ng.Leaf(str(n), str(n), tuple(w.shape), "linear", n),) for w, n in zip(ws, norms, strict=True)]
    opt = Optimizer([{"params": ws, "leaves": leaves}], rule=Plain(), step=Harmonic() * AdamNorm(), lr=1.0)
    for count in (1, 2, 3):
        before = [w.detach().clone() for w in ws]
        for w in ws:
            w.grad = torch.ones_like(w)
        opt.step()
        for w, old in zip(ws, before, strict=True):
            step = float((old - w.detach()).norm()) / (3**0.5 if w is ws[0] else 1)
            assert step == pytest.approx(0.5 / count)


# ---- what all of them have in common

RULES = {
    "Majorize": (Majorize(1.0), "none"),
    "Cauchy": (Cauchy(every=2), "graph"),
    "Secant": (Secant(every=2), "loss"),
    "Armijo": (Armijo(), "loss"),
    "Wolfe": (Wolfe(), "loss"),
    "Polyak": (Polyak(most=0.5), "loss"),
    "AdaGradNorm": (AdaGradNorm(), "none"),
    "AdamNorm": (AdamNorm(), "none"),
    "Escape": (Escape(), "none"),
    "Prodigy": (Prodigy(), "none"),
    "Hypergradient": (Hypergradient(), "none"),
    "IDBD": (IDBD(), "loss"),
    "MetaOptimize": (MetaOptimize(), "none"),
    "MetaOptimize per role": (MetaOptimize(blocks="role"), "none"),
    "MetaOptimize per row": (MetaOptimize(blocks="row"), "none"),
    "Auto": (Auto(100), "none"),
    "product": (Linear(100) * Escape(), "none"),
}
X, Y = gaussian(16, 4), gaussian(16, 3, seed=1)


def model(dtype=torch.float64):
    torch.manual_seed(0)
    parts = ng.nn.Linear(4, 6), ng.nn.ReLU(), ng.nn.Linear(6, 6), ng.nn.Bias(6), ng.nn.Gain(6), ng.nn.Linear(6, 3)
    return ng.nn.Sequential(*parts).to(dtype)


def loss(net):
    w = next(net.parameters())
    return (net(X.to(w)) - Y.to(w)).square().mean()


def train(opt, net, kind, n=1):
    def closure():
        opt.zero_grad()
        value = loss(net)
        if kind != "graph":
            value.backward()
        return value

    return [float(opt.step(closure).detach()) for _ in range(n)]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("parts", [{"rule": Plain()}, {"constraint": Decay(0.1)}], ids=["plain", "momentum and decay"])
def test_rules_keep_the_contract(name, parts):
    step, kind = RULES[name]
    make = lambda net: ng.optimizer(net, step=step, lr=1.0 if name != "IDBD" else 0.1, **parts)  # noqa: E731
    check_optimizer(make, model(), loss, decays="constraint" in parts, closure=kind, effort="quick")


@pytest.mark.parametrize("name", RULES)
def test_groups_freezing_half_precision_and_a_parameter_left_out(name):
    step, kind = RULES[name]
    net = model(torch.bfloat16 if kind != "graph" else torch.float32)
    plan = ng.compile(net)
    opt = plan.optimizer(plan.groups(only=["0.*", "2.*"]), step=step, lr=0.1, nonfinite="zero")
    train(opt, net, kind, 2)
    for group in plan.groups(only=["3.*", "4.*", "5.*"]):
        opt.add_param_group({**group, "lr": 0.05})
    train(opt, net, kind, 2)
    net[0].weight.requires_grad_(False)
    train(opt, net, kind, 2)
    net[0].weight.requires_grad_(True)
    values = train(opt, net, kind, 2)
    assert all(math.isfinite(value) for value in values)
    assert all(w.isfinite().all() for w in net.parameters())


@pytest.mark.parametrize("name", RULES)
def test_rules_lower_the_loss(name):
    step, kind = RULES[name]
    net = model()
    lr = 0.05 if name.startswith(("Meta", "Hyper", "IDBD", "AdaGrad", "AdamNorm", "Auto")) else 1.0
    values = train(ng.optimizer(net, step=step, rule=Plain(), lr=lr), net, kind, 60)
    assert values[-1] < 0.9 * values[0]


def test_state_of_one_rule_is_not_loaded_into_another():
    saved = ng.optimizer(model(), step=Escape()).state_dict()
    with pytest.raises(ValueError, match=r"made with step=Escape\(start=0\.0001\), this optimizer has step=Prodigy"):
        ng.optimizer(model(), step=Prodigy()).load_state_dict(saved)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Majorize(0.0), "must be > 0, else no step is too long"),
        (lambda: Majorize(-1.0), "finite and ≥ 0"),
        (lambda: Majorize(float("nan")), "finite and ≥ 0"),
        (lambda: Majorize(1.0, most=0.0), "most must be > 0"),
        (lambda: Cauchy(beta=1.0), r"in \[0, 1\)"),
        (lambda: Cauchy(every=0), "every must be a whole number ≥ 1"),
        (lambda: Secant(start=0.0), "start must be > 0"),
        (lambda: Secant(change=1.0), "change must be > 1"),
        (lambda: Armijo(shrink=1.0), r"shrink in \(0, 1\)"),
        (lambda: Armijo(start=INF), "start must be finite"),
        (lambda: Wolfe(decrease=0.9, flatness=0.1), "0 < decrease < flatness < 1"),
        (lambda: Polyak(best=float("nan")), "best must be a finite number"),
        (lambda: Escape(start=0.0), "start must be a finite number > 0"),
        (lambda: Prodigy(growth=0.5), "growth must be > 1"),
        (lambda: Prodigy(every=0), "every must be a whole number ≥ 1"),
        (lambda: Prodigy(beta=2.0), r"in \[0, 1\]"),
        (lambda: Hypergradient(rate=-1.0), "rate must be a finite number > 0"),
        (lambda: Hypergradient(rate=1.0), "must be < 1"),
        (lambda: IDBD(rate=0.0), "rate must be a finite number > 0"),
        (lambda: Auto(0), "Auto: total must be a whole number ≥ 1"),
        (lambda: AdamNorm(beta=1.0), r"AdamNorm: beta .* in \[0, 1\)"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["Armijo", "Polyak", "Cauchy", "Secant", "IDBD"])
def test_rules_that_need_a_closure_say_so(name):
    net = model()
    opt = ng.optimizer(net, step=RULES[name][0])
    loss(net).backward()
    with pytest.raises(ValueError, match=rf"{name} needs the loss; call opt\.step\(closure\)"):
        opt.step()
