"""Traced bounds against a search for the worst case: of every operation alone, of weights, and of whole models."""

import logging
import math

import models
import pytest
import torch
from helpers import drawn, gaussian
from torch import nn
from torch.nn import functional

import normgeo as ng
from normgeo.geometry import GeometryError, Leaf, Measure, bound, differentiable, norming
from normgeo.geometry.bounds import bounds
from normgeo.geometry.bounds.local import Local, Root, Source, Term, stretch
from normgeo.geometry.outputs import choose
from normgeo.geometry.record import record
from normgeo.linalg import SVD, steepest_gain
from normgeo.norms import RMS, Blocks, Conv, L1ToRMS, Linf, RMSToRMS, with_polar
from normgeo.testing import check_geometry

T, D = 4, 6


class Changed(nn.Module):
    """f(x + p): a change of p is any change of what f is given, in the norm of p."""

    def __init__(self, f, x, *more):
        super().__init__()
        self.f, self.p = f, nn.Parameter(torch.zeros_like(x))
        self.register_buffer("x", x)
        self.more = nn.ParameterList(more)

    def forward(self):
        return self.f(self.p + self.x, *self.more)


def worst(model, leaf, axis, starts=6, iterations=12):
    """max ‖JΔ‖ over ‖Δ‖_ℓ ≤ 1 by the power method, at every token in turn."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    norm, w = with_polar(leaf.norm, SVD()), weights[leaf.parameter]

    def f(w):
        return torch.func.functional_call(model, {**weights, leaf.parameter: w}, ())

    def dual(g):
        out = torch.zeros_like(g)
        leaf.write(out, norm.dualize(leaf.read(g)))
        return out

    with differentiable():
        y, pull = torch.func.vjp(f, w)
        moved = y.movedim(axis, -1) if y.ndim else y.reshape(1)

        def start(k):
            u = torch.zeros_like(moved).reshape(-1, moved.shape[-1])
            u[k % len(u)] = gaussian(u.shape[-1], seed=k)
            return dual(pull(u.reshape(moved.shape).movedim(-1, axis) if y.ndim else u.reshape(()))[0])

        return steepest_gain(
            lambda d: torch.func.jvp(f, (w,), (d,))[1],
            lambda u: pull(u)[0],
            lambda y: norming(y, axis) if y.ndim else y.sign(),
            dual,
            [start(k) for k in range(starts)],
            iterations=iterations,
        )


def traced(model, leaves, axis=-1):
    return bounds(record(model, ()), leaves, dict(model.named_parameters()), axis)


def compare(model, leaf, axis=-1, tight=0.0):
    found = traced(model, [leaf], axis)
    product = found.products[leaf.name]
    assert product.known == "bound"
    assert not found.assumed
    ratio = worst(model, leaf, axis) / product.value
    assert tight <= ratio <= 1 + 1e-6
    return ratio


def rotary(x):
    angles = torch.outer(torch.arange(T, dtype=x.dtype), torch.arange(1, D // 2 + 1, dtype=x.dtype))
    cos, sin = (torch.cat([y, y], -1) for y in (angles.cos(), angles.sin()))
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def rms_norm(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def attention(x):
    q, k, v = x[:, :2], x[:, 2:4], x[:, 4:]
    return functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]


def by_hand(x):
    q, k, v = (y.reshape(T, 2, 1).transpose(0, 1) for y in x.chunk(3, -1))
    p = torch.softmax(q @ k.transpose(-1, -2), -1)
    return (p @ v).transpose(0, 1).reshape(T, 2)


def spread(x):
    out = torch.zeros(T + 2, D, dtype=x.dtype)
    out[1 : T + 1] = 2 * x
    return out.index_add(0, torch.tensor([0, 3, 2, 5]), x)


def inplace(x):
    y = 2 * x
    y *= x.sigmoid()
    return functional.silu(y, inplace=True)


W = gaussian(5, D, seed=3)
KERNEL = gaussian(4, D, 3, seed=4)
IDS = torch.tensor([[0, 2, 2], [3, 1, 0]])

ALONE = {
    # what f does, the axis of its features, and how near to the bound the search comes at least
    "relu": (torch.relu, -1, 1.0),
    "silu": (functional.silu, -1, 1.0),
    "tanh gelu": (lambda x: 0.5 * x * (1 + torch.tanh(0.797 * (x + 0.0447 * x.pow(3)))), -1, 0.9),
    "x·sigmoid(x)": (lambda x: x * x.sigmoid(), -1, 1.0),
    "square": (lambda x: x * x, -1, 0.99),
    "exp": (torch.exp, -1, 1.0),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), -1, 1.0),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), -1, 1.0),
    "maximum": (lambda x: torch.maximum(x, -2 * x), -1, 1.0),
    "glu": (functional.glu, -1, 0.5),
    "residual": (lambda x: x + functional.linear(x, torch.eye(D).double()), -1, 0.99),
    "gate": (lambda x: torch.tanh(functional.linear(x, W)) * functional.linear(x, W), -1, 0.2),
    "rms_norm": (lambda x: functional.rms_norm(x, (D,)), -1, 0.99),
    "rms_norm by hand": (rms_norm, -1, 0.99),
    "layer_norm": (lambda x: functional.layer_norm(x, (D,)), -1, 0.99),
    "group_norm": (lambda x: functional.group_norm(x.T[None], 2)[0].T, -1, 0.1),
    "batch_norm": (lambda x: functional.batch_norm(x, torch.zeros(D).double(), torch.ones(D).double()), -1, 0.99),
    "normalize": (lambda x: functional.normalize(x, dim=-1), -1, 0.99),
    "softmax": (lambda x: torch.softmax(x, -1), -1, 0.02),
    "log_softmax": (lambda x: torch.log_softmax(x, -1), -1, 0.1),
    "logsumexp": (lambda x: x.logsumexp(-1, keepdim=True), -1, 0.2),
    "attention": (attention, -1, 0.02),
    "attention by hand": (by_hand, -1, 0.02),
    "scores": (lambda x: x @ functional.linear(x, torch.eye(D).double()).T, -1, 0.05),
    "linear": (lambda x: functional.linear(x, W), -1, 0.99),
    "over tokens": (lambda x: gaussian(3, T) @ x, -1, 0.99),
    "einsum": (lambda x: torch.einsum("td,od->to", x, W), -1, 0.99),
    "conv": (lambda x: functional.conv1d(x.T[None], KERNEL, padding=1)[0].T, -1, 0.5),
    "depthwise": (lambda x: functional.conv1d(x.T[None], gaussian(D, 1, 2), groups=D)[0].T, -1, 0.3),
    "transposed": (lambda x: functional.conv_transpose1d(x.T[None], gaussian(D, 4, 3), stride=2)[0].T, -1, 0.5),
    "max_pool": (lambda x: functional.max_pool1d(x.T[None], 2)[0].T, -1, 0.99),
    "avg_pool": (lambda x: functional.avg_pool1d(x.T[None], 2)[0].T, -1, 0.99),
    "mean over tokens": (lambda x: x.mean(0), -1, 0.99),
    "mean over features": (lambda x: x.mean(-1, keepdim=True), -1, 0.99),
    "sum": (lambda x: x.sum(-1, keepdim=True), -1, 0.99),
    "variance": (lambda x: x.var(-1, keepdim=True), -1, 0.99),
    "deviation": (lambda x: x.std(-1, keepdim=True, correction=0), -1, 0.99),
    "prelu": (lambda x: functional.prelu(x, torch.arange(1.0, D + 1).double() / 9), -1, 0.99),
    "length": (lambda x: x.norm(dim=-1, keepdim=True), -1, 0.99),
    "cumsum": (lambda x: x.cumsum(0), -1, 0.99),
    "topk": (lambda x: x.topk(2, -1)[0], -1, 0.99),
    "amax": (lambda x: x.amax(-1, keepdim=True), -1, 0.99),
    "gather": (lambda x: x[IDS], -1, 0.99),
    "chunk": (lambda x: x.chunk(3, -1)[1], -1, 0.99),
    "cat": (lambda x: torch.cat([x, 2 * x], -1), -1, 0.99),
    "cat of two": (lambda x: torch.cat([functional.linear(x, W), x], -1), -1, 0.6),
    "heads": (lambda x: x.reshape(T, 2, 3).transpose(0, 1), -1, 0.99),
    "flatten": (lambda x: x.reshape(2, 2 * D), -1, 0.99),
    "pad": (lambda x: functional.pad(x, (1, 2), value=3.0), -1, 0.99),
    "repeat": (lambda x: x.repeat_interleave(2, -1), -1, 0.99),
    "roll": (lambda x: x.roll(1, 0) + x, -1, 0.99),
    "rotary": (rotary, -1, 0.6),
    "writes": (spread, -1, 0.5),
    "in place": (inplace, -1, 0.99),
    "to one number": (lambda x: x.sum(), 0, 0.99),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_no_change_is_stretched_further_than_an_operation_says(name):
    f, axis, tight = ALONE[name]
    x = gaussian(T, D, seed=7)
    leaf = Leaf("p", "p", (T, D), "positions", L1ToRMS())
    compare(Changed(f, x), leaf, axis, tight * (1 - 1e-6))


class Weighted(nn.Module):
    """f(x, w)."""

    def __init__(self, f, x, w):
        super().__init__()
        self.f, self.w = f, nn.Parameter(w)
        self.register_buffer("x", x)

    def forward(self):
        return self.f(self.x, self.w)


def leaf_of(norm, shape, view=None):
    return Leaf("w", "w", shape, "linear", norm, view=view)


WEIGHTS = {
    "linear": (functional.linear, (5, D), RMSToRMS(), None, 0.99),
    "transposed storage": (torch.matmul, (D, 5), RMSToRMS(), ng.geometry.View("i o -> o i"), 0.99),
    "a block of three": (
        lambda x, w: functional.linear(x, w).chunk(3, -1)[1], (9, D), RMSToRMS(),
        ng.geometry.View("(n o) i -> n o i", (("n", 3),), 1), 0.99,
    ),
    "heads": (
        lambda x, w: functional.linear(x, w).reshape(-1, 2, 3), (6, D), Blocks(RMSToRMS()),
        ng.geometry.View("(h o) i -> h o i", (("h", 2),)), 0.5,
    ),
    "table as head": (functional.linear, (7, D), L1ToRMS(), None, 0.99),
    "gain": (lambda x, w: functional.layer_norm(x, (D,)) * w, (D,), Linf(), None, 0.99),
    "gain of layer_norm": (lambda x, w: functional.layer_norm(x, (D,), w), (D,), Linf(), None, 0.99),
    "1 + gain": (lambda x, w: x * (1 + w), (D,), Linf(), None, 0.99),
    "bias": (lambda x, w: functional.linear(x, W, w), (5,), RMS(), None, 0.99),
    "bias of channels": (lambda x, w: functional.conv1d(x.T[None], KERNEL, w)[0].T, (4,), RMS(), None, 0.99),
    "rows": (lambda x, w: functional.embedding(IDS, w), (5, D), L1ToRMS(), None, 0.99),
    "rows by index": (lambda x, w: x[:3] + w[IDS[0]], (5, D), L1ToRMS(), None, 0.99),
    "kernel": (lambda x, w: functional.conv1d(x.T[None], w, padding=1)[0].T, (4, D, 3), Conv(1), None, 0.5),
    "kernel in groups": (lambda x, w: functional.conv1d(x.T[None], w, groups=2)[0].T, (4, 3, 2), Conv(1, 2), None, 0.4),
    "over tokens": (lambda x, w: w @ x, (3, T), RMSToRMS(), None, 0.2),
    "decay": (lambda x, w: x * torch.exp(-torch.exp(w)), (D,), Linf(), None, 0.5),
    "merged": (lambda x, w: functional.linear(x, W + w[:5]), (7, D), RMSToRMS(), None, 0.1),
    "as data": (lambda x, w: torch.softmax(x @ w.T, -1) @ w, (3, D), L1ToRMS(), None, 0.02),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_no_change_of_a_weight_is_stretched_further_than_its_use_says(name):
    f, shape, norm, view, tight = WEIGHTS[name]
    w = 0.7 * gaussian(*shape, seed=11)
    seen = tuple((view.read(w) if view else w).shape)
    compare(Weighted(f, 2 * gaussian(T, D, seed=7), w), leaf_of(norm, seen, view), tight=tight)


@pytest.mark.parametrize("seed", range(3))
def test_the_stretch_of_one_term_is_exact(seed):
    """max over x of RMS over fibers, by dense algebra: all of a group on one entry is the worst."""
    random = torch.Generator().manual_seed(seed)
    root = Root((3, 4), [[Source(0, 4, Measure((1,)))]])
    index = torch.randint(-1, 12, (2, 5, 3), generator=random)
    slope = torch.randn(2, 5, 3, generator=random).double()
    local = Local(root, (2, 5, 3), (Term(index, slope),))
    found = stretch(local, root.sources[0][0], Measure((1,)))
    dense = torch.zeros(30, 12).double()
    for i, j in enumerate(index.flatten().tolist()):
        if j >= 0:
            dense[i, j] = slope.flatten()[i]
    dense = dense.reshape(2, 5, 3, 3, 4).movedim(1, 2).reshape(6, 5, 3, 4)
    best = torch.linalg.matrix_norm(dense.movedim(2, 1), 2).square().sum(1) * 4 / 5  # a group is on entries of its own
    assert found == pytest.approx(float(best.amax().sqrt()), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("before", ["rms", "sum"])
@pytest.mark.parametrize("after", ["rms", "sum"])
def test_the_stretch_on_axes_is_that_of_entries(before, after, seed):
    """The closed form for entries that stay where they are, against the one that follows each."""
    shape = (2, 3, 4)
    source = Source(0, 12, Measure((0, 2), before))
    root = Root(shape, [[source]])
    slope = None if seed == 0 else gaussian(*shape, seed=seed)
    numbers = torch.arange(24).reshape(shape)
    for axes in ((), (2,), (1, 2), (0, 1, 2)):
        short, long = (Local(root, shape, (Term(index, slope),)) for index in (None, numbers))
        found = [stretch(local, source, Measure(axes, after)) for local in (short, long)]
        assert found[0] == pytest.approx(found[1], rel=1e-12)


# ---- plans


def doubled(factory):
    model, args, kwargs = models.made(factory)
    if factory is models.mixtral:  # grouped_mm has no float64
        return model, args, kwargs

    def cast(x):
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return model.double(), tuple(map(cast, args)), {name: cast(x) for name, x in kwargs.items()}


ASSUMED = {models.lstm: {"lstm": 1}, models.gru: {"gru": 1}}


def promise(factory, starts, iterations):
    """The largest ‖JΔ‖ that a search finds for a traced plan."""
    logging.disable()
    model, args, kwargs = doubled(factory)
    plan = ng.compile(model, args, kwargs, sensitivity="traced")
    assert plan.assumed == ASSUMED.get(factory, {})
    casts = any(p.dtype == torch.float32 for p in model.parameters()) or factory in models.TRANSFORMERS
    held = bool(plan.holds(model))
    assert held == (not plan.assumed)
    tolerance = 1e-4 if casts else 1e-6
    found = check_geometry(model, args, kwargs, plan=plan, starts=starts, iterations=iterations, tolerance=tolerance)
    assert held or found < 2
    return plan, found


@pytest.mark.parametrize("factory", [models.mlp, models.raw, models.mha, models.cross, models.lora, models.lstm])
def test_the_promise_of_traced_plans(factory):
    promise(factory, starts=2, iterations=4)


@pytest.mark.slow
@pytest.mark.parametrize("factory", [*models.PLAIN, *models.TRANSFORMERS])
def test_the_promise_of_traced_plans_on_every_model(factory):
    _, found = promise(factory, starts=20, iterations=4)
    print(f"{factory.__name__}: {found:.3g}")


@pytest.mark.parametrize("factory", [models.transformer, models.resnet18, models.llama])
def test_no_leaf_alone_is_stretched_further(factory):
    """‖J_ℓᵀu‖* ≤ x·μ for any u of dual norm 1."""
    model, args, kwargs = doubled(factory)
    model.eval()
    plan = ng.compile(model, args, kwargs, sensitivity="traced")
    parameters = dict(model.named_parameters())
    with differentiable():
        y = choose(model(*args, **kwargs))
        for seed in range(3):
            u = norming(gaussian(*y.shape, seed=seed).to(y), plan.axis)
            grads = torch.autograd.grad(y, list(parameters.values()), u, retain_graph=True, allow_unused=True)
            given = {n: g for n, g in zip(parameters, grads, strict=True) if g is not None}
            for leaf in [leaf for leaf in plan.leaves if leaf.parameter in given]:
                reached = float(leaf.norm.dual_norm(leaf.read(given[leaf.parameter])))
                assert reached <= leaf.input_norm * leaf.sensitivity * (1 + 1e-4)


class Scaled(nn.Module):
    """x + γ ⊙ f(x) with γ = 1e-6."""

    def __init__(self, width=8):
        super().__init__()
        self.f, self.gain = nn.Linear(width, width), nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x):
        return x + self.gain * self.f(x)


def zero_head():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    nn.init.zeros_(model[2].weight)
    return model


ZEROS = {
    "zero head": zero_head,
    "LoRA": lambda: models.lora()[0],
    "layer scale": lambda: nn.Sequential(Scaled(), Scaled(), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("name", ZEROS)
def test_weights_that_start_at_zero_lead_to_sensible_radii(name):
    torch.manual_seed(0)
    model, x = ZEROS[name]().double(), gaussian(4, 8)
    plan = ng.compile(model, (x,), sensitivity="traced")
    for leaf in plan.leaves:
        assert leaf.known == "bound"
        if leaf.trainable:
            assert 1e-3 * leaf.mass / plan.mass < leaf.radius <= 1
    assert check_geometry(model, (x,), plan=plan, starts=2, iterations=4) <= 1 + 1e-6
    assert all(math.isfinite(leaf.reach) for leaf in plan.leaves)


def test_declared_models_are_traced_too():
    torch.manual_seed(0)
    model, ids = drawn(ng.nn.GPT(11, 6, 8, 2, 1)), torch.arange(12).reshape(2, 6) % 11
    plan = ng.compile(model, (ids,), sensitivity="traced")
    assert plan.holds(model)
    assert {leaf.source for leaf in plan.leaves} == {"traced"}
    assert 0.05 < check_geometry(model, (ids,), plan=plan, starts=2, iterations=4) <= 1 + 1e-6


def test_what_has_no_rule_is_assumed_and_a_rule_mends_it():
    class Own(nn.Linear):
        def forward(self, x):
            return torch.special.i0e(super().forward(x))

    torch.manual_seed(0)
    model, x = Own(8, 4).double(), gaussian(3, 8)
    plan = ng.compile(model, (x,), sensitivity="traced")
    assert plan.assumed == {"special_i0e": 1}
    assert {leaf.known for leaf in plan.leaves} == {"assumed"}
    assert not plan.holds(model)
    with pytest.raises(GeometryError, match="rule"):
        ng.compile(model, (x,), sensitivity="traced", strict=True)
    from normgeo.geometry.bounds.tracer import RULES

    try:

        @ng.geometry.linearization("special_i0e")
        def _(op):
            y = op.local(0)
            return op.node(Measure(y.features()), [(y, Measure(y.features()), 0.5)])

        mended = ng.compile(model, (x,), sensitivity="traced")
    finally:
        del RULES["special_i0e"]
    assert {leaf.known for leaf in mended.leaves} == {"bound"}


def test_complex_numbers_are_assumed_and_not_lost():
    class Turned(nn.Linear):
        def forward(self, x):
            y = torch.view_as_complex(super().forward(x).unflatten(-1, (-1, 2)))
            return torch.view_as_real(y * torch.polar(torch.ones(2), torch.arange(2.0))).flatten(-2)

    plan = ng.compile(Turned(8, 4), (torch.ones(1, 8),), sensitivity="traced")
    assert {leaf.known for leaf in plan.leaves} == {"assumed"}
    assert set(plan.assumed) == {"view_as_complex", "mul", "view_as_real"}


def test_a_slope_that_is_infinite_is_assumed():
    class Root(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu().sqrt()

    model = Root(8, 4)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    plan = ng.compile(model, (torch.ones(1, 8),), sensitivity="traced")
    assert plan.assumed == {"sqrt": 1}
    assert not plan.holds(model)


def test_a_rule_for_the_operation_with_bounds_serves():
    from normgeo.geometry.registry import RULES

    class Own(nn.Linear):
        def forward(self, x):
            return torch.special.i1e(super().forward(x))

    try:
        ng.geometry.operation("special_i1e")(lambda op: op.result(op.data(0), slots=bound(0.5)))
        plan = ng.compile(Own(8, 4), (torch.ones(1, 8),), sensitivity="traced")
    finally:
        del RULES["special_i1e"]
    assert not plan.assumed
    assert {leaf.known for leaf in plan.leaves} == {"bound"}


def test_a_traced_plan_is_for_its_weights_and_inputs():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), gaussian(3, 4).float()
    plan = ng.compile(model, (x,), sensitivity="traced")
    assert plan.holds(model)
    assert "compile again with these" in str(plan.holds(model, (x,)))
    assert ng.Plan.from_json(plan.to_json()) == plan
    with torch.no_grad():
        model[0].weight *= 2
    assert "traced at" in str(plan.holds(model))
    assert plan.extend(model).holds(model)
    given = ng.compile(model, (x,), sensitivity="traced", radii={"0.weight": 0.5})
    assert given.leaves[0].radius == pytest.approx(0.5)
    with pytest.raises(ValueError, match="example_inputs"):
        ng.compile(model, sensitivity="traced")
    assert len(plan.optimizer(model).param_groups[0]["params"]) == 4
