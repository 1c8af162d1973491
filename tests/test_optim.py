import copy
import io
import math
import warnings
import weakref

import pytest
import torch
from helpers import gaussian
from torch import nn

import normgeo as ng
from normgeo.constraints import Decay, DecoupledDecay
from normgeo.linalg import SVD
from normgeo.norms import RMS, L1ToRMS, RMSToRMS, with_polar
from normgeo.optim import NonFiniteError, place
from normgeo.optim.guard import Guard
from normgeo.rules import HeavyBall, Momentum, Plain
from normgeo.steps import Cosine, Linear
from normgeo.testing import check_optimizer


def gpt(dtype=torch.float32):
    torch.manual_seed(0)
    return ng.nn.GPT(vocab_size=7, context=5, width=8, heads=2, depth=2).to(dtype)


IDS = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])


def loss(model):
    return nn.functional.cross_entropy(model(IDS).flatten(0, 1).double(), (IDS.flatten() + 1) % 7)


def train(opt, model, steps=1):
    for _ in range(steps):
        opt.zero_grad()
        loss(model).backward()
        opt.step()


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


OPTIONS = [
    {},
    {"rule": Plain()},
    {"rule": HeavyBall(0.9, nesterov=True), "constraint": Decay(0.1)},
    {"step": Linear(20, warmup=3), "constraint": DecoupledDecay(0.01), "precision": "exact"},
    {"precision": "fast"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_contract(options):
    check_optimizer(
        lambda model: ng.optimizer(model, lr=0.1, **options),
        gpt(),
        loss,
        decays="constraint" in options,
        effort="quick",
    )


@pytest.mark.parametrize("decay", [None, Decay(0.2)])
def test_trajectory_equals_a_plain_loop_over_parameters(decay):
    """Forty steps, float64, exact polar: no stacks, no state buffers, nothing shared with the optimizer but the norms."""
    model, twin = gpt(torch.float64), gpt(torch.float64)
    plan = ng.compile(model)
    opt = plan.optimizer(model, lr=0.1, rule=Momentum(0.9, nesterov=True), constraint=decay, precision="exact")
    momenta = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for _ in range(40):
        train(opt, model)
        twin.zero_grad()
        loss(twin).backward()
        for (name, p), leaf in zip(twin.named_parameters(), plan.leaves, strict=True):
            m = momenta[name] = 0.9 * momenta[name] + 0.1 * p.grad
            d = with_polar(leaf.norm, SVD()).dualize(0.9 * m + 0.1 * p.grad)
            with torch.no_grad():
                p.mul_(1 - 0.1 * (decay.strength if decay else 0)).sub_(0.1 * leaf.radius * d)
    for name, w in weights(model).items():
        torch.testing.assert_close(w, weights(twin)[name], rtol=0, atol=1e-9)
    assert loss(model) < math.log(7) - 0.5


def test_hidden_matrices_move_as_with_torch_muon():
    """Up to the polynomial: torch's Muon with the same momentum, its direction scaled to our radius."""
    torch.manual_seed(0)
    w = ng.nn.Linear(16, 16)
    ours = ng.compile(w).optimizer(w, lr=0.1, rule=Momentum(0.95, nesterov=True), precision="exact")
    start = w.weight.detach().clone()
    v = nn.Parameter(start.clone())
    muon = torch.optim.Muon(
        [v], lr=0.1, weight_decay=0.0, momentum=0.95, nesterov=True, ns_steps=20, ns_coefficients=(1.5, -0.5, 0.0)
    )
    for t in range(5):
        w.weight.grad = gaussian(16, 16, seed=t, dtype=torch.float32)
        v.grad = w.weight.grad.clone()
        ours.step()
        muon.step()
    mine, theirs = (w.weight - start).detach(), (v - start).detach()
    cosine = (mine * theirs).sum() / (mine.norm() * theirs.norm())
    assert cosine > 0.995  # torch's polynomial runs in bfloat16
    assert 0.95 < mine.norm() / theirs.norm() < 1.05


def test_a_step_has_the_size_of_the_learning_rate_in_the_modular_norm():
    model = gpt()
    plan = ng.compile(model)
    opt = plan.optimizer(model, lr=0.25)
    before = weights(model)
    train(opt, model)
    change = {name: w - before[name] for name, w in weights(model).items()}
    # The head starts at 0, so nothing behind it has a gradient in the first step: only the head moves, by a full step.
    torch.testing.assert_close(plan.norm(change), torch.tensor(0.25), rtol=0.01, atol=0)
    train(opt, model, 2)  # outputs of blocks start at 0 too: what is behind them moves from the third step on
    before = weights(model)
    train(opt, model)
    change = {name: w - before[name] for name, w in weights(model).items()}
    for leaf in plan.leaves:
        assert float(leaf.norm.norm(change[leaf.name])) == pytest.approx(0.25 * leaf.radius, rel=0.01)


def test_an_embedding_row_seen_once_moves_at_most_its_share():
    torch.manual_seed(0)
    table = ng.nn.Embedding(6, 4)
    head = ng.nn.Linear(4, 3)
    model = head @ table
    plan = ng.compile(model)
    opt = plan.optimizer(model, lr=1.0, rule=Momentum(0.95))
    start, path = table.weight.detach().clone(), torch.zeros(6)
    for t in range(300):
        opt.zero_grad()
        model(torch.tensor([[5, 1] if t == 0 else [1, 2]])).square().sum().backward()
        before = table.weight.detach().clone()
        opt.step()
        path += RMS().norm(table.weight.detach() - before)
    radius = plan.leaves[0].radius if plan.leaves[0].role == "embedding" else plan.leaves[1].radius
    assert path[5] == pytest.approx(20 * radius, rel=1e-4)  # 1/(1 - β) radii in all, while others moved 300
    assert path[1] == pytest.approx(300 * radius, rel=1e-3)
    assert torch.equal(table.weight[[0, 3, 4]].detach(), start[[0, 3, 4]])


def bad_gradient(model, name="head.weight", value=math.nan):
    loss(model).backward()
    dict(model.named_parameters())[name].grad.flatten()[0] = value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("deferred", [False, True], ids=["host", "device"])
def test_non_finite_gradients_skip_the_step(value, deferred, monkeypatch):
    monkeypatch.setattr(Guard, "deferred", staticmethod(lambda finite: deferred))
    model = gpt()
    opt = ng.optimizer(model, constraint=Decay(0.1), step=Cosine(10))
    train(opt, model, 2)
    before, state = weights(model), copy.deepcopy(opt.state_dict()["state"])
    opt.zero_grad()
    bad_gradient(model, value=value)
    if deferred:
        opt.step()
    with pytest.warns(RuntimeWarning, match=r"NaN or Inf in the gradient of head\.weight: this step was skipped"):
        _ = opt.skipped if deferred else opt.step()
    assert opt.skipped == 1
    for name, w in weights(model).items():
        assert torch.equal(w, before[name]), name
    for index, entries in opt.state_dict()["state"].items():
        for key, tensor in entries.items():
            assert torch.equal(tensor, state[index][key]), key
    train(opt, model)
    assert not torch.equal(model.head.weight, before["head.weight"])


def test_the_device_path_and_the_host_path_agree(monkeypatch):
    model, twin = gpt(), gpt()
    opt, other = ng.optimizer(model), ng.optimizer(twin)
    train(other, twin, 4)
    monkeypatch.setattr(Guard, "deferred", staticmethod(lambda finite: True))
    train(opt, model, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("deferred", [False, True], ids=["host", "device"])
def test_zero_leaves_out_only_the_parameters_concerned(deferred, monkeypatch):
    monkeypatch.setattr(Guard, "deferred", staticmethod(lambda finite: deferred))
    model = gpt()
    opt = ng.optimizer(model, nonfinite="zero")
    train(opt, model, 2)
    before, name = weights(model), "blocks.0.mlp.block.up.weight"
    momentum = opt.state[dict(model.named_parameters())[name]]["rule.momentum"].clone()
    opt.zero_grad()
    bad_gradient(model, name)
    if deferred:
        opt.step()
    with pytest.warns(RuntimeWarning, match="left out of this step"):
        _ = opt.skipped if deferred else opt.step()
    after = weights(model)
    assert torch.equal(after[name], before[name])
    assert torch.equal(opt.state[dict(model.named_parameters())[name]]["rule.momentum"], momentum)
    assert not torch.equal(after["blocks.1.mlp.block.up.weight"], before["blocks.1.mlp.block.up.weight"])
    assert opt.skipped == 0


def test_raise_stops_before_anything_is_touched():
    model = gpt()
    opt = ng.optimizer(model, nonfinite="raise")
    train(opt, model, 2)
    before = weights(model)
    opt.zero_grad()
    bad_gradient(model)
    with pytest.raises(NonFiniteError, match=r"head\.weight; no weight or state was changed"):
        opt.step()
    assert all(torch.equal(w, before[name]) for name, w in weights(model).items())


def test_parameters_without_gradient_stand_still_with_their_state():
    model = gpt()
    opt = ng.optimizer(model, constraint=Decay(0.5))
    train(opt, model, 2)
    name = "blocks.0.mlp.block.up.weight"
    p = dict(model.named_parameters())[name]
    before, momentum, version = p.detach().clone(), opt.state[p]["rule.momentum"].clone(), p._version
    opt.zero_grad()
    loss(model).backward()
    p.grad = None
    opt.step()
    assert torch.equal(p, before)
    assert torch.equal(opt.state[p]["rule.momentum"], momentum)
    assert p._version == version


def test_mass_follows_freezing_and_unfreezing():
    model = gpt()
    plan = ng.compile(model)
    opt = plan.optimizer(model, lr=1.0)
    train(opt, model)
    head = next(leaf for leaf in plan.leaves if leaf.name == "head.weight")

    def head_radius():
        row = next(line for line in opt.describe().splitlines() if line.startswith("head.weight"))
        return float(row.split()[3])

    assert head_radius() == pytest.approx(head.mass / plan.mass, rel=1e-3)
    model.blocks.requires_grad_(False)
    model.zero_grad()
    before = weights(model)
    train(opt, model)
    assert head_radius() == pytest.approx(1 / 2, rel=1e-3)  # only the embedding (1) and the head (1) are left
    assert {n for n, w in weights(model).items() if not torch.equal(w, before[n])} == {"embed.weight", "head.weight"}
    assert ("blocks.0.mlp.block.up.weight", "frozen (requires_grad=False)") in opt.still()
    model.blocks.requires_grad_(True)
    train(opt, model)
    assert head_radius() == pytest.approx(head.mass / plan.mass, rel=1e-3)
    assert ng.compile(model) == plan


def test_frozen_at_compile_keeps_a_leaf_and_starts_when_unfrozen():
    model = gpt()
    model.embed.requires_grad_(False)
    plan = ng.compile(model)
    assert [leaf.trainable for leaf in plan.leaves[:2]] == [False, True]
    assert "frozen" in str(plan)
    opt = plan.optimizer(model)
    before = weights(model)
    train(opt, model, 3)
    assert torch.equal(model.embed.weight, before["embed.weight"])
    model.embed.requires_grad_(True)
    train(opt, model, 2)
    assert not torch.equal(model.embed.weight, before["embed.weight"])


def test_the_schedule_goes_on_when_the_first_parameter_was_frozen_for_a_while():
    model = gpt()
    opt = ng.optimizer(model, step=Linear(100))
    train(opt, model, 3)
    model.embed.requires_grad_(False)
    train(opt, model, 10)
    model.embed.requires_grad_(True)
    train(opt, model, 1)
    assert float(opt.state[model.head.weight]["step"]) == float(opt.state[model.embed.weight]["step"]) == 14


def test_a_leaf_of_mass_zero_is_not_moved_by_its_constraint():
    model = gpt()
    opt = ng.compile(model, masses={"head": 0.0}).optimizer(model, decay=0.5)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    train(opt, model, 2)
    assert (model.head.weight == 1).all()
    assert "mass 0" in opt.describe()


def test_steps_that_round_away_do_not_count_as_moves():
    layer = ng.nn.Linear(4, 4).bfloat16()
    opt = ng.optimizer(layer, lr=1e-6)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer.weight.grad = torch.eye(4).bfloat16()
    opt.step()
    assert "steps too small for its dtype" in opt.describe()


def test_the_count_does_not_depend_on_the_default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = ng.nn.Linear(2, 2)
        opt = ng.optimizer(layer)
        for _ in range(300):
            layer.weight.grad = torch.eye(2)
            opt.step()
        assert float(opt.state[layer.weight]["step"]) == 300
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("size", "dtype"), [(1e40, torch.float64), (1e200, torch.float64), (1e30, torch.float32)])
def test_huge_gradients_are_finite(size, dtype):
    """Also where their squares are not."""
    layer = ng.nn.Linear(2, 2, dtype=dtype)
    opt = ng.optimizer(layer)
    layer.weight.grad = torch.full((2, 2), size, dtype=dtype)
    opt.step()
    assert opt.skipped == 0


def test_a_learning_rate_that_turns_nan_is_refused_before_anything_moves():
    model = gpt()
    plan = ng.compile(model)
    opt = plan.optimizer(plan.groups({"head": {"lr": 0.1}}))
    train(opt, model)
    before = weights(model)
    opt.param_groups[1]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr must be a finite number"):
        train(opt, model)
    assert all(torch.equal(w, before[name]) for name, w in weights(model).items())


def test_parts_without_a_repr_of_their_own_resume():
    class Positive(ng.constraints.Constraint):
        def retract(self, W, old, rate, state):
            return W.clamp_min(0)

    model = gpt()
    opt = ng.optimizer(model, constraint=Positive())
    train(opt, model)
    ng.optimizer(model, constraint=Positive()).load_state_dict(opt.state_dict())


def test_groups_have_their_own_lr_and_can_be_added():
    model = gpt()
    plan = ng.compile(model)
    opt = plan.optimizer(plan.groups({"head": {"lr": 0.0}}), lr=0.1)
    before = weights(model)
    train(opt, model, 2)
    assert torch.equal(model.head.weight, before["head.weight"])
    assert ("head.weight", "lr 0") in opt.still()

    body, late = [leaf.parameter for leaf in plan.leaves[:-1]], plan.groups(only=["head"])
    opt = plan.optimizer(plan.groups(only=body))
    train(opt, model, 2)
    opt.add_param_group({**late[0], "lr": 0.3})
    assert opt.param_groups[1]["lr"] == 0.3
    before = weights(model)
    train(opt, model)
    assert not torch.equal(model.head.weight, before["head.weight"])
    with pytest.raises(ValueError, match=r"no geometry; write plan = plan\.extend\(model\)"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_keep_float32_state_through_a_checkpoint(dtype):
    model = gpt().to(dtype)
    opt = ng.optimizer(model, lr=0.1)
    train(opt, model, 3)
    p = model.head.weight
    assert opt.state[p]["rule.momentum"].dtype == torch.float32
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(model)
    resumed = ng.optimizer(twin, lr=0.1)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.state[twin.head.weight]["rule.momentum"].dtype == torch.float32
    train(opt, model, 3)
    train(resumed, twin, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_checkpoint_of_another_structure_is_refused_with_the_difference():
    model = gpt()
    saved = ng.optimizer(model).state_dict()
    wider = ng.nn.GPT(7, 5, 16, 2, 2)
    with pytest.raises(
        ValueError,
        match=r"embed\.weight is embedding, L1ToRMS\(\), view none, \(7, 16\) here and .* \(7, 8\) there",
    ):
        ng.optimizer(wider).load_state_dict(saved)
    with pytest.raises(ValueError, match="is not in the checkpoint"):
        ng.optimizer(ng.nn.GPT(7, 5, 8, 2, 3)).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"made with rule=Momentum.*, this optimizer has rule=HeavyBall"):
        ng.optimizer(model, rule=HeavyBall(0.9)).load_state_dict(saved)
    with pytest.raises(ValueError, match="not saved by a normgeo optimizer"):
        ng.optimizer(model).load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
    with pytest.warns(UserWarning, match="continuing with rule=Momentum\\(beta=0.9"):
        ng.optimizer(model, rule=Momentum(0.9)).load_state_dict(saved)
    ng.optimizer(model, precision="exact").load_state_dict(saved)


def test_the_checkpoints_masses_win():
    model = gpt()
    opt = ng.compile(model, masses={"head": 7.0}).optimizer(model, lr=0.1)
    train(opt, model, 2)
    plain = ng.optimizer(model, lr=0.1)
    with pytest.warns(UserWarning, match="masses or radii of 1 leaves .* the checkpoint's are used"):
        plain.load_state_dict(opt.state_dict())
    assert plain.describe() == opt.describe()


def test_torch_distributed_checkpoint_reads_and_restores():
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    for options in (StateDictOptions(), StateDictOptions(flatten_optimizer_state_dict=True)):
        model = gpt()
        opt = ng.optimizer(model, lr=0.1, constraint=Decay(0.5))
        before = weights(model)
        get_optimizer_state_dict(model, opt, options=options)  # takes a hidden step with zero gradients and lr = 0
        assert all(torch.equal(w, before[name]) for name, w in weights(model).items())
        train(opt, model, 3)
        saved = copy.deepcopy(get_optimizer_state_dict(model, opt, options=options))
        twin = copy.deepcopy(model)
        resumed = ng.optimizer(twin, lr=0.1, constraint=Decay(0.5))
        set_optimizer_state_dict(twin, resumed, saved, options=options)
        train(opt, model, 2)
        train(resumed, twin, 2)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_torch_schedulers_and_ours_are_the_same():
    model, twin = gpt(torch.float64), gpt(torch.float64)
    opt, other = ng.optimizer(model, lr=0.2, step=Linear(10)), ng.optimizer(twin, lr=0.2)
    scheduler = torch.optim.lr_scheduler.LinearLR(other, 1.0, 0.0, total_iters=10)
    for _ in range(10):
        train(opt, model)
        train(other, twin)
        scheduler.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_decoupled_decay_follows_any_schedule_and_not_the_lr():
    for lr in (0.01, 1.0):
        layer = ng.nn.Linear(4, 4)
        opt = ng.optimizer(layer, lr=lr, constraint=DecoupledDecay(0.1))
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1.0 if t == 0 else 0.5)
        for factor in (0.9, 0.95):
            before = layer.weight.detach().clone()
            layer.weight.grad = torch.zeros_like(layer.weight)
            opt.step()
            scheduler.step()
            torch.testing.assert_close(layer.weight.detach(), factor * before)


def test_moving_and_casting_the_model_is_noticed():
    model = gpt()
    opt = ng.optimizer(model, lr=0.1)
    train(opt, model, 2)
    momentum = opt.state[model.head.weight]["rule.momentum"].clone()
    model.double()
    train(opt, model, 1)
    assert opt.state[model.head.weight]["rule.momentum"].dtype == torch.float64
    assert model.head.weight.dtype == torch.float64
    assert not torch.equal(momentum.double(), opt.state[model.head.weight]["rule.momentum"])


def test_gradients_are_left_as_they_are():
    model = gpt()
    opt = ng.optimizer(model)
    loss(model).backward()
    before = [p.grad.clone() for p in model.parameters()]
    opt.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_describe_says_what_moved():
    model = gpt()
    opt = ng.optimizer(model)
    train(opt, model, 3)
    lines = opt.describe().splitlines()
    assert lines[0].split() == ["leaf", "role", "lr", "radius", "moved"]
    moved = {line.split()[0]: int(line.split()[4]) for line in lines[1:]}
    assert moved["head.weight"] == 3
    model.head.requires_grad_(False)
    assert next(line for line in opt.describe().splitlines() if line.startswith("head")).split()[4:6] == ["3", "frozen"]
    assert repr(opt).splitlines()[1].startswith("  group 0: 14 parameters, lr=0.2, Momentum(beta=0.9, nesterov=True)")
    assert moved["blocks.0.mlp.block.up.weight"] == 1  # the head was 0 in the first step, and "down" in the second


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, "lr must be a finite number ≥ 0"),
        ({"lr": math.nan}, ValueError, "lr must be a finite number ≥ 0"),
        ({"rule": 0.9}, TypeError, "rule= takes a normgeo Rule, got 0.9"),
        ({"constraint": Linear(3)}, TypeError, "constraint= takes a normgeo Constraint"),
        ({"nonfinite": "ignore"}, ValueError, 'one of "skip", "zero", "raise"'),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ng.optimizer(gpt(), **options)


def test_sparse_and_complex_are_refused_by_name():
    layer = ng.nn.Linear(2, 2)
    opt = ng.optimizer(layer)
    layer.weight.grad = torch.eye(2).to_sparse()
    with pytest.raises(ValueError, match="the gradient of weight is sparse"):
        opt.step()
    complex_layer = ng.nn.Linear(2, 2, zero=True, dtype=torch.complex64)
    with pytest.raises(ValueError, match="weight is complex"):
        ng.optimizer(complex_layer)


def test_a_wrong_shape_is_refused():
    plan = ng.compile(ng.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"weight has shape \(3, 2\), but the plan was made for \(2, 2\)"):
        plan.optimizer(ng.nn.Linear(2, 3))


def test_leaves_of_one_norm_and_shape_are_one_stack():
    """Two tables of one shape are one stack; their norms are the same value."""
    torch.manual_seed(0)
    model = ng.nn.Sequential(sum=ng.nn.Sum(a=ng.nn.Embedding(4, 4), b=ng.nn.Embedding(4, 4)), head=ng.nn.Linear(4, 2))
    opt = ng.optimizer(model)
    model(torch.tensor([[1, 2]])).sum().backward()
    opt.step()
    assert {stack.norm: len(stack) for stack in opt._bound[0].stacks} == {L1ToRMS(): 2, RMSToRMS(): 1}


def test_stacks_that_fit_the_cache_move_weights_as_whole_ones_do(monkeypatch):
    model, twin = gpt(), gpt()
    whole, pieces = ng.optimizer(model), ng.optimizer(twin)
    train(whole, model, 3)
    monkeypatch.setitem(place.MOST, "cpu", 130)
    train(pieces, twin, 3)
    assert len(pieces._bound[0].stacks) > len(whole._bound[0].stacks)
    most = [max(len(stack) for stack in opt._bound[0].stacks) for opt in (pieces, whole)]
    assert most[0] < most[1]
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_no_warning_in_ordinary_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = gpt()
        opt = ng.optimizer(model)
        train(opt, model, 2)
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        train(opt, model, 1)


class OneAtATime(ng.optim.Direction):
    """Sees to it that no direction made before is still alive."""

    def __init__(self):
        self.made = []

    def __call__(self, M, state, W):
        assert not any(ref() is not None for ref in self.made)
        D = M.clone()
        self.made.append(weakref.ref(D))
        return D


def test_a_step_has_the_tensors_of_one_stack_at_a_time():
    watch, model = OneAtATime(), gpt()
    train(ng.compile(model).optimizer(model, direction=watch), model)
    assert len(watch.made) > 2
