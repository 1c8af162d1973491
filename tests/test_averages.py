"""Averages of weights: closed forms, published recursions, and a swap for evaluation that cannot be forgotten."""

import pytest
import torch
from helpers import gaussian
from hypothesis import given
from hypothesis import strategies as st

import normgeo as ng
from normgeo.constraints import Ball, Decay, HardCap, RowCap, Sphere
from normgeo.optim import BEMA, EMA, ScheduleFree
from normgeo.rules import Plain
from normgeo.steps import Warmup
from normgeo.testing import check_optimizer

X, Y = gaussian(16, 4), gaussian(16, 3, seed=1)
ITERATES = [EMA(0.9), EMA(0.0), BEMA(), BEMA(every=3, start=2), ScheduleFree(), ScheduleFree(beta=0.0)]


def model(dtype=torch.float64):
    torch.manual_seed(0)
    return (ng.nn.Linear(6, 3) @ ng.nn.ReLU() @ ng.nn.Linear(4, 6)).to(dtype)


def loss(net):
    w = next(net.parameters())
    return (net(X.to(w)) - Y.to(w)).square().mean()


def train(opt, net, n=1):
    for _ in range(n):
        opt.zero_grad()
        loss(net).backward()
        opt.step()


def weights(net):
    return torch.cat([w.detach().flatten() for w in net.parameters()])


@pytest.mark.parametrize("iterate", ITERATES, ids=repr)
@pytest.mark.parametrize("constraint", [None, Decay(0.3)], ids=repr)
def test_averages_keep_the_contract(iterate, constraint):
    make = lambda net: ng.optimizer(net, iterate=iterate, constraint=constraint)  # noqa: E731
    check_optimizer(make, model(), loss, decays=constraint is not None, effort="quick")


@given(st.floats(0.01, 0.999), st.integers(1, 8), st.integers(0, 100))
def test_ema_is_the_average_with_geometric_weights(beta, n, seed):
    """torch's own bias correction: Σ β^(t-s) W_s / Σ β^(t-s), what a constraint made of the weights included."""
    net = model()
    opt = ng.optimizer(net, iterate=EMA(beta), constraint=Decay(0.3), lr=0.3)
    seen = [weights(net)]
    for _ in range(n):
        train(opt, net)
        seen.append(weights(net))
    share = torch.tensor([beta ** (n - s) for s in range(n + 1)], dtype=torch.float64)
    with opt.averaged():
        torch.testing.assert_close(weights(net), (share @ torch.stack(seen)) / share.sum())


@pytest.mark.parametrize(("every", "start"), [(1, 0), (3, 0), (2, 4)])
def test_bema_is_its_recursion(every, start):
    net, it = model(), BEMA(bias=0.3, power=0.6, rho=5.0, gamma=0.5, every=every, start=start)
    opt = ng.optimizer(net, iterate=it, lr=0.3)
    mean = first = weights(net)
    for t in range(1, 12):
        train(opt, net)
        w = weights(net)
        if t <= start:
            mean = first = expected = w
        else:
            a, b = (5 + 0.5 * t) ** -0.3, (5 + 0.5 * t) ** -0.6
            mean = (1 - b) * mean + b * w if t % every == 0 else mean
            expected = a * (w - first) + mean
        with opt.averaged():
            torch.testing.assert_close(weights(net), expected)


def test_bema_without_its_correction_is_an_average_and_with_it_is_less_biased_towards_the_start():
    """On an Ornstein-Uhlenbeck process w ← w - .02·w + noise from w = 1 towards 0, means of 4000 paths after 60 steps:
    the process .30, the average .35, BEMA .05."""
    torch.manual_seed(0)
    paths = {name: (it, it.init(torch.ones(1, 4000, dtype=torch.float64))) for name, it in CASES.items()}
    w = torch.ones(1, 4000, dtype=torch.float64)
    for _ in range(60):
        step = 0.02 * w + 0.05 * torch.randn_like(w)
        for it, state in paths.values():
            it.write(w, step, torch.tensor(1.0, dtype=torch.float64), state)
        w = w - step
    mean = {name: float(it.average(w, state).mean()) for name, (it, state) in paths.items()}
    assert mean["no correction"] == pytest.approx(mean["average"], abs=1e-12)
    assert abs(mean["BEMA"]) < 0.3 * mean["average"]


class Fading(EMA):
    """m ← (1 - b_t)·m + b_t·W, written out: what BEMA is without its first term."""

    def average(self, W, state):
        b = (10 + state["t"]).pow(-0.5).reshape(-1, 1)
        return (1 - b) * state["mean"] + b * W


CASES = {"BEMA": BEMA(), "no correction": BEMA(bias=float("inf")), "average": Fading()}


def test_schedule_free_is_its_recursion():
    net, twin = model(), model()
    opt = ng.optimizer(net, iterate=ScheduleFree(), rule=Plain(), lr=0.3, step=Warmup(4))
    leaves = {leaf.name: leaf for leaf in ng.compile(net).leaves}
    z = {name: w.detach().clone() for name, w in twin.named_parameters()}
    x, squares = dict(z), 0.0
    for t in range(9):
        train(opt, net)
        twin.zero_grad()
        loss(twin).backward()
        eta = 0.3 * min(1, (t + 1) / 5)
        squares += eta**2
        for name, w in twin.named_parameters():
            z[name] = z[name] - eta * leaves[name].radius * leaves[name].norm.dualize(w.grad)
            x[name] = (1 - eta**2 / squares) * x[name] + eta**2 / squares * z[name]
            w.data = 0.1 * z[name] + 0.9 * x[name]
    torch.testing.assert_close(weights(net), weights(twin))
    with opt.averaged():
        torch.testing.assert_close(weights(net), torch.cat([v.flatten() for v in x.values()]))


def test_schedule_free_decays_z_by_what_decay_takes_from_y():
    """z ← z - η·D - η·λ·y, the published form: with D = 0 only decay is left."""
    net, lam, eta = model(), 0.5, 0.2
    opt = ng.optimizer(net, iterate=ScheduleFree(beta=0.0), rule=Plain(), lr=eta, constraint=Decay(lam))
    start = weights(net)
    for t in range(1, 5):
        for w in net.parameters():
            w.grad = torch.zeros_like(w)
        opt.step()
        torch.testing.assert_close(weights(net), (1 - eta * lam) ** t * start)


def test_schedule_free_without_a_horizon_is_near_what_linear_decay_reaches():
    """Signs of noisy gradients on a bowl, T = 400 and 1600, one η for both. Mean squares: the average .013 and .0050, the
    last iterate of a decay that knows T .0071 and .0034, z, which has the same constant η, .20 and .28."""
    torch.manual_seed(0)
    for total in (400, 1600):
        free, eta = ScheduleFree(), torch.tensor(0.05, dtype=torch.float64)
        y = torch.ones(1, 1000, dtype=torch.float64)
        last, state = y.clone(), free.init(y)
        for t in range(total):
            y = free.write(y, (y + torch.randn_like(y)).sign(), eta, state)
            last = last - eta * (1 - t / total) * (last + torch.randn_like(last)).sign()
        average = free.average(y, state).square().mean()
        assert average < 2 * last.square().mean()
        assert average < 0.1 * state["z"].square().mean()


# ---- the swap


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_swap_gives_back_every_bit(dtype):
    net = model(dtype)
    opt = ng.optimizer(net, iterate=EMA(0.9))
    train(opt, net, 3)
    before = weights(net)
    with opt.averaged():
        assert not torch.equal(weights(net), before)
    assert torch.equal(weights(net), before)

    def fails():
        with opt.averaged():
            raise KeyError("evaluation failed")

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(weights(net), before)
    train(opt, net)


def test_inside_nothing_that_would_mix_the_two_is_possible():
    net = model()
    opt = ng.optimizer(net, iterate=EMA(0.9))
    train(opt, net, 2)
    for forbidden, message in (
        (lambda: train(opt, net), "leave the block first"),
        (opt.state_dict, "not those it trains with"),
        (lambda: opt.averaged().__enter__(), "inside another"),
    ):
        before = weights(net)
        with opt.averaged(), pytest.raises(RuntimeError, match=message):
            forbidden()
        assert torch.equal(weights(net), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EMA(1.0), r"in \[0, 1\)"),
        (lambda: BEMA(rho=0.5), "b_t is at most 1"),
        (lambda: BEMA(every=0), "every ≥ 1"),
        (lambda: ScheduleFree(beta=-0.1), r"in \[0, 1\]"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("iterate", [EMA(0.9), BEMA(bias=0.5), ScheduleFree()], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize(
    "constraint", [Ball(0.6), Sphere(0.6), RowCap(0.2), HardCap(0.6)], ids=lambda x: type(x).__name__
)
def test_averages_obey_what_the_weights_obey(iterate, constraint):
    """The averages themselves do not: on a sphere they are inside, and schedule-free averages points that are beyond."""
    torch.manual_seed(0)
    net = ng.nn.Linear(4, 5).double()
    target, norm = 3 * gaussian(5, 4), ng.norms.RMSToRMS(ng.linalg.SVD())

    def excess(w):
        if isinstance(constraint, RowCap):
            return float((w.square().mean(1).sqrt() / 0.2 - 1).amax())
        off = float(norm.norm(w) / 0.6 - 1)
        return abs(off) if isinstance(constraint, Sphere) else off

    opt = ng.optimizer(net, iterate=iterate, rule=Plain(), constraint=constraint, lr=0.3)
    plain = []
    for step in range(12):
        opt.zero_grad()
        ((net.weight - (-1) ** (step // 2) * target) ** 2).sum().backward()
        opt.step()
        w, state = net.weight.detach().clone(), {name: x.clone() for name, x in opt.state[net.weight].items()}
        (stack,) = opt._ready()[0].stacks
        plain.append(excess(iterate.average(stack.weights(), stack.state["iterate"])[0]))
        with opt.averaged():
            assert excess(net.weight.detach()) < 1e-4
            assert excess(w) < 1e-4
        assert torch.equal(net.weight, w)
        assert all(torch.equal(x, state[name]) for name, x in opt.state[net.weight].items())
    if isinstance(constraint, Sphere) or isinstance(iterate, ScheduleFree):
        assert max(plain) > 0.01


def test_what_is_not_averaged_is_not_constrained_either():
    net = ng.nn.Linear(4, 5).double()
    opt = ng.optimizer(net, iterate=EMA(), constraint=Ball(0.1))
    w = net.weight.detach().clone()
    with opt.averaged():
        assert torch.equal(net.weight, w)
