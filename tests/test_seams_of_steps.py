"""What the optimizer hands to step sizes: Hessian-vector products of a whole group, the loss along a line, the loss."""

import copy

import pytest
import torch
from helpers import Watching, gaussian

import normgeo as ng
from normgeo.rules import Plain
from normgeo.steps import Stats
from normgeo.steps.base import Move

X, Y = gaussian(16, 4), gaussian(16, 3, seed=1)


def model():
    torch.manual_seed(0)
    return (ng.nn.Linear(6, 3) @ ng.nn.Tanh() @ ng.nn.Linear(4, 6)).double()


def loss(net):
    return (net(X) - Y).square().mean()


def closure(opt, net, backward=True):
    def run():
        opt.zero_grad()
        value = loss(net)
        if backward:
            value.backward()
        return value

    return run


def named(moves, tensors):
    return {
        leaf.name: t
        for move, stack in zip(moves, tensors, strict=True)
        for leaf, t in zip(move.leaves, stack, strict=True)
    }


def test_hessian_of_the_whole_group():
    """Against autograd's Hessian of the loss in all weights at once, blocks between leaves included."""
    net = model()
    before = copy.deepcopy(net)
    params = dict(before.named_parameters())

    def look(stats):
        if stats.hessian is None:
            return None
        V = [gaussian(*move.W.shape, seed=i) for i, move in enumerate(stats.moves)]
        return named(stats.moves, V), named(stats.moves, stats.hessian(V))

    step = Watching(look, hvp=2, moves=1)
    opt = ng.optimizer(net, step=step, rule=Plain(), lr=0.0)
    for _ in range(3):
        opt.step(closure(opt, net, backward=False))
    assert [seen is not None for seen in step.seen] == [True, False, True]
    V, HV = step.seen[0]
    H = torch.func.hessian(lambda ws: (torch.func.functional_call(before, ws, (X,)) - Y).square().mean())(params)
    for a in params:
        expected = sum(torch.tensordot(H[a][b], V[b], 2) for b in params)
        torch.testing.assert_close(HV[a], expected.detach())


def test_the_line_is_the_loss_along_the_direction():
    net = model()
    start = {name: w.detach().clone() for name, w in net.named_parameters()}

    def look(stats):
        u = named(stats.moves, [move.radius * move.D for move in stats.moves])
        return u, [stats.line(eta) for eta in (0.0, 0.3, torch.tensor(0.7))], [w.grad.clone() for w in net.parameters()]

    step = Watching(look, closure=1, moves=1)
    opt = ng.optimizer(net, step=step, lr=0.0)
    opt.step(closure(opt, net))
    u, seen, grads = step.seen[0]

    def phi(eta):
        weights = {name: start[name] - eta * u[name] for name in start}
        return (torch.func.functional_call(net, weights, (X,)) - Y).square().mean()

    for eta, (value, slope) in zip((0.0, 0.3, 0.7), seen, strict=True):
        at = torch.tensor(eta, dtype=torch.float64)
        torch.testing.assert_close(value, phi(at).detach())
        torch.testing.assert_close(slope, torch.func.grad(phi)(at))
    for name, w in net.named_parameters():
        assert torch.equal(w, start[name])
    opt.zero_grad()
    loss(net).backward()
    assert all(torch.equal(w.grad, g) for w, g in zip(net.parameters(), grads, strict=True))


def test_a_closure_that_fails_on_the_line_leaves_the_weights_in_place():
    net = model()
    calls = []

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("no more data")
        return closure(opt, net)()

    opt = ng.optimizer(net, step=Watching(lambda stats: stats.line(1.0), closure=1, moves=1))
    before = [w.detach().clone() for w in net.parameters()]
    with pytest.raises(KeyError):
        opt.step(failing)
    assert all(torch.equal(w, b) for w, b in zip(net.parameters(), before, strict=True))


def test_the_second_group_starts_where_the_first_has_moved():
    net = model()
    step = Watching(lambda stats: stats.line(0.0)[0], closure=1, moves=1)
    plan = ng.compile(net)
    opt = plan.optimizer(plan.groups({"0": {"lr": 0.3}}), step=step, lr=0.1)
    values = []

    def run():
        values.append(closure(opt, net)().detach())
        return values[-1]

    opt.step(run)
    assert len(values) == 2
    assert [float(x) for x in step.seen] == [float(v) for v in values]
    assert values[1] < values[0]


def test_a_line_now_and_then():
    net = model()
    step = Watching(lambda stats: stats.line is not None, closure=3, moves=1)
    opt = ng.optimizer(net, step=step)
    for _ in range(7):
        opt.step(closure(opt, net))
    assert step.seen == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_a_loss_that_is_nan_moves_nothing_when_a_part_looks_at_it(policy):
    net = model()
    opt = ng.optimizer(net, step=Watching(lambda stats: None, loss=1, moves=1), nonfinite=policy)
    before = [w.detach().clone() for w in net.parameters()]

    def run():
        return closure(opt, net)().detach() + torch.nan  # the gradients are finite

    with pytest.warns(RuntimeWarning, match="NaN or Inf in the loss or the gradient of"):
        opt.step(run)
    assert all(torch.equal(w, b) for w, b in zip(net.parameters(), before, strict=True))


def test_without_a_closure_the_part_that_needs_one_is_named():
    net = model()
    opt = ng.optimizer(net, step=Watching(None, closure=1, moves=1))
    with pytest.raises(ValueError, match=r"Watching needs the loss; call opt\.step\(closure\)"):
        opt.step()


def test_slope_is_only_for_those_who_ask():
    with pytest.raises(RuntimeError, match=r"needs = {.moves.: 1}"):
        _ = Stats(torch.tensor(0.0)).slope
    one = torch.ones(2, 3)
    stats = Stats(torch.tensor(0.0), moves=[Move(2 * one, one, one, one, torch.full((2, 1), 0.5))] * 2)
    assert (stats.slope, stats.dual_norm) == (12.0, 6.0)


def test_hessians_of_networks_with_attention():
    """Fused attention has no second derivative, so steps with Hessian-vector products run without it."""
    torch.manual_seed(0)
    net = ng.nn.GPT(vocab_size=11, context=8, width=16, heads=2, depth=1)
    ids = torch.randint(11, (2, 9))
    step = Watching(lambda stats: stats.hessian([move.D for move in stats.moves]), hvp=1, moves=1)
    opt = ng.optimizer(net, step=step)
    opt.step(lambda: torch.nn.functional.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))
    assert all(product.isfinite().all() for product in step.seen[0])
