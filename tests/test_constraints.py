"""What weights must satisfy after the step: the law-suite over all that is exported, each invariant under attack."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import exported, gaussian, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import normgeo as ng
from normgeo import constraints
from normgeo.constraints import (
    Ball,
    Constraint,
    CorrectedDecay,
    Decay,
    DecoupledDecay,
    FrankWolfe,
    Free,
    HardCap,
    L2Penalty,
    Normalize,
    Oblique,
    Rate,
    RowCap,
    ScheduledDecay,
    SoftCap,
    SpectralDecay,
    SpectralHammer,
    Sphere,
    Stiefel,
    steepest_tangent,
)
from normgeo.geometry import Leaf
from normgeo.linalg import SVD
from normgeo.norms import L2, RMS, Conv, Frobenius, L1ToRMS, Linf, Norm, RMSToLinf, RMSToRMS, Spectral
from normgeo.optim import Optimizer
from normgeo.testing import check_constraint

CONSTRAINTS = [
    Free(),
    Decay(0.0),
    Decay(0.1),
    DecoupledDecay(0.1),
    CorrectedDecay(0.1),
    ScheduledDecay(0.1),
    L2Penalty(0.1),
    FrankWolfe(0.5),
    Ball(1.0),
    Ball(0.5, norm=Frobenius()),
    Normalize(0.5),
    HardCap(0.5),
    SoftCap(0.5),
    SpectralHammer(0.5),
    SpectralDecay(0.5),
    RowCap(0.3),
    Oblique(0.3),
    Sphere(),
    Sphere(2.0),
    Sphere(frobenius=True),
    Sphere(0.5, norm=L1ToRMS()),
    Stiefel(),
]


def test_everything_exported_is_checked():
    assert {type(x) for x in CONSTRAINTS} == set(exported(constraints, Constraint))


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
@settings(max_examples=6)
@given(seed=seeds)
def test_laws(constraint, seed):
    check_constraint(constraint, seed=seed)


MAP = RMSToRMS()


@dataclass(frozen=True)
class Promise:
    """What a constraint says of the weights W (n, *shape): excess(W) is how far they are outside, over the radius."""

    constraint: Constraint
    excess: Callable[[torch.Tensor], torch.Tensor]
    norm: Norm = MAP
    shape: tuple[int, ...] = (6, 4)
    anywhere: bool = True
    """whether it holds after one step from weights that start outside"""
    bfloat16: float = 2**-7
    """how much rounding at the start and after each step may add, in 16 bits"""

    def tolerance(self, dtype):
        return 2e-5 if dtype == torch.float32 else self.bfloat16

    def __str__(self):
        return f"{str(self.constraint).partition('(')[0]}-{type(self.norm).__name__}-{'x'.join(map(str, self.shape))}"


def within(bound, norm=MAP):
    return lambda W: norm.norm(W) / bound - 1


def rows(W):
    return W.square().mean(-1).sqrt().flatten(1)


def all_at(size, norm=MAP):
    """Every singular value, in the norm's units."""

    def excess(W):
        found = []
        norm.on_matrices(lambda x: found.append(torch.linalg.svdvals(x).flatten(1)) or x, W)
        return (torch.cat(found, 1) / size - 1).abs().amax(1)

    return excess


# The attack takes η = .1 and .02 with r = 1 and lr₀ = 1, k = 4.
PROMISES = [
    Promise(Ball(0.7), within(0.7)),
    Promise(Ball(0.7), within(0.7, L1ToRMS()), L1ToRMS()),
    Promise(Ball(1.5), within(1.5, Linf()), Linf(), (5,)),
    Promise(Ball(1.5, norm=Frobenius()), within(1.5, Frobenius())),
    Promise(Ball(0.7), within(0.7, Conv(2)), Conv(2), (2, 3, 2, 2)),
    Promise(Sphere(), lambda W: (RMSToRMS().norm(W) - 1).abs(), anywhere=False),
    Promise(Sphere(2.0), lambda W: (RMS().norm(W) / 2 - 1).abs(), RMS(), (6,)),
    Promise(Sphere(3.0, frobenius=True), lambda W: (Frobenius().norm(W) / 3 - 1).abs(), shape=(4, 6)),
    Promise(Decay(0.5), within(2.0), anywhere=False),
    Promise(DecoupledDecay(0.5), within(2.0), anywhere=False),
    Promise(CorrectedDecay(20.0), within(2.5), anywhere=False),
    Promise(ScheduledDecay(0.5), within(1.5 / 0.5), anywhere=False),
    Promise(FrankWolfe(1.5), within(1.5), anywhere=False),
    Promise(Normalize(0.7), within(0.7)),
    Promise(Normalize(0.7), within(0.7, RMSToLinf()), RMSToLinf()),
    Promise(HardCap(0.7), within(0.7 * 1.00002)),
    Promise(HardCap(0.7), within(0.7 * 1.00002), shape=(4, 6)),
    Promise(HardCap(0.7), within(0.7 * 1.00002, Conv(2)), Conv(2), (2, 3, 2, 2)),
    Promise(SoftCap(1.0), within(1.0), anywhere=False, bfloat16=0.02),
    Promise(SoftCap(1.0), within(1.0), shape=(16, 4), anywhere=False, bfloat16=0.02),
    Promise(SoftCap(1.0), within(1.0), shape=(4, 16), anywhere=False, bfloat16=0.02),
    Promise(SoftCap(1.0), within(1.0, L1ToRMS()), L1ToRMS(), anywhere=False, bfloat16=0.02),
    Promise(SpectralHammer(1.0), within(1.3 * 1.001), anywhere=False),
    Promise(SpectralDecay(2.0), within(2.3 * 1.001), anywhere=False),
    Promise(RowCap(0.3), lambda W: rows(W).amax(1) / 0.3 - 1),
    Promise(Oblique(0.3), lambda W: (rows(W) / 0.3 - 1).abs().amax(1)),
    Promise(RowCap(0.3), lambda W: rows(W.flatten(2)).amax(1) / 0.3 - 1, Conv(2), (2, 3, 2, 2)),
    Promise(Oblique(0.3), lambda W: (rows(W.flatten(2)) / 0.3 - 1).abs().amax(1), Conv(2), (2, 3, 2, 2)),
    Promise(Stiefel(0.8), all_at(0.8)),
    Promise(Stiefel(0.8), all_at(0.8), shape=(4, 4)),
    Promise(Stiefel(0.8), all_at(0.8), shape=(4, 6)),
    Promise(Stiefel(0.8), all_at(0.8, L1ToRMS()), L1ToRMS()),
]
DTYPES = [torch.float32, torch.bfloat16]


def attack(promise, dtype, steps):
    check_constraint(
        promise.constraint,
        promise.shape,
        norm=promise.norm,
        excess=promise.excess,
        tolerance=promise.tolerance(dtype),
        dtype=dtype,
        steps=steps,
    )


def test_every_constraint_promises_something():
    promised = {type(promise.constraint) for promise in PROMISES}
    assert promised == {type(x) for x in CONSTRAINTS} - {Free, L2Penalty}  # the latter has a test of its own


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("promise", PROMISES, ids=str)
def test_promises_hold_under_attack(promise, dtype):
    attack(promise, dtype, 35)  # 25 at the large η, 10 at the small one


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("promise", PROMISES, ids=str)
def test_promises_hold_under_a_long_attack(promise, dtype):
    attack(promise, dtype, 1000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("promise", PROMISES, ids=str)
def test_promises_hold_in_the_optimizer_through_checkpoints_nan_and_steps_of_0(promise, dtype):
    norm, shape = promise.norm, promise.shape
    leaf = Leaf("w", "w", shape, "weight", norm)
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter((norm.init(shape, generator) * (5 if promise.anywhere else 1)).to(dtype))
    fixed = torch.randn(shape, generator=generator)

    def optimizer(w):
        return Optimizer([{"params": [w], "leaves": [(leaf,)]}], lr=0.1, constraint=promise.constraint)

    opt = optimizer(w)
    opt.param_groups[0]["base_lr"] = 1.0  # as in the attack
    for t in range(40):
        opt.param_groups[0]["lr"] = (0.1, 0.02, 0.0)[t % 3]
        before = w.detach().clone()
        outward = w.detach() if t % 2 else fixed
        w.grad = torch.full_like(w, torch.nan) if t % 7 == 6 else -outward.to(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            opt.step()
        if t % 7 == 6 or t % 3 == 2:
            assert torch.equal(w, before)
        assert promise.excess(w.detach().float().unsqueeze(0)) <= promise.tolerance(dtype)
        if t == 20:
            w, saved = nn.Parameter(w.detach().clone()), copy.deepcopy(opt.state_dict())
            opt = optimizer(w)
            opt.load_state_dict(saved)


@pytest.mark.parametrize("norm", [RMSToRMS(), RMS(), L1ToRMS(), Spectral()], ids=str)
@given(seed=seeds)
def test_the_tangent_of_a_sphere_is_the_gradient_of_the_loss_on_it(norm, seed):
    """d/dW ⟨C, ρ·W/‖W‖⟩ by autograd, on the sphere itself; it has no part along W."""
    sphere = Sphere(1.0).bind(norm)
    shape = (4, 3)[-norm.ndim :]
    W = gaussian(2, *shape, seed=seed)
    W = sphere.retract(W, W, None, {}).requires_grad_()
    C = gaussian(2, *shape, seed=seed + 1)
    size = norm.norm(W).reshape(-1, *(1,) * norm.ndim)
    (expected,) = torch.autograd.grad((C * W / size).sum(), W)
    G = sphere.tangent(W.detach(), C, {})
    torch.testing.assert_close(G, expected)
    torch.testing.assert_close((G * W).flatten(1).sum(1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


@given(seeds)
def test_a_step_on_the_sphere_is_tangent_to_first_order(seed):
    """ρ(w - ηg)/‖w - ηg‖ = w - ηg⊥ + O(η²)."""
    sphere = Sphere(2.0, frobenius=True)
    w, g = sphere.retract(gaussian(1, 4, 3, seed=seed), None, None, {}), gaussian(1, 4, 3, seed=seed + 1)
    tangent = sphere.tangent(w, g, {})
    torch.testing.assert_close((tangent * w).sum(), torch.tensor(0.0, dtype=torch.float64), rtol=0, atol=1e-12)
    rests = [
        float((sphere.retract(w - eta * g, w, None, {}) - w + eta * tangent).norm()) / eta**2 for eta in (1e-3, 1e-4)
    ]
    assert rests[0] == pytest.approx(rests[1], rel=0.1, abs=1e-3)


@given(seeds)
def test_the_ball_is_the_nearest_point(seed):
    W, W[0] = 2 * gaussian(2, 5, 3, seed=seed), 0.01
    there = Ball(1.3).bind(RMSToRMS()).retract(W, None, None, {})
    assert torch.equal(there[0], W[0])
    inside = RMSToRMS().norm(there) <= 1.3 * (1 + 1e-12)
    assert inside.all()
    for t in range(20):  # the variational inequality: ⟨W - P(W), V - P(W)⟩ ≤ 0 for V in the ball
        V = RMSToRMS().init((2, 5, 3), torch.Generator().manual_seed(t), torch.float64) * 1.3
        assert ((W - there) * (V - there)).sum() <= 1e-9


def test_a_constraint_by_pattern_and_the_rest():
    model = ng.nn.MLP(4, 8, 2)
    plan = ng.compile(model)
    opt = plan.optimizer(model, constraint={"0": Free(), "*": Ball(0.5)})
    assert [parts.constraint for parts in opt.parts] == [Ball(0.5), Free()]
    for _ in range(3):
        opt.zero_grad()
        (model(torch.ones(1, 4)) - 3).square().sum().backward()
        opt.step()
    sizes = plan.sizes(model)
    assert all(size <= 0.5 + 1e-5 for name, size in sizes.items() if not name.startswith("0"))
    assert sizes["0.weight"] > 0.9
    with pytest.raises(ValueError, match="matches no leaf"):
        plan.optimizer(model, constraint={"heat": Free()})
    with pytest.raises(TypeError, match="by pattern go with the model"):
        plan.optimizer(plan.groups(), constraint={"0": Free()})


def test_what_cannot_be_is_said():
    assert Ball(1.0).bind(RMS()).norm == RMS()
    layer = ng.nn.Linear(3, 2, zero=True)
    opt = ng.optimizer(layer, constraint=Sphere())
    layer.weight.grad = torch.ones_like(layer.weight)
    with pytest.raises(ValueError, match=r"would stay 0; give a size, Sphere\(1.0\)"):
        opt.step()
    with pytest.raises(ValueError, match="measures 2 axes"):
        Ball(1.0, norm=Spectral()).bind(RMS())
    with pytest.raises(ValueError, match="does not know its norm"):
        Ball(1.0).retract(torch.ones(1, 2), torch.ones(1, 2), None, {})


def test_the_constraint_owns_the_direction():
    layer = ng.nn.Linear(4, 4).double()
    opt = ng.optimizer(layer, lr=0.1, constraint=Stiefel(), rule=ng.rules.Plain())
    W, G = layer.weight.detach().clone(), gaussian(4, 4, seed=3)
    layer.weight.grad = G.clone()
    opt.step()
    K = (W.mT @ G - G.mT @ W) / 2
    expected = SVD()(W - 0.1 * W @ SVD()(K))
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="a direction of its own"):
        ng.optimizer(layer, constraint=Stiefel(), direction=ng.optim.Dualize(RMSToRMS()))


def frame(m, k, seed):
    return torch.linalg.qr(gaussian(m, k, seed=seed))[0]


@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (4, 7), (6, 1)])
@given(seed=seeds)
def test_steepest_tangents_are_tangent_of_size_1_and_above_all_others(shape, seed):
    m, k = max(shape), min(shape)
    X, G = frame(m, k, seed), gaussian(m, k, seed=seed + 1)
    A = steepest_tangent(X, G) if shape[0] >= shape[1] else steepest_tangent(X.mT, G.mT).mT
    assert (X.mT @ A + A.mT @ X).abs().max() < 1e-12
    assert torch.linalg.matrix_norm(A, 2) <= 1 + 1e-12
    assert torch.equal(steepest_tangent(X, 2.0**-70 * G), steepest_tangent(X, G))
    B = gaussian(200, m, k, seed=seed + 2)
    B = B - X @ (X.mT @ B + B.mT @ X) / 2
    B = B / torch.linalg.matrix_norm(B, 2)[:, None, None]
    assert (B * G).sum((1, 2)).max() <= (A * G).sum() + 1e-12


@pytest.mark.parametrize("shape", [(5, 5), (12, 5), (40, 8)])
def test_the_duality_gap_closes(shape):
    """max ⟨G, A⟩ over unit tangents = min ‖G + XΛ‖ (nuclear) over symmetric Λ; here the right side by descent alone."""
    X, G = frame(*shape, seed=0), gaussian(*shape, seed=1)
    A = steepest_tangent(X, G, rounds=120)
    half = (-(X.mT @ G) / 2).requires_grad_()
    search = torch.optim.LBFGS(
        [half], max_iter=400, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def nuclear():
        search.zero_grad()
        value = torch.linalg.svdvals(G + X @ (half + half.mT)).sum()
        value.backward()
        return value

    search.step(nuclear)
    assert nuclear().item() == pytest.approx(float((G * A).sum()), rel=1e-9)
    if shape[0] > shape[1]:  # an odd square one has a singular value 0
        leaving = torch.linalg.svdvals(X - 0.3 * A)
        torch.testing.assert_close(leaving, torch.full_like(leaving, (1 + 0.3**2) ** 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rounds", [0, 8])
def test_steepest_tangents_are_near_the_best(rounds):
    for m, k in ((8, 4), (64, 16), (60, 50)):
        X = frame(m, k, seed=m)
        for G in (
            gaussian(m, k, seed=1),
            gaussian(m, 2, seed=2) @ gaussian(2, k, seed=3),
            10 * X + gaussian(m, k, seed=4),
        ):
            best = (G * steepest_tangent(X, G, 150)).sum()
            assert (G * steepest_tangent(X, G, rounds)).sum() >= (0.88 if rounds == 0 else 0.95) * best


@given(st.floats(0.0, 0.3), seeds)
def test_the_soft_cap_undoes_the_largest_step_exactly(share, seed):
    """σ = ρ + η·r comes back to ρ, tall and wide alike; no value passes ρ; the order is kept."""
    for shape in ((8, 3), (3, 8), (4, 4)):
        cap = SoftCap(2.0).bind(RMSToRMS())
        W = 2.0 * RMSToRMS().init((1, *shape), torch.Generator().manual_seed(seed), torch.float64)
        D = W / 2 * torch.linspace(1, -1, shape[1], dtype=torch.float64)
        state, rate = (
            cap.init(W),
            Rate(torch.tensor(share / 1.5).double(), torch.tensor(1.0), torch.tensor(3.0).double()),
        )
        worst = cap.retract(W + rate.eta * 3.0 * W / 2, W, rate, state)
        torch.testing.assert_close(worst, W, rtol=1e-7, atol=1e-7)
        mixed = torch.linalg.svdvals(cap.retract(W + rate.eta * 3.0 * D, W, rate, state))
        assert (mixed <= torch.linalg.svdvals(W).amax() * (1 + 1e-7)).all()
        torch.testing.assert_close(state["bound"], torch.tensor([2.0], dtype=torch.float64), rtol=1e-7, atol=0)


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
def test_a_step_size_per_weight_that_is_the_same_for_all_is_one_step_size(constraint):
    """Step sizes may have any shape that broadcasts against the weights."""
    constraint, W = constraint.bind(RMSToRMS()), gaussian(2, 4, 3)
    one, each = torch.tensor(0.3).double(), torch.full((2, 4, 3), 0.3).double()
    new = [constraint.retract(1.1 * W, W, Rate(eta, eta, 0.5), constraint.init(W)) for eta in (one, each)]
    torch.testing.assert_close(*new)


def test_the_soft_cap_brings_weights_back_by_the_stated_factor():
    cap = SoftCap(1.0).bind(Spectral())
    W = 10.0 * frame(5, 3, 0)[None]
    state, still = cap.init(W), Rate(torch.tensor(0.0), torch.tensor(1.0), 1.0)
    sizes = []
    for _ in range(12):
        W = cap.retract(W, W, still, state)
        sizes.append(float(Spectral().norm(W)))
        assert sizes[-1] == pytest.approx(float(state["bound"]))
    assert sizes[0] == pytest.approx(7.6543, abs=1e-3)
    assert sizes[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
@given(seed=seeds)
def test_polar_factors_cap_as_the_svd_does(shape, seed):
    """HardCap in float32 beside the projection in float64."""
    W = RMSToRMS().init((1, *shape), torch.Generator().manual_seed(seed), torch.float64) + 0.3 * gaussian(
        1, *shape, seed=seed
    )
    exact = Ball(0.8).bind(RMSToRMS()).retract(W, W, None, {})
    near = HardCap(0.8).bind(RMSToRMS()).retract(W.float(), None, None, {}).double()
    assert RMSToRMS().norm(near - exact) <= 2e-4 * 0.8


@given(seeds)
def test_the_hammer_and_the_decay_touch_only_the_largest_singular_value(seed):
    u, v = frame(6, 4, seed), frame(4, 4, seed + 1)
    W = ((u * torch.tensor([3.0, 1.5, 1.0, 0.1])) @ v.mT)[None].double()
    struck = SpectralHammer(2.0).bind(Spectral()).retract(W, W, None, {})
    torch.testing.assert_close(torch.linalg.svdvals(struck)[0], torch.tensor([2.0, 1.5, 1.0, 0.1]).double())
    decayed = SpectralDecay(0.5).bind(Spectral()).retract(W, W, Rate(torch.tensor(0.2), None), {})
    torch.testing.assert_close(torch.linalg.svdvals(decayed)[0], torch.tensor([2.7, 1.5, 1.0, 0.1]).double())
    small = 0.5 * W
    torch.testing.assert_close(SpectralHammer(2.0).bind(Spectral()).retract(small, small, None, {}), small)


@given(seeds)
def test_caps_on_rows_and_vectors_are_projections(seed):
    """A vector is a matrix with one singular value, so all caps are the same on it."""
    for norm, shape in ((RMS(), (5,)), (L1ToRMS(), (4, 5))):
        W = gaussian(2, *shape, seed=seed)
        exact = Ball(0.6).bind(norm).retract(W, W, None, {})
        for cap in (HardCap(0.6), SpectralHammer(0.6), RowCap(0.6)):
            torch.testing.assert_close(cap.bind(norm).retract(W, W, None, {}), exact, rtol=1e-4, atol=1e-5)


@given(seeds)
def test_frank_wolfe_is_decay_with_the_radius_of_the_leaf(seed):
    W, D = gaussian(1, 4, 3, seed=seed), gaussian(1, 4, 3, seed=seed + 1)
    rate = Rate(torch.tensor(0.2), torch.tensor(1.0), 0.5)
    stepped = W - 0.2 * 0.5 * D
    torch.testing.assert_close(
        FrankWolfe(2.0).retract(stepped, W, rate, {}), Decay(0.5 / 2.0).retract(stepped, W, rate, {})
    )
    long = Rate(torch.tensor(50.0), torch.tensor(1.0), 0.5)
    torch.testing.assert_close(FrankWolfe(2.0).retract(W - 25 * D, W, long, {}), -2.0 * D)


@given(seeds)
def test_an_l2_penalty_keeps_the_ball_of_bounded_gradients(seed):
    """‖W‖₂ ≤ g/λ + max η·r‖D‖₂ with plain directions in ‖·‖₂."""
    penalty, W, g = L2Penalty(0.5), torch.zeros(1, 4, dtype=torch.float64), 0.6
    for t in range(100):
        eta = 0.1 + 0.2 * (t % 2)
        push = -W if t % 3 else gaussian(1, 4, seed=seed + t)
        G = g * L2().dualize(push)
        W = W - eta * L2().dualize(penalty.tangent(W, G, {}))
        assert W.norm() <= g / 0.5 + 0.3 + 1e-12


def test_corrected_decay_keeps_the_ratio_of_gradient_and_weight():
    """Normalised layers: |Δw|/|w| = √(2ηλ), which for λ_t ∝ η_t stays proportional to η; a constant λ lets |w| drift."""

    def sizes(constraint):
        generator = torch.Generator().manual_seed(0)
        w, seen = torch.randn(1, 400, generator=generator), []
        for t in range(3000):
            s = 1.0 if t < 1500 else 0.25
            g = torch.randn(1, 400, generator=generator) / 20
            g = g - (g * w).sum() / w.square().sum() * w  # scale-invariant losses have ⟨g, w⟩ = 0 and |g| ∝ 1/|w|
            g = g / w.norm()
            rate = Rate(torch.tensor(0.1 * s), torch.tensor(s))
            w = constraint.retract(w - rate.eta * g, w, rate, {})
            seen.append(float(w.norm()))
        return seen[1499], seen[2999]

    early, late = sizes(CorrectedDecay(0.05))
    assert late / early == pytest.approx(1.0, abs=0.1)
    early, late = sizes(Decay(0.05))
    assert late / early < 0.85


def test_scheduled_decay_is_its_formula():
    decay, W = ScheduledDecay(0.3, beta=0.9), gaussian(2, 4, 3)
    state, v, rate = decay.init(W), torch.zeros(2, dtype=torch.float64), Rate(torch.tensor(0.2), torch.tensor(1.0))
    for t in range(1, 6):
        G = gaussian(2, 4, 3, seed=t)
        decay.tangent(W, G, state)
        v = 0.9 * v + 0.1 * G.square().mean((1, 2))
        expected = W * (1 - 0.2 * 0.3 / (v / (1 - 0.9**t)).sqrt())[:, None, None]
        torch.testing.assert_close(decay.retract(W, W, rate, state), expected)


@pytest.mark.parametrize(
    ("constraint", "size"),
    [
        (Decay(0.1), (0.1 / (0.1 * (2 - 0.1 * 0.1))) ** 0.5),
        (DecoupledDecay(0.01), 0.1 / (0.01 * (2 - 0.01)) ** 0.5),
    ],
    ids=str,
)
def test_independent_directions_leave_the_stated_size(constraint, size):
    generator = torch.Generator().manual_seed(0)
    w, rate = torch.zeros(1, 20_000), Rate(torch.tensor(0.1), torch.tensor(1.0))
    for _ in range(1000):
        w = constraint.retract(w - 0.1 * torch.randn(w.shape, generator=generator), w, rate, {})
    assert float(w.square().mean().sqrt()) == pytest.approx(size, rel=0.02)


def test_decay_is_that_of_adamw():
    """torch's AdamW with zero gradients is decay alone: w ← (1 - lr·λ) w."""
    w = torch.nn.Parameter(gaussian(3))
    opt = torch.optim.AdamW([w], lr=0.1, weight_decay=0.2)
    old, w.grad = w.detach().clone(), torch.zeros(3, dtype=torch.float64)
    opt.step()
    rate = Rate(torch.tensor(0.1), torch.tensor(0.5))
    torch.testing.assert_close(Decay(0.2).retract(old, old, rate, {}), w.detach())
    torch.testing.assert_close(DecoupledDecay(0.2).retract(old, old, rate, {}), 0.9 * old)


@given(seeds)
def test_decay_keeps_weights_in_the_ball_of_its_strength(seed):
    """‖W‖ ≤ r/λ stays, whatever unit directions are taken, while η·λ ≤ 1."""
    W, r, strength = torch.zeros(1, 4, dtype=torch.float64), 0.7, 2.0
    for t in range(50):
        eta = torch.tensor(0.5 * (t % 2 + 1) / strength)
        D = gaussian(1, 4, seed=seed + t).sign()
        W = Decay(strength).retract(W - eta * r * D, W, Rate(eta, eta), {})
        assert W.abs().max() <= r / strength * (1 + 1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decay(-1.0), "finite number ≥ 0"),
        (lambda: DecoupledDecay(float("nan")), "finite number ≥ 0"),
        (lambda: L2Penalty(-1.0), "finite number ≥ 0"),
        (lambda: ScheduledDecay(0.1, beta=1.0), r"in \[0, 1\)"),
        (lambda: SoftCap(1.0, overshoot=0.5), "overshoot must be ≥ 1"),
        (lambda: FrankWolfe(-1.0), "finite number > 0"),
        (lambda: Ball(0.0), "finite number > 0"),
        (lambda: Sphere(-1.0), "finite number > 0"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
