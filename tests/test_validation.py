"""Moments from validation gradients in training, and where fixed operators end."""

import pytest
import torch
from helpers import gaussian
from torch import nn

import normgeo as ng
from normgeo.budgets import (
    Diagonal,
    DynamicDiagonal,
    Frobenius,
    FullMoment,
    LagMoment,
    OnePole,
    SketchMoment,
    Spectral,
    Step,
)
from normgeo.optim import Filter, Operate
from normgeo.rules import Plain

X, Y = gaussian(16, 4), gaussian(16, 3, seed=1)
XV, YV = gaussian(16, 4, seed=2), gaussian(16, 3, seed=3)


def model():
    torch.manual_seed(0)
    return ng.nn.Sequential(up=ng.nn.Linear(4, 5), act=ng.nn.ReLU(), down=ng.nn.Linear(5, 3)).double()


def gradients(net, x, y):
    return torch.autograd.grad((net(x) - y).square().mean(), list(net.parameters()))


def step(opt, net, validation=(XV, YV)):
    opt.zero_grad()
    if validation is not None:
        with opt.validation():
            (net(validation[0]) - validation[1]).square().mean().backward()
    (net(X) - Y).square().mean().backward()
    opt.step()


# ---- the same call with another source


def symmetric(x):
    return (x + x.mT) / 2


@pytest.mark.parametrize("source", ["train", "validation", "cross"])
def test_the_moment_is_that_of_its_source_and_the_operator_the_best_for_it(source):
    net, budget = model(), Spectral(3.0, 1.0)
    opt = ng.optimizer(net, direction=Operate(budget, FullMoment(beta=1.0), source=source), rule=Plain(), lr=0.05)
    seen = []
    for _ in range(4):
        pairs = [gradients(net, X, Y), gradients(net, XV, YV)]
        seen.append([torch.cat([g.flatten() for g in grads]) for grads in pairs])
        step(opt, net, None if source == "train" else (XV, YV))
    g, v = (torch.stack(each) for each in zip(*seen, strict=True))
    one, other = {"train": (g, g), "validation": (v, v), "cross": (g, v)}[source]
    whole = symmetric(one.mT @ other / 4)
    if source == "cross":
        assert torch.linalg.eigvalsh(whole)[0] < 0  # X0-1
    at = 0
    for p in net.parameters():
        d = p.numel()
        expected = whole[at : at + d, at : at + d]
        torch.testing.assert_close(opt.state[p]["direction.moment.moment"], expected)
        q = budget.maximizer(expected)
        state = {name.removeprefix("direction."): x[None] for name, x in opt.state[p].items() if "direction" in name}
        direction = Operate(budget, FullMoment(), size="budget")
        V = gaussian(1, *p.shape, seed=5)
        torch.testing.assert_close(direction(V, state, V).flatten(), q @ V.flatten())
        at += d


@pytest.mark.parametrize("source", ["validation", "cross"])
def test_validation_on_the_training_data_is_training(source):
    ends = []
    for direction, validation in (
        (Operate(Frobenius()), None),
        (Operate(Frobenius(), source=source), (X, Y)),
    ):
        net = model()
        opt = ng.optimizer(net, direction=direction, lr=0.1)
        for _ in range(5):
            step(opt, net, validation)
        ends.append(net.up.weight.detach())
    assert torch.equal(*ends)


def test_filters_take_them_too():
    """R[k] = E[v[n] g[n-k]], and a best momentum for the validation loss (Algorithm 1 with a validation set)."""
    net, budget = model(), OnePole(DynamicDiagonal())
    direction = Filter(budget, lags=3, source="cross", memory=1.0)
    opt = ng.optimizer(net, direction=direction, rule=Plain(), lr=0.05)
    lags = LagMoment(3, direction._lags.moment)
    states = [lags.init(p.detach()[None]) for p in net.parameters()]
    for _ in range(5):
        both = zip(gradients(net, X, Y), gradients(net, XV, YV), strict=True)
        for (g, v), state in zip(both, states, strict=True):
            lags.observe(g[None], state, v[None])
        step(opt, net)
    for p, state in zip(net.parameters(), states, strict=True):
        torch.testing.assert_close(opt.state[p]["direction.moment"], state["moment"][0])
    with pytest.raises(ValueError, match="needs validation gradients"):
        step(opt, net, None)


class Shortcut:
    """Labels that follow 4 inputs everywhere, and 12 more in the training set alone."""

    def __init__(self):
        self.teacher = gaussian(4, 2, seed=7)
        self.shortcut = gaussian(2, 12, seed=8)

    def draw(self, n, seed, train):
        x = gaussian(n, 4, seed=seed)
        y = x @ self.teacher + 0.3 * gaussian(n, 2, seed=seed + 1)
        hint = gaussian(n, 12, seed=seed + 2) + (y @ self.shortcut if train else 0)
        return torch.cat([x, hint], 1), y


@pytest.mark.parametrize("budget", [Frobenius(), Spectral(64.0), Diagonal()])
def test_a_network_does_not_learn_what_validation_data_do_not_confirm(budget):
    problem, ends = Shortcut(), {}
    test = problem.draw(2000, 999, train=False)
    for source in ("train", "cross"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 2)).double()
        plan = ng.compile(net, (test[0],), budgets={"*": Operate(budget, source=source)})
        opt = plan.optimizer(net, lr=0.1)
        for t in range(100):
            opt.zero_grad()
            if source == "cross":
                with opt.validation():
                    x, y = problem.draw(64, 10_000 + 3 * t, train=False)
                    (net(x) - y).square().mean().backward()
            x, y = problem.draw(64, 20_000 + 3 * t, train=True)
            (net(x) - y).square().mean().backward()
            opt.step()
        with torch.no_grad():
            ends[source] = float((net(test[0]) - test[1]).square().mean())
    assert ends["cross"] < 0.8 * ends["train"]


# ---- what may go wrong


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_a_bad_validation_gradient_touches_nothing(policy):
    net = model()
    opt = ng.optimizer(net, direction=Operate(Frobenius(), source="cross"), nonfinite=policy, lr=0.1)
    step(opt, net)
    before = [p.detach().clone() for p in net.parameters()]
    kept = {p: {name: x.clone() for name, x in opt.state[p].items()} for p in net.parameters()}
    opt.zero_grad()
    with opt.validation():
        net.up.weight.grad = torch.full_like(net.up.weight, torch.nan)
        net.down.weight.grad = torch.ones_like(net.down.weight)
    (net(X) - Y).square().mean().backward()
    with pytest.warns(RuntimeWarning, match=r"NaN or Inf in the gradient of up.weight \(validation\)"):
        opt.step()
    assert torch.equal(net.up.weight, before[0])
    assert all(torch.equal(x, kept[net.up.weight][name]) for name, x in opt.state[net.up.weight].items() if "." in name)
    assert torch.equal(net.down.weight, before[1]) == (policy == "skip")
    step(opt, net)
    assert not torch.equal(net.up.weight, before[0])


def test_training_gradients_are_what_they_were():
    net = model()
    opt = ng.optimizer(net, direction=Operate(Frobenius(), source="cross"), lr=0.1)
    (net(X) - Y).square().mean().backward()
    kept = [(p.grad, p.grad.clone()) for p in net.parameters()]

    def fails():
        with opt.validation():
            (net(XV) - YV).square().mean().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert all(p.grad is g and torch.equal(g, x) for p, (g, x) in zip(net.parameters(), kept, strict=True))
    with pytest.raises(ValueError, match="needs validation gradients"):  # the block failed, so it does not count
        opt.step()
    step(opt, net)
    operator = opt.state[net.up.weight]["direction.operator"].clone()
    step(opt, net, None)
    assert torch.equal(opt.state[net.up.weight]["direction.operator"], operator)


def test_bad_settings_are_one_sentence():
    net = model()
    with pytest.raises(RuntimeError, match="no part of this optimizer looks at validation gradients"):
        ng.optimizer(net).validation().__enter__()
    for make, message in (
        (lambda: Operate(Frobenius(), source="test"), "source must be one of train, validation, cross, got 'test'"),
        (lambda: Operate(Step(ng.norms.Linf()), source="cross"), "has no moment"),
        (lambda: Filter(DynamicDiagonal(), source="validation"), 'source must be "train" or "cross"'),
        (lambda: ng.budgets.endpoint(torch.ones(3), X, Y[:, 0]), "J has 4 columns"),
        (lambda: ng.budgets.endpoint(torch.ones(4), X, Y[:, 0], ridge=-1.0), "ridge is a decay and must be ≥ 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    opt = ng.optimizer(net, direction=Operate(Frobenius(), SketchMoment(), source="cross"))
    with pytest.raises(ValueError, match="SketchMoment is for training moments"):
        step(opt, net)


# ---- where fixed operators end


def dense(d, rank, seed=0):
    x = gaussian(d, rank, seed=seed)
    return x @ x.mT


def flow(Q, J, r, ridge, time):
    """Δ(t) of Δ' = Q Jᵀ(r - JΔ) - ρΔ from Δ(0) = 0, exactly: the exponential of the affine system."""
    d = len(Q)
    system = torch.zeros(d + 1, d + 1, dtype=torch.float64)
    system[:d, :d] = -Q @ J.mT @ J - ridge * torch.eye(d, dtype=torch.float64)
    system[:d, d] = Q @ J.mT @ r
    return torch.linalg.matrix_exp(time * system)[:d, d]


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize(("n", "rank"), [(4, 9), (4, 6), (12, 9), (6, 3)])
def test_the_flow_ends_there(n, rank, ridge):
    """With more weights than data and fewer, Q of full rank and less."""
    Q, J, r = dense(9, rank) / 9, gaussian(n, 9, seed=1), gaussian(n, seed=2)
    end = ng.budgets.endpoint(Q, J, r, ridge)
    torch.testing.assert_close(flow(Q, J, r, ridge, 1e5), end, rtol=1e-9, atol=1e-9)
    if ridge:  # the normal equations of ½‖r - JΔ‖² + ρ/2·ΔᵀQ⁺Δ on the range of Q
        half = torch.linalg.eigh(Q)
        root = half.eigenvectors * half.eigenvalues.clamp_min(0).sqrt()
        a = J @ root
        z = torch.linalg.solve(a.mT @ a + ridge * torch.eye(9, dtype=torch.float64), a.mT @ r)
        torch.testing.assert_close(end, root @ z)


def test_no_other_interpolant_is_as_close_in_the_metric_of_the_operator():
    Q, J, r = dense(9, 9), gaussian(4, 9, seed=1), gaussian(4, seed=2)
    end, metric = ng.budgets.endpoint(Q, J, r), torch.linalg.inv(Q)
    torch.testing.assert_close(J @ end, r)
    free = torch.linalg.svd(J).Vh[4:]  # ways that do not change the outputs
    others = end + 0.1 * gaussian(200, 5, seed=3) @ free
    sizes = torch.einsum("ni,ij,nj->n", others, metric, others)
    assert bool((sizes > end @ metric @ end).all())
    torch.testing.assert_close(free @ metric @ end, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-8)


def test_descent_with_an_operator_ends_there_on_a_real_network():
    """A diagonal Q on a network that is linear in its weights; starts away from 0, so that Δ and θ differ (X0-16)."""
    net = nn.Linear(9, 1, bias=False).double()
    x, y, q = gaussian(4, 9, seed=1), gaussian(4, 1, seed=2), gaussian(9, seed=3).square() + 0.1
    start = net.weight.detach().clone()
    J = torch.func.jacrev(lambda w: (x @ w.mT).flatten())(start).flatten(1)
    for _ in range(4000):
        (g,) = torch.autograd.grad((net(x) - y).square().sum() / 2, net.weight)
        with torch.no_grad():
            net.weight -= 0.02 * q * g
    end = ng.budgets.endpoint(q, J, (y - x @ start.mT).flatten())
    torch.testing.assert_close(net.weight[0] - start[0], end, rtol=1e-6, atol=1e-8)
    new = gaussian(5, 9, seed=4)
    through = ng.budgets.tangent_kernel(q, new, x) @ torch.linalg.solve(
        ng.budgets.tangent_kernel(q, x), (y - x @ start.mT).flatten()
    )
    torch.testing.assert_close(new @ end, through)


def test_the_operator_for_validation_ends_better_where_only_some_directions_generalise():
    """Inputs 5 to 16 carry the labels in the training set alone. Both operators fit it; the one for the cross moment at
    the start leans on the other inputs."""
    problem, errors = Shortcut(), {}
    (x, y), (xv, yv), (xt, yt) = (problem.draw(n, seed, seed == 50) for n, seed in ((10, 50), (400, 60), (2000, 70)))
    budget = Frobenius()
    g, v = -x * y[:, :1], -xv * yv[:, :1]  # of ½(w·x - y)² at w = 0
    for source, m in (("train", g.mean(0).outer(g.mean(0))), ("cross", symmetric(g.mean(0).outer(v.mean(0))))):
        q = budget.maximizer(m) + 1e-3 * torch.eye(16, dtype=torch.float64)
        end = ng.budgets.endpoint(q, x, y[:, 0])
        torch.testing.assert_close(x @ end, y[:, 0])
        errors[source] = float((xt @ end - yt[:, 0]).square().mean())
    assert errors["cross"] < 0.8 * errors["train"]
