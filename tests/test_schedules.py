"""Schedules: torch's schedulers and closed forms as oracles; refinement against the functional that it minimises."""

import copy
import warnings

import pytest
import torch
from helpers import called, gaussian
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

import normgeo as ng
from normgeo.steps import (
    WSD,
    Constant,
    Cosine,
    Exponential,
    Linear,
    OneCycle,
    Spike,
    Sqrt,
    Stairs,
    Stats,
    StepSize,
    StepState,
    Table,
    Warmup,
    refine,
    scheduler,
)
from normgeo.steps.schedules import SHAPES


def lrs(make, n):
    """The learning rates that a scheduler of torch gives, from lr 1."""
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        its = make(opt)
        out = []
        for _ in range(n):
            out.append(opt.param_groups[0]["lr"])
            opt.step()
            its.step()
    return out


def ours(schedule, n):
    return schedule.at(torch.arange(n, dtype=torch.float64)).tolist()


@pytest.mark.parametrize(
    ("schedule", "torchs"),
    [
        (Cosine(10, final=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.1)),
        (Stairs(3, 0.5), lambda o: lr_scheduler.StepLR(o, 3, 0.5)),
        (Exponential(1, 0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        (
            OneCycle(10, warmup=4, start=1 / 25, final=1 / 250),
            lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=11, pct_start=5 / 11, final_div_factor=10),
        ),
        (
            Warmup(4) * Stairs(2),
            lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1, (t + 1) / 5) * 0.1 ** (t // 2)),
        ),
    ],
    ids=called,
)
def test_schedules_are_those_of_torch(schedule, torchs):
    values = ours(schedule, 11) if hasattr(schedule, "at") else [float(v) for v in valued(schedule, 11)]
    assert values == pytest.approx(lrs(torchs, 11), abs=1e-7)


def valued(step, n):
    return [step.value(Stats(torch.tensor(float(t))), StepState()) for t in range(n)]


@pytest.mark.parametrize("schedule", [Linear(8, 2), WSD(10, 3), Sqrt(5), OneCycle(9, 2), Spike(3)], ids=repr)
def test_a_schedule_in_the_hands_of_torch(schedule):
    assert lrs(lambda o: scheduler(o, schedule), 9) == pytest.approx(ours(schedule, 9), abs=1e-12)


def test_a_scheduler_resumes():
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    first = scheduler(opt, Linear(4))
    opt.step()
    first.step()
    saved = copy.deepcopy(first.state_dict())
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    second = scheduler(opt, Linear(4))
    second.load_state_dict(saved)
    opt.step()
    second.step()
    assert second.get_last_lr() == [0.5]
    with pytest.raises(TypeError, match="a function of the step count alone"):
        scheduler(opt, Warmup(3) * Constant())


@pytest.mark.parametrize("decay", SHAPES)
def test_shapes_of_cooldown_fall_from_one_to_zero(decay):
    v = torch.linspace(0, 1, 101, dtype=torch.float64)
    phi = SHAPES[decay](v)
    assert (phi.diff() <= 1e-15).all()
    assert abs(float(phi[-1])) < 1e-15
    assert float(phi[0]) == (0.7 if decay == "lowered-linear" else 1.0)
    value = WSD(100, warmup=10, cooldown=0.5, decay=decay).at(torch.arange(101.0, dtype=torch.float64))
    assert (value[10:55] == 1).all()
    torch.testing.assert_close(value[55:], SHAPES[decay](torch.linspace(0, 1, 46, dtype=torch.float64)))


def test_the_cooldown_of_the_whole_run_is_the_schedule_of_that_shape():
    t = torch.arange(21.0, dtype=torch.float64)
    for whole, decay in ((Linear(20), "linear"), (Cosine(20), "cosine"), (Sqrt(20), "sqrt")):
        torch.testing.assert_close(whole.at(t), WSD(20, cooldown=1.0, decay=decay).at(t))


# ---- refinement


@given(st.integers(2, 60), st.floats(1e-3, 1e3), st.sampled_from([1.0, 2.0]))
def test_constant_norms_ask_for_linear_decay(n, g, power):
    torch.testing.assert_close(
        torch.tensor(refine([g] * n, power=power).values), 1 - torch.arange(n) / (n - 1), rtol=1e-6, atol=1e-6
    )


@given(st.integers(0, 1000))
def test_refined_weights_minimise_the_bound(seed):
    """Of (D² + Σ w²G²)/(2 Σ w) over w > 0: the value at w = G⁻²·(D/√ΣG⁻²) is D/√ΣG⁻², and no other w has less."""
    G, D = gaussian(20, seed=seed).exp(), 1.7

    def bound(w):
        return (D**2 + (w * G).square().sum()) / (2 * w.sum())

    w = G.pow(-2) * D / G.pow(-2).sum().sqrt()
    torch.testing.assert_close(bound(w), D / G.pow(-2).sum().sqrt())
    assert all(bound(w * (0.1 * gaussian(20, seed=seed + k)).exp()) >= bound(w) for k in range(1, 20))
    eta = w * (w.sum() - w.cumsum(0))
    torch.testing.assert_close(
        torch.tensor(refine(G, power=2.0, smooth=0.0).values, dtype=torch.float64), eta / eta.max()
    )


def test_refinement_warms_up_where_gradients_are_large_at_first():
    g = torch.cat([torch.linspace(4, 1, 30), torch.ones(70)])
    values = torch.tensor(refine(g).values)
    assert 20 < int(values.argmax()) < 40
    assert values[0] < 0.4


def test_the_median_filter_is_that_of_scipy_away_from_the_ends():
    ndimage = pytest.importorskip("scipy.ndimage")
    g = gaussian(50).exp()
    smoothed = torch.from_numpy(ndimage.median_filter(g.numpy(), size=7, mode="nearest"))
    w = torch.stack([1 / g[max(0, t - 3) : t + 4].quantile(0.5) for t in range(50)])
    torch.testing.assert_close(w[3:-3], 1 / smoothed[3:-3])
    eta = w * (w.sum() - w.cumsum(0))
    torch.testing.assert_close(torch.tensor(refine(g, smooth=0.14).values, dtype=torch.float64), eta / eta.max())


# ---- products


class Remembering(StepSize):
    """Counts its own calls per leaf and together, and gives a value per row."""

    needs = {"moves": 1, "updates": 1}  # noqa: RUF012

    def init(self, W):
        return {"calls": torch.zeros(len(W)), "moved": torch.zeros_like(W)}

    def init_shared(self):
        return {"calls": 0.0}

    def value(self, stats, state):
        state.shared["calls"] = state.shared["calls"] + 1
        for leaf in state.leaves:
            leaf["calls"] = leaf["calls"] + 1
        return [leaf["calls"].reshape(-1, 1, 1).expand(-1, leaf["moved"].shape[1], 1) for leaf in state.leaves]

    def follow(self, moves, state):
        for leaf, move in zip(state.leaves, moves, strict=True):
            leaf["moved"] += move.update


def test_a_product_keeps_the_state_of_both():
    torch.manual_seed(0)
    net = (ng.nn.Linear(6, 2) @ ng.nn.ReLU() @ ng.nn.Linear(4, 6)).double()
    start = [w.detach().clone() for w in net.parameters()]
    opt = ng.optimizer(net, step=Linear(4) * Remembering() * Remembering(), precision="exact", lr=0.1)
    x, moved = gaussian(8, 4), []
    for _ in range(3):
        before = [w.detach().clone() for w in net.parameters()]
        opt.zero_grad()
        net(x).square().sum().backward()
        opt.step()
        leaf, w, b = ng.compile(net).leaves[0], next(net.parameters()), before[0]
        moved.append(float(leaf.norm.norm(w.detach() - b) / (0.1 * leaf.radius)))
    assert moved == pytest.approx([1.0, 0.75 * 4, 0.5 * 9])
    for w, first in zip(net.parameters(), start, strict=True):
        state = opt.state[w]
        assert float(state["shared.left.right.calls"]) == float(state["shared.right.calls"]) == 3
        for key in ("step.left.right.moved", "step.right.moved"):
            torch.testing.assert_close(state[key], w.detach() - first)


def test_what_a_product_needs():
    class Rare(Remembering):
        needs = {"hvp": 10, "loss": 1}  # noqa: RUF012

    class Often(Remembering):
        needs = {"hvp": 2}  # noqa: RUF012

    assert (Rare() * Often()).needs == {"hvp": 2, "loss": 1}
    assert (Constant() * Linear(3)).needs == {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0), "0 ≤ warmup < total"),
        (lambda: Warmup(-1), "steps must be a whole number ≥ 0"),
        (lambda: Stairs(0), "every must be a whole number ≥ 1"),
        (lambda: Exponential(10, 0.0), "factor must be a finite number > 0"),
        (lambda: Spike(10, float("nan")), "factor must be a finite number > 0"),
        (lambda: OneCycle(10, start=2.0), r"share of the peak in \[0, 1\]"),
        (lambda: WSD(10, decay="cubic"), "decay must be one of linear, cosine"),
        (lambda: Table(()), "at least one value"),
        (lambda: refine([1.0, 0.0]), "finite and > 0"),
        (lambda: refine([1.0, 1.0], smooth=2.0), r"smooth is a share of the run in \[0, 1\]"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schedule_times_one_rule_is_not_loaded_into_a_schedule_times_another():
    net = ng.nn.MLP(4, 6, 2)
    saved = ng.optimizer(net, step=Warmup(3) * Remembering()).state_dict()
    with pytest.raises(
        ValueError,
        match=r"step=Warmup\(steps=3\) \* Remembering\(\.\.\.\), this optimizer has step=Warmup\(steps=3\) \* Stairs",
    ):
        ng.optimizer(net, step=Warmup(3) * Stairs(2)).load_state_dict(saved)
    with pytest.warns(UserWarning, match="continuing with"):
        ng.optimizer(net, step=Warmup(4) * Remembering()).load_state_dict(saved)
