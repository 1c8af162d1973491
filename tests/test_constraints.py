"""What weights must satisfy after the step: the law-suite over all that is exported, each invariant under attack."""

import copy
import warnings

import pytest
import torch
from helpers import exported, gaussian, seeds
from hypothesis import given

import normgeo as ng
from normgeo import constraints
from normgeo.constraints import Ball, Constraint, Decay, DecoupledDecay, Free, Rate, Sphere
from normgeo.norms import RMS, Frobenius, L1ToRMS, Linf, RMSToRMS, Spectral
from normgeo.testing import check_constraint

CONSTRAINTS = [
    Free(),
    Decay(0.0),
    Decay(0.1),
    DecoupledDecay(0.1),
    Ball(1.0),
    Ball(0.5, norm=Frobenius()),
    Sphere(),
    Sphere(2.0),
    Sphere(frobenius=True),
    Sphere(0.5, norm=L1ToRMS()),
]


def test_everything_exported_is_checked():
    assert {type(x) for x in CONSTRAINTS} == set(exported(constraints, Constraint))


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
@given(seed=seeds)
def test_laws(constraint, seed):
    check_constraint(constraint, seed=seed)


# How far outside its invariant a weight is, over the radius. bfloat16 rounds weights at the start and after each step.
INVARIANTS = [
    (Ball(0.7), RMSToRMS(), (6, 4), lambda W: RMSToRMS().norm(W) / 0.7 - 1),
    (Ball(0.7), L1ToRMS(), (4, 6), lambda W: L1ToRMS().norm(W) / 0.7 - 1),
    (Ball(1.5), Linf(), (5,), lambda W: Linf().norm(W) / 1.5 - 1),
    (Ball(1.5, norm=Frobenius()), RMSToRMS(), (4, 6), lambda W: Frobenius().norm(W) / 1.5 - 1),
    (Sphere(), RMSToRMS(), (6, 4), lambda W: (RMSToRMS().norm(W) - 1).abs()),
    (Sphere(2.0), RMS(), (6,), lambda W: (RMS().norm(W) / 2 - 1).abs()),
    (Sphere(3.0, frobenius=True), RMSToRMS(), (4, 6), lambda W: (Frobenius().norm(W) / 3 - 1).abs()),
]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("constraint", "norm", "shape", "excess"), INVARIANTS, ids=str)
def test_invariants_under_attack(constraint, norm, shape, excess, dtype):
    check_constraint(constraint, shape, norm=norm, excess=excess, tolerance=ROUNDING[dtype], dtype=dtype)


def one_layer(dtype=torch.float32, width=(6, 4)):
    torch.manual_seed(0)
    return ng.nn.Linear(*width).to(dtype)


def pushed(opt, layer, t):
    """Outward: along the weight and along a fixed matrix in turn."""
    outward = layer.weight.detach() if t % 2 else gaussian(*layer.weight.shape, seed=5)
    layer.weight.grad = -outward.to(layer.weight)
    opt.step()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    "make", [lambda: Ball(0.7), lambda: Sphere(0.7), lambda: Sphere(0.7, norm=Spectral())], ids=str
)
def test_in_the_optimizer_from_outside_through_checkpoints_nan_and_no_steps(make, dtype):
    layer = one_layer(dtype)
    with torch.no_grad():
        layer.weight.mul_(5)
    constraint = make()
    norm = constraint.bind(RMSToRMS()).norm
    opt = ng.optimizer(layer, lr=0.3, constraint=constraint)
    for t in range(60):
        opt.param_groups[0]["lr"] = (0.3, 0.01, 0.0)[t % 3]
        before = layer.weight.detach().clone()
        if t % 7 == 3:
            layer.weight.grad = torch.full_like(layer.weight, torch.nan)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                opt.step()
        else:
            pushed(opt, layer, t)
        if t % 7 == 3 or t % 3 == 2:
            assert torch.equal(layer.weight, before)
        assert norm.norm(layer.weight.detach().float()) <= 0.7 * (1 + ROUNDING[dtype])
        if t == 30:
            twin = copy.deepcopy(layer)
            resumed = ng.optimizer(twin, lr=0.3, constraint=make())
            resumed.load_state_dict(opt.state_dict())
            layer, opt = twin, resumed
    assert norm.norm(layer.weight.detach().float()) == pytest.approx(0.7, rel=2**-7)


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
        (lambda: Ball(0.0), "finite number > 0"),
        (lambda: Sphere(-1.0), "finite number > 0"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
