"""Measured sensitivities against exact ones, and the radii that follow where networks start at zero."""

import copy
import itertools
import math

import pytest
import torch
from helpers import drawn, gaussian, seeds
from hypothesis import given, settings
from torch import nn
from torch.nn import functional

import normgeo as ng
from normgeo.geometry import GeometryError, Graph, Leaf, bound, differentiable, measure, norming, register, typical
from normgeo.geometry.measure import CAP, FLOOR
from normgeo.nn import Bias, Gain, Linear, Tanh
from normgeo.norms import RMS, L1ToRMS, Linf, RMSToRMS
from normgeo.testing import check_geometry


def products(model, x, **options):
    plan = ng.compile(model)
    return measure(model, plan.leaves, plan.find(model), (x,), axis=plan.axis, **options).products


# ---- the estimator


def test_linear_networks_are_measured_up_to_the_choice_of_the_token():
    """‖Δ₁ ↦ W₂Δ₁x‖ = ‖W₂‖·max RMS(x), ‖Δ₂ ↦ Δ₂W₁x‖ = max RMS(W₁x)."""
    torch.manual_seed(0)
    model = (Linear(6, 4) @ Linear(5, 6)).double()
    with torch.no_grad():
        model[0].weight.copy_(gaussian(6, 5))
        model[1].weight.copy_(gaussian(4, 6, seed=1))
    x = gaussian(7, 3, 5, seed=2)
    found = products(model, x, draws=1)
    first = RMSToRMS().norm(model[1].weight) * x.square().mean(-1).sqrt().max()
    second = (x @ model[0].weight.mT).square().mean(-1).sqrt().max()
    assert 0.9 * first < found["0.weight"] <= first * (1 + 1e-9)
    assert 0.9 * second < found["1.weight"] <= second * (1 + 1e-9)


@given(seeds)
@settings(max_examples=4)
def test_estimates_are_below_the_exact_norm_and_near_it(seed):
    """Of a bias and of a gain the norm is known: max over tokens of σ_max(J_t) up to widths, and the largest over signs."""
    torch.manual_seed(seed)
    model = drawn(Linear(6, 4) @ Tanh() @ Gain(6) @ Bias(6) @ Linear(3, 6))
    x = gaussian(5, 3, seed=seed)
    found = products(model, x, draws=1)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    dense = torch.func.jacrev(lambda ws: torch.func.functional_call(model, ws, (x,)))(weights)
    bias = (torch.linalg.matrix_norm(dense["1.weight"], 2) * math.sqrt(6 / 4)).max()
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64)
    gain = (dense["2.weight"] @ signs.mT).square().mean(1).sqrt().max()
    for name, exact in (("1.weight", bias), ("2.weight", gain)):
        assert 0.8 * exact < found[name] <= exact * (1 + 1e-9)


def alone(model, leaf, x, axis, starts):
    """‖J_ℓ‖ by the power method for one leaf from many starts, each token in turn."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    norm = ng.norms.with_polar(leaf.norm, ng.linalg.SVD())

    def f(w):
        return torch.func.functional_call(model, {**weights, leaf.parameter: w}, (x,))

    w = weights[leaf.parameter]
    y, pull = torch.func.vjp(f, w)
    tokens = y.movedim(axis, -1).flatten(0, -2)

    def start(k):
        u = torch.zeros_like(tokens)
        u[k % len(tokens)] = gaussian(tokens.shape[-1], seed=k)
        return norm.dualize(pull(u.reshape(y.movedim(axis, -1).shape).movedim(-1, axis))[0])

    with differentiable():
        return ng.linalg.steepest_gain(
            lambda d: torch.func.jvp(f, (w,), (d,))[1],
            lambda u: pull(u)[0],
            lambda y: norming(y, axis),
            norm.dualize,
            [start(k) for k in range(starts)],
            iterations=6,
        )


NETWORKS = {
    "MLP": (lambda depth: ng.nn.MLP(6, 12, 5, depth=depth), lambda: gaussian(8, 6)),
    "CNN": (lambda depth: ng.nn.ResCNN(3, 6, 5, depth=depth), lambda: 1 + 0.5 * gaussian(2, 3, 6, 6)),
    "GPT": (lambda depth: ng.nn.GPT(11, 6, 8, 2, depth), lambda: torch.arange(12).reshape(2, 6) * 5 % 11),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_backward_for_all_leaves_is_near_the_power_method_leaf_by_leaf(name):
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    model, x = drawn(make(1 if name == "GPT" else 2)), inputs()
    plan = ng.compile(model, (x,))
    found = products(model, x, draws=1)
    ratios = [found[leaf.name] / alone(model, leaf, x, plan.axis, starts=3) for leaf in plan.leaves]
    assert sum(ratios) / len(ratios) > 0.85
    assert min(ratios) > 0.4


def test_history_has_every_backward_and_the_product_is_its_maximum():
    model, x = ng.nn.MLP(4, 8, 2).double(), gaussian(5, 4)
    plan = ng.compile(model)
    found = measure(model, plan.leaves, plan.find(model), (x,), backwards=10, draws=3)
    assert found.backwards == 10
    assert all(len(each) == 10 and max(each) == found.products[name] for name, each in found.history.items())
    again = measure(model, plan.leaves, plan.find(model), (x,), backwards=10, draws=3)
    assert again.history == found.history
    for bad in ({"draws": 0}, {"draws": 5, "backwards": 4}):
        with pytest.raises(ValueError, match="draws must be ≥ 1"):
            measure(model, plan.leaves, plan.find(model), (x,), **bad)


@given(seeds)
def test_norming_functionals(seed):
    y = gaussian(3, 4, 5, seed=seed)
    for axis in (-1, -3):
        u = norming(y, axis)
        sizes = y.square().mean(axis).sqrt()
        torch.testing.assert_close((u * y).sum(), sizes.max())
        dual = (u.square().sum(axis) * y.shape[axis]).sqrt().sum()
        torch.testing.assert_close(dual, torch.tensor(1.0, dtype=y.dtype))
    u = norming(y, norm=Linf())
    torch.testing.assert_close((u * y).sum(), y.abs().max())
    assert u.abs().sum() == 1
    assert not norming(torch.zeros(2, 3)).any()


def test_logits_can_be_measured_by_their_largest_entry():
    model, x = Linear(3, 4).double(), gaussian(6, 3)
    plan = ng.compile(model)
    found = measure(model, plan.leaves, plan.find(model), (x,), output_norm=Linf(), draws=1)
    exact = x.square().mean(-1).sqrt().max() * 2  # W of norm 1 has rows of at most √(4/3)·1: ⟨row, x⟩ ≤ √4·RMS(x)
    assert found.products["weight"] == pytest.approx(float(exact), rel=1e-6)


# ---- any module, any dtype


def recordable(name):
    torch.manual_seed(0)
    if name == "transformer":
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.Sequential(nn.Embedding(11, 8), layer, nn.Linear(8, 11))
    if name == "images":
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("name", "x"), [("MLP", NETWORKS["MLP"]), ("images", NETWORKS["CNN"]), ("transformer", NETWORKS["GPT"])]
)
def test_recorded_models_are_measured_and_keep_the_promise(name, x):
    model, x = recordable(name).double().eval(), x[1]()
    plan = ng.compile(model, (x,), sensitivity="measured")
    assert all(leaf.source.startswith("measured") and FLOOR < leaf.radius <= CAP for leaf in plan.leaves)
    assert 0.2 < check_geometry(model, (x,), plan=plan, starts=2) <= 1.05


class Swish(torch.autograd.Function):
    """Without a forward derivative, and differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return g * s * (1 + x * (1 - s))


class Stranger(nn.Module):
    """Named arguments, a dict for an output, dropout, a buffer that counts, and an operation without forward derivative."""

    def __init__(self, own=True):
        super().__init__()
        self.up, self.down, self.own = nn.Linear(4, 8), nn.Linear(8, 3, bias=False), own
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, *, scale):
        self.calls += 1
        h = self.norm(self.up(x))
        h = Swish.apply(h) if self.own else functional.silu(h)
        return {"logits": scale * self.down(self.drop(h)), "loss": None}


def leaves_of(module):
    out = []
    for name, p in module.named_parameters():
        norm = RMSToRMS() if p.ndim == 2 else RMS()
        out.append(Leaf(name, name, tuple(p.shape), "linear", norm, trainable=p.requires_grad))
    return out


def test_any_module_can_be_measured_and_nothing_of_it_changes():
    torch.manual_seed(0)
    model = Stranger().double()
    model.norm.eval()
    model.up.bias.requires_grad_(False)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    state = torch.random.get_rng_state()
    x, kwargs = gaussian(5, 4), {"scale": 2.0}
    found = measure(
        model, leaves_of(model), dict(model.named_parameters()), (x,), kwargs, output=lambda out: out["logits"]
    )
    assert torch.equal(state, torch.random.get_rng_state())
    other = Stranger(own=False).double()
    other.load_state_dict(before)
    other.up.bias.requires_grad_(False)
    same = measure(
        other, leaves_of(model), dict(other.named_parameters()), (x,), kwargs, output=lambda out: out["logits"]
    )
    for name in found.products:
        assert found.products[name] == pytest.approx(same.products[name], rel=0.05)
    assert calls
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert modes == [m.training for m in model.modules()]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert len(model._forward_hooks) == 1
    by_default = measure(model, leaves_of(model), dict(model.named_parameters()), (x,), kwargs)
    assert by_default == found


def test_a_model_that_fails_is_left_as_it_was():
    model = ng.nn.MLP(4, 8, 2).train()
    plan = ng.compile(model)
    with pytest.raises(RuntimeError):
        plan.refresh(model, (torch.ones(1, 3),))
    assert model.training
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.raises(GeometryError, match="NaN or Inf"):
        plan.refresh(model, (torch.ones(1, 4),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_measured_in_the_dtype_of_the_model(dtype):
    torch.manual_seed(0)
    model = drawn(ng.nn.GPT(11, 6, 8, 2, 1)).to(dtype)
    found = products(model, NETWORKS["GPT"][1]())
    exact = products(copy.deepcopy(model).double(), NETWORKS["GPT"][1]())
    loose = 0.5 if dtype == torch.bfloat16 else 0.1  # rounding may lead the search another way
    for name in found:
        assert found[name] == pytest.approx(exact[name], rel=loose)


def fused(x):
    return nn.MultiheadAttention(8, 2, batch_first=True)(x, x, x)[0]


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 8, dtype=torch.bfloat16))

    def forward(self, x):
        ends = torch.tensor([2, 6, 10], dtype=torch.int32)
        return functional.grouped_mm(x.flatten(0, 1).bfloat16(), self.weight, offs=ends)


RELUCTANT = {
    "lstm": lambda: nn.LSTM(8, 8),
    "gru": lambda: nn.GRU(8, 8),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, batch_first=True, dropout=0.0).eval(),
    "grouped": Grouped,
}


@pytest.mark.parametrize("name", RELUCTANT)
def test_differentiable_gives_forward_derivatives_and_restores_everything(name):
    torch.manual_seed(0)
    model, x = RELUCTANT[name](), torch.randn(2, 5, 8)
    weights = {n: p.detach() for n, p in model.named_parameters()}

    def f(ws):
        out = torch.func.functional_call(model, ws, (x,))
        return out[0] if isinstance(out, tuple) else out

    def state():
        backends = torch.backends
        return backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled

    before, plain = state(), f(weights)
    with differentiable():
        y, tangent = torch.func.jvp(f, (weights,), (weights,))
        assert state()[1:] == before[1:]
    assert state() == before
    torch.testing.assert_close(y.float(), plain.float(), rtol=1e-2, atol=1e-2 if name == "grouped" else 1e-5)
    step = 1e-2
    moved = f({n: w * (1 + step) for n, w in weights.items()}).float() - f(
        {n: w * (1 - step) for n, w in weights.items()}
    )
    if name != "grouped":  # bfloat16 does not see so small a step
        torch.testing.assert_close(tangent, moved / (2 * step), rtol=5e-2, atol=5e-2)
    else:
        torch.testing.assert_close(tangent, y)  # linear in its one weight


def test_grouped_products_are_torchs():
    ends = torch.tensor([4, 6, 10], dtype=torch.int32)
    a, b = torch.randn(10, 8).bfloat16(), torch.randn(3, 8, 8).bfloat16()
    cases = [
        (a, b, ends),
        (torch.randn(3, 6, 8).bfloat16(), b, None),
        (torch.randn(3, 8, 8).bfloat16(), torch.randn(8, 16).bfloat16(), torch.tensor([4, 8, 16], dtype=torch.int32)),
        (torch.randn(8, 16).bfloat16(), torch.randn(16, 8).bfloat16(), torch.tensor([4, 8, 16], dtype=torch.int32)),
    ]
    for left, right, offs in cases:
        plain = functional.grouped_mm(left, right, offs=offs)
        with differentiable():
            torch.testing.assert_close(functional.grouped_mm(left, right, offs=offs), plain, rtol=2e-2, atol=2e-2)


# ---- radii where networks start at zero


class LoRA(nn.Module):
    """W x + B A x with B = 0 and W frozen."""

    def __init__(self, width=8, rank=2):
        super().__init__()
        self.w = nn.Parameter(RMSToRMS().init((width, width)), requires_grad=False)
        self.a = nn.Parameter(RMSToRMS().init((rank, width)))
        self.b = nn.Parameter(torch.zeros(width, rank))

    def forward(self, x):
        return x @ self.w.mT + x @ self.a.mT @ self.b.mT


@register(LoRA)
def _(module, graph: Graph, x):
    low = graph.op("A", x, features=2)
    high = graph.op("B", low, features=8)
    out = graph.op("add", graph.op("W", x), high)
    graph.use(module.w, out, role="linear", norm=RMSToRMS())
    graph.use(module.a, low, role="linear", norm=RMSToRMS())
    graph.use(module.b, high, role="linear", norm=RMSToRMS())
    return out


class LayerScale(nn.Module):
    """x + γ ⊙ f(x) with γ = 1e-6."""

    def __init__(self, start=1e-6):
        super().__init__()
        self.f, self.gain = Linear(8, 8), Gain(8)
        nn.init.constant_(self.gain.weight, start)

    def forward(self, x):
        return x + self.gain(self.f(x))


@register(LayerScale)
def _(module, graph: Graph, x):
    inner = ng.geometry.trace(module.f, graph, x, name="f")
    return graph.op(
        "add", x, ng.geometry.trace(module.gain, graph, inner, name="gain"), slots=(bound(1.0), typical(1.0))
    )


ZEROS = {
    "zero head": lambda: ng.nn.GPT(11, 6, 8, 2, 2),
    "LoRA": lambda: ng.nn.Sequential(*(LoRA() for _ in range(3))),
    "layer scale": lambda: ng.nn.Sequential(*(LayerScale() for _ in range(3))),
    "zero gain": lambda: ng.nn.Sequential(LayerScale(0.0), Linear(8, 4, zero=True)),
}


@pytest.mark.parametrize("name", ZEROS)
def test_weights_that_start_at_zero_lead_to_sensible_radii(name):
    torch.manual_seed(0)
    model = ZEROS[name]()
    x = NETWORKS["GPT"][1]() if name == "zero head" else functional.rms_norm(torch.randn(16, 8), (8,))
    plan = ng.compile(model, (x,), sensitivity="measured")
    moving = [leaf for leaf in plan.leaves if leaf.trainable]
    assert all(leaf.source.startswith("measured") for leaf in moving)
    shares = {leaf.name: leaf.mass / plan.mass for leaf in moving}
    for leaf in moving:
        assert 0.05 * shares[leaf.name] < leaf.radius <= CAP
        assert math.isfinite(leaf.reach)
    # One step of size 1 along the worst direction that the gradients of a random loss show stays near the promise.
    model.double()
    target = x.double() if x.is_floating_point() else x
    before = model(target)
    (before * gaussian(*before.shape)).sum().backward()
    step = plan.dualize({n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()})
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.add_(step[n])
        change = (model(target) - before).square().mean(-1).sqrt().max()
    assert 0.01 < change < 1.5


def test_a_leaf_that_does_nothing_has_the_largest_radius_and_says_so():
    class Ignored(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return (x + self.bias) - self.bias

    @register(Ignored)
    def _(module, graph, x):
        out = graph.op("nothing", x)
        graph.use(module.bias, out, role="bias", norm=RMS())
        return out

    plan = ng.compile(Linear(3, 2) @ Ignored(), (torch.ones(1, 3),), sensitivity="measured")
    assert plan.leaves[0].radius == CAP
    assert plan.leaves[0].source == "measured (cap)"
    assert f"floor {FLOOR:g} to cap {CAP:g}" in str(plan)
    steep = ng.compile(ng.nn.Mul(1e9) @ Linear(3, 2), (torch.ones(1, 3),), sensitivity="measured", masses={"*": 1.0})
    assert steep.leaves[0].radius == FLOOR
    assert steep.leaves[0].source == "measured (floor)"


# ---- plans


@pytest.mark.parametrize("name", NETWORKS)
def test_the_promise_of_measured_plans(name):
    attack(name, 2, starts=2)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 4, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_promise_of_measured_plans_at_any_depth(name, depth):
    found = [attack(name, depth, starts=10, seed=seed) for seed in range(2)]
    print(f"{name} {depth}: {max(found):.2f}")


def test_where_the_search_stays_far_below_a_measured_promise_the_cap_does():
    """White noise averages out: x·μ is so small that radii are at the cap of 1, and what is left is Σ r·‖J_ℓ‖."""
    torch.manual_seed(0)
    model, x = drawn(ng.nn.ResCNN(3, 6, 5, depth=1)), gaussian(2, 3, 6, 6)
    plan = ng.compile(model, (x,)).refresh(model, (x,), draws=1)
    assert any(leaf.source == "measured (cap)" for leaf in plan.leaves)
    most = sum(
        leaf.radius * product for leaf, product in zip(plan.leaves, products(model, x, draws=1).values(), strict=True)
    )
    assert 0.5 * most <= check_geometry(model, (x,), plan=plan, starts=2, iterations=8) <= most * 1.05 < 0.5


def attack(name, depth, starts, seed=0):
    """With every weight at norm 1, so that no path is closed."""
    torch.manual_seed(seed)
    make, inputs = NETWORKS[name]
    model, x = drawn(make(depth)), inputs()
    plan = ng.compile(model, (x,), sensitivity="measured")
    found = check_geometry(model, (x,), plan=plan, starts=starts, seed=seed)
    assert 0.2 <= found <= 1.05
    return found


def test_refresh_measures_again_and_keeps_what_was_given():
    torch.manual_seed(0)
    model, x = drawn(ng.nn.MLP(4, 8, 2)).float(), gaussian(6, 4).float()
    plan = ng.compile(model, masses={"2": 2.0, "4": 0.0}, radii={"0": 0.125})
    found = plan.refresh(model, (x,))
    assert [leaf.source for leaf in found.leaves] == ["radius given", "measured", "measured"]
    assert found.leaves[0] == plan.leaves[0]
    assert [leaf.mass for leaf in found.leaves] == [1.0, 2.0, 0.0]
    assert found.leaves[2].radius == 0
    assert found.leaves[1].radius == pytest.approx(2 / 3 * found.leaves[1].reach)
    assert found == plan.refresh(model, (x,))
    assert ng.Plan.from_json(found.to_json()) == found == copy.deepcopy(found)
    twice = plan.refresh(model, (2 * x,))
    assert twice.leaves[1].radius == pytest.approx(found.leaves[1].radius / 2, rel=0.1)
    assert len(found.optimizer(model).param_groups[0]["params"]) == 3
    with pytest.raises(TypeError, match=r"write plan.refresh\(model, \(x,\)\)"):
        plan.refresh(model, x)
    loaded = ng.Plan.from_json(plan.to_json())
    assert loaded.refresh(model, (x,)).leaves == found.leaves


def test_a_measured_plan_is_extended_by_measuring():
    torch.manual_seed(0)
    x = torch.ones(1, 4)
    trunk = Linear(4, 4)
    plan = ng.compile(trunk, (x,), sensitivity="measured")
    grown = plan.extend(Linear(4, 2) @ trunk)
    assert [leaf.source for leaf in grown.leaves] == ["measured", "measured"]


def test_named_arguments_and_given_norms_are_measured_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = Linear(4, 2, norm=RMSToRMS())

        def forward(self, x=None):
            return self.map(x)

    register(Named)(lambda module, graph, x: ng.geometry.trace(module.map, graph, x, name="map"))
    model = Named()
    plan = ng.compile(model, norms={"map": 0.5 * RMSToRMS()})
    assert plan.leaves[0].source == "norm given"
    found = plan.refresh(model, {"x": torch.ones(3, 4)})
    assert found.leaves[0].source == "measured"
    assert found.leaves[0].radius == pytest.approx(0.5, rel=1e-3)


def test_holds_looks_at_inputs():
    model = Linear(3, 2)
    plan = ng.compile(model, (2 * torch.ones(1, 3),))
    assert plan.holds(model, (2 * torch.ones(4, 3),))
    assert not plan.holds(model, (3 * torch.ones(4, 3),))
    assert plan.holds(model, (3 * torch.ones(4, 3),)).reasons == ("input 0: its size is 3, and the plan is for 2",)
    assert plan.holds(model, (torch.ones(1, 3), torch.ones(1, 3))).reasons == ("2 inputs, but the plan is for 1",)
    measured = plan.refresh(model, (torch.ones(1, 3),))
    assert str(measured.holds(model)) == "weight: x·μ is measured, a lower estimate"
    assert str(plan.holds(model)) == "holds"


def test_an_embedding_is_measured_at_the_tokens_that_occur():
    model = ng.nn.Embedding(9, 4).double()
    found = products(model, torch.tensor([[1, 2]]), draws=1)
    assert found["weight"] == pytest.approx(1.0)  # a unit row is a unit output
    assert isinstance(model.norm, L1ToRMS)
