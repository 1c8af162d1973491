"""Where the parts of an optimizer meet: groups at different steps, steps of size 0, constraints under searches."""

import copy
import warnings

import pytest
import torch
from helpers import Watching, gaussian
from test_seams_of_steps import X, Y, loss, model

import normgeo as ng
from normgeo.constraints import Ball, DecoupledDecay, L2Penalty, RowCap, SoftCap, SpectralDecay, Sphere
from normgeo.norms import Absolute, Linf
from normgeo.optim import Direction, ScheduleFree
from normgeo.rules import Momentum, Plain
from normgeo.steps import AdamNorm, Auto, Cauchy, MetaOptimize
from normgeo.testing import check_constraint


def train(opt, net, steps=1):
    for _ in range(steps):
        opt.zero_grad()
        loss(net).backward()
        opt.step()


class Probing(Direction):
    """The dual direction, with a look at the Hessian when there is one."""

    needs = {"hvp": 3}  # noqa: RUF012

    def __init__(self):
        self.seen = []

    def observe(self, G, state, stats):
        self.seen.append(None if stats.hvp is None else stats.hvp(torch.ones_like(G)))

    def __call__(self, M, state, W):
        return M.sign()


# ---- Hessian-vector products, group by group


def test_the_hessian_is_that_of_the_weights_before_the_step_in_every_group():
    """The second group asks after the first has moved; its block is still autograd's at the old weights."""
    net = model()
    before = copy.deepcopy(net)
    step = Watching(
        lambda s: (s.moves[0].leaves[0].name, s.hessian([m.D for m in s.moves])[0], s.moves[0].D), hvp=1, moves=1
    )
    plan = ng.compile(net)
    opt = plan.optimizer(plan.groups({"0": {"lr": 0.3}}), step=step, rule=Plain(), lr=0.1)
    opt.step(lambda: loss(net))
    params = dict(before.named_parameters())
    H = torch.func.hessian(lambda ws: (torch.func.functional_call(before, ws, (X,)) - Y).square().mean())(params)
    assert len(step.seen) == 2
    for name, found, D in step.seen:
        torch.testing.assert_close(found[0], torch.tensordot(H[name][name], D[0], 2).detach())
    assert all(w.grad_fn is None for w in net.parameters())


def test_a_direction_may_ask_for_the_hessian_stack_by_stack():
    net, direction = model(), Probing()
    opt = ng.optimizer(net, direction=direction, lr=0.1)
    for _ in range(4):
        opt.step(lambda: loss(net))
    assert [hv is not None for hv in direction.seen] == [True, True, False, False, False, False, True, True]


def test_periods_are_counted_by_the_steps_of_the_group():
    """A first group that stopped at step 1 decides nothing for the second, nor does its shorter period."""
    net = model()
    plan, every, seldom = ng.compile(net), Cauchy(every=1), Watching(lambda s: s.hessian is not None, hvp=3, moves=1)
    groups = plan.groups({"0": {"step": seldom}, "2": {"step": every}}, model=net)
    opt = plan.optimizer(groups, lr=0.1)
    for _ in range(4):
        opt.step(lambda: loss(net))
    assert seldom.seen == [True, False, False, True]

    net = model()
    step = Watching(lambda s: s.hessian is not None, hvp=3, moves=1)
    plan = ng.compile(net)
    opt = plan.optimizer(plan.groups({"0": {"lr": 0.3}}, model=net), step=step, lr=0.1)
    opt.step(lambda: loss(net))
    for p in opt.param_groups[0]["params"]:
        p.requires_grad_(False)
    for _ in range(4):
        opt.step(lambda: loss(net))
    assert step.seen == [True, True, False, False, True, False]


# ---- searches along the direction


def test_the_line_starts_with_the_slope_of_the_loss_whatever_the_constraint_does_to_gradients():
    net = model()
    step = Watching(lambda s: (s.line(0.0)[1], s.line(1e-7)[1]), closure=1, moves=1)
    opt = ng.optimizer(net, step=step, constraint=L2Penalty(0.5), lr=0.1)

    def closure():
        opt.zero_grad()
        value = loss(net)
        value.backward()
        return value

    opt.step(closure)
    torch.testing.assert_close(*step.seen[0], rtol=1e-5, atol=1e-8)


# ---- steps of size 0


def test_a_soft_cap_waits_while_the_lr_is_0():
    """What it knows of the size of the weights must not shrink while they do not."""
    net, cap = ng.nn.Linear(4, 6).double(), SoftCap(1.0)
    with torch.no_grad():
        net.weight.mul_(5)
    opt = ng.optimizer(net, constraint=cap, lr=0.02)
    opt.param_groups[0]["lr"] = 0.0
    x = gaussian(8, 6 if net.weight.shape[1] == 6 else 4)
    for t in range(60):
        opt.param_groups[0]["lr"] = 0.02 * (t >= 20)
        opt.zero_grad()
        net(x).square().mean().backward()
        opt.step()
    norm = ng.compile(net).leaves[0].norm
    assert float(norm.norm(net.weight.detach())) <= 1 + 1e-4


@pytest.mark.parametrize("constraint", [Ball(0.5), DecoupledDecay(0.1)])
def test_schedule_free_sequences_stand_still_while_the_lr_is_0(constraint):
    net = model()
    opt = ng.optimizer(net, iterate=ScheduleFree(), rule=Plain(), constraint=constraint, lr=0.1)
    train(opt, net, 3)
    state = {k: {n: t.clone() for n, t in s.items() if "iterate" in n} for k, s in opt.state.items()}
    opt.param_groups[0]["lr"] = 0.0
    train(opt, net, 5)
    for k, tensors in state.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(opt.state[k][name], tensor)


def test_an_lr_that_starts_as_a_tensor_of_0_has_a_base_once_it_is_larger():
    net = model()
    opt = ng.optimizer(net, lr=torch.tensor(0.0), constraint=DecoupledDecay(0.1))
    train(opt, net)
    opt.param_groups[0]["lr"].fill_(0.2)
    before = net.get_parameter("0.weight").detach().clone()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    opt.state.clear()
    opt._bound = None
    opt.step()
    torch.testing.assert_close(net.get_parameter("0.weight").detach(), 0.9 * before)


# ---- leaves without axes, parts with functions in them


@pytest.mark.parametrize("constraint", [RowCap(1.0), SoftCap(1.0), SpectralDecay(0.1)])
def test_scalars_are_constrained_one_by_one(constraint):
    check_constraint(constraint, shape=(), norm=Absolute())


@pytest.mark.parametrize(
    "options",
    [
        {"step": AdamNorm(), "rule": Momentum(0.9)},
        {"step": Auto(20)},
        {"constraint": Sphere(1.0), "rule": Plain()},
        {"constraint": Sphere(1.0, frobenius=True), "rule": Plain()},
    ],
    ids=str,
)
def test_a_stack_of_scalars_moves_as_vectors_of_one_entry_do(options):
    ends = []
    for shape, norm in (((), Absolute()), ((1,), Linf())):
        params = [torch.nn.Parameter(torch.full(shape, x, dtype=torch.float64)) for x in (1.0, -1.0, 1.0)]
        leaves = [(ng.geometry.Leaf(f"{i}", f"{i}", shape, "gain", norm),) for i in range(3)]
        opt = ng.optim.Optimizer([{"params": params, "leaves": leaves}], lr=0.1, **options)
        for g in gaussian(6, 3):
            for p, entry in zip(params, g, strict=True):
                p.grad = entry.double().reshape(shape)
            opt.step()
        ends.append(torch.stack([p.detach().reshape(()) for p in params]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-14)
    assert bool((ends[0] != torch.tensor([1.0, -1.0, 1.0])).any()) is ("step" in options)


def test_a_function_among_the_parts_is_the_same_after_resuming():
    def make():
        return ng.optimizer(model(), step=MetaOptimize(blocks=lambda leaf: leaf.role), lr=0.01)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().load_state_dict(make().state_dict())
