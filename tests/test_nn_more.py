"""Images, activations and gates: equal to torch, and their sensitivities attacked in the norms in which they are stated."""

import copy
import math

import pytest
import torch
from helpers import gaussian
from torch import nn
from torch.nn import functional

import normgeo as ng
from normgeo.geometry import Graph, bound, trace
from normgeo.linalg import steepest_gain
from normgeo.nn import (
    Abs,
    AffineLayerNorm,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    Bias,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Flatten,
    Gain,
    GainedRMSNorm,
    GatedMLP,
    GlobalAverage,
    Identity,
    LayerNorm,
    Linear,
    Mask,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MeanSubtract,
    MergeHeads,
    Mul,
    Positions,
    Product,
    ReLU,
    ResCNN,
    ResMLP,
    RMSNorm,
    ScaledSiLU,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    SplitHeads,
    Stream,
    Tanh,
    TokenAverage,
    Tokens,
    ViT,
    residual,
)
from normgeo.testing import check_geometry
from normgeo.testing.geometry import norming


def image(*shape, seed=0):
    return gaussian(*shape, seed=seed)


# ---- equal to torch


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (Conv1d(4, 6, 3, 2, 1, 2, 2), nn.Conv1d(4, 6, 3, 2, 1, 2, 2, bias=False), (2, 4, 9)),
        (Conv2d(4, 6, (3, 2), padding="same"), nn.Conv2d(4, 6, (3, 2), padding="same", bias=False), (2, 4, 5, 6)),
        (Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 5, 6)),
        (Conv3d(2, 3, (1, 2, 3), (1, 2, 1)), nn.Conv3d(2, 3, (1, 2, 3), (1, 2, 1), bias=False), (1, 2, 3, 4, 5)),
        (ConvTranspose1d(4, 6, 3, 2, 1, 1, 2), nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2, bias=False), (2, 4, 5)),
        (ConvTranspose2d(2, 3, 4, 2, 1), nn.ConvTranspose2d(2, 3, 4, 2, 1, bias=False), (2, 2, 3, 4)),
        (ConvTranspose3d(2, 3, 2, (2, 1, 2)), nn.ConvTranspose3d(2, 3, 2, (2, 1, 2), bias=False), (1, 2, 2, 3, 2)),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, nn.Module) else "",
)
def test_convolutions_equal_torch(ours, theirs, shape):
    theirs.load_state_dict(ours.state_dict())
    x = gaussian(*shape, dtype=torch.float32)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.norm.norm(ours.weight.detach()), torch.tensor(1.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (AvgPool1d(3, 2, 1), nn.AvgPool1d(3, 2, 1), (2, 3, 7)),
        (AvgPool2d((2, 3)), nn.AvgPool2d((2, 3)), (2, 3, 4, 6)),
        (AvgPool3d(2), nn.AvgPool3d(2), (2, 3, 4, 4, 4)),
        (MaxPool1d(3, 2, 1), nn.MaxPool1d(3, 2, 1), (2, 3, 7)),
        (MaxPool2d(3, 1), nn.MaxPool2d(3, 1), (2, 3, 4, 6)),
        (MaxPool3d(2), nn.MaxPool3d(2), (2, 3, 4, 4, 4)),
        (Flatten(), nn.Flatten(), (2, 3, 4)),
        (SiLU(), nn.SiLU(), (9,)),
        (Tanh(), nn.Tanh(), (9,)),
        (Sigmoid(), nn.Sigmoid(), (9,)),
        (Softmax(), nn.Softmax(-1), (2, 9)),
        (AffineLayerNorm(4), nn.LayerNorm(4), (2, 4)),
        (GainedRMSNorm(4), nn.RMSNorm(4, eps=1e-5), (2, 4)),
        (RMSNorm() @ MeanSubtract(), nn.LayerNorm(4, elementwise_affine=False), (2, 4)),
        (GlobalAverage(), Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (2, 3, 4, 5)),
        (LayerNorm(axis=-3), nn.GroupNorm(1, 3, affine=False), (2, 3, 1, 1)),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, nn.Module) else "",
)
def test_bonds_equal_torch(ours, theirs, shape):
    x = gaussian(*shape)
    torch.testing.assert_close(ours.double()(x), theirs.double()(x))


def test_shapes_and_formulas():
    x = gaussian(2, 6, 3, 4)
    torch.testing.assert_close(Softmax(3.0)(x), (3 * x).softmax(-1))
    torch.testing.assert_close(Tokens()(x)[:, 5], x[:, :, 1, 1])
    torch.testing.assert_close(GlobalAverage()(x), TokenAverage()(Tokens()(x)))
    torch.testing.assert_close(Abs()(x), x.abs())
    torch.testing.assert_close(MergeHeads()(SplitHeads(2)(x)), x)
    torch.testing.assert_close(SplitHeads(2)(x)[0, 0, 1], x[0, 0, :, 2:])
    torch.testing.assert_close(RMSNorm(axis=-3)(x), RMSNorm()(x.movedim(-3, -1)).movedim(-1, -3))
    torch.testing.assert_close(MeanSubtract(-3)(x), x - x.mean(1, keepdim=True))
    mask = torch.ones(3, 4, dtype=torch.bool).tril()
    torch.testing.assert_close(Mask(mask)(x), x * mask)
    gain, bias, places = Gain(6, axis=-3).double(), Bias(6, axis=-3).double(), Positions(5, 4).double()
    with torch.no_grad():
        gain.weight.copy_(gaussian(6))
        bias.weight.copy_(gaussian(6, seed=1))
    torch.testing.assert_close(bias(gain(x)), x * gain.weight[:, None, None] + bias.weight[:, None, None])
    torch.testing.assert_close(places(x), x + places.weight[:3])


def test_gated_mlp_is_the_published_formula():
    torch.manual_seed(0)
    for name, act in (("silu", lambda x: 5 / 3 * functional.silu(x)), ("gelu", lambda x: 2**0.5 * functional.gelu(x))):
        model = drawn(GatedMLP(6, 8, name))
        x = gaussian(3, 6)
        up, gate, down = (
            w for n, w in sorted(model.named_parameters(), key=lambda item: ("down" in item[0], "gate" in item[0]))
        )
        torch.testing.assert_close(model(x), 0.5 * (x @ up.mT * act(x @ gate.mT)) @ down.mT)


# ---- sensitivities: ‖J_x Δx‖ ≤ slot·‖Δx‖ for every point and every direction


def attack(bond, inputs, which=0, starts=10):
    """(largest ‖J Δ‖ found over ‖Δ‖ ≤ 1 in one input, declared slot, ‖output‖, declared size); sizes as RMS over features."""
    graph = Graph()
    nodes = [graph.input() for _ in inputs]
    trace(bond, graph, *nodes)  # to learn on which axes the features are
    axes = [node.layout.axis or -1 for node in nodes]
    graph = Graph()
    sizes = [x.square().mean(a).sqrt().max().item() for x, a in zip(inputs, axes, strict=True)]
    nodes = [graph.input(bound(s), features=x.shape[a]) for s, x, a in zip(sizes, inputs, axes, strict=True)]
    out = trace(bond, graph, *nodes)
    axis, x, a = out.layout.axis or -1, inputs[which], axes[which]

    def f(x):
        return bond(*inputs[:which], x, *inputs[which + 1 :])

    def unit(g):
        return g / g.square().mean(a, keepdim=True).sqrt().clamp_min(1e-30)

    pull = torch.func.vjp(f, x)[1]
    found = steepest_gain(
        forward=lambda d: torch.func.jvp(f, (x,), (d,))[1],
        backward=lambda u: pull(u)[0],
        norming=lambda y: norming(y, axis),
        dualize=unit,
        starts=[unit(gaussian(*x.shape, seed=s)) for s in range(starts)],
    )
    mu = graph.sensitivities(out)[nodes[which].index]
    assert mu.known == "bound"
    y = f(x).square().mean(axis).sqrt().max().item()
    assert y <= out.size.value * (1 + 1e-12), f"its output has size {y}, declared {out.size.value}"
    if out.peak is not None:
        assert f(x).abs().max() <= out.peak.value
    return found, mu.value


SLOPES = torch.linspace(-6, 6, 4001, dtype=torch.float64).reshape(-1, 1)
PICKED = torch.zeros(1, 4, 2, 2, dtype=torch.float64)
PICKED[0, range(4), (0, 0, 1, 1), (0, 1, 0, 1)] = 1.0  # every channel has its maximum at a pixel of its own
TWO = torch.tensor([[9.0, 9.0, -50.0, -50.0]], dtype=torch.float64)

REACHED = {
    "abs": (Abs(), image(3, 5)),
    "silu": (SiLU(), SLOPES),
    "tanh": (Tanh(), SLOPES),
    "sigmoid": (Sigmoid(), SLOPES),
    "softmax of two": (Softmax(), TWO),
    "sharp softmax": (Softmax(3.0), TWO),
    "mean subtract": (MeanSubtract(), image(3, 5)),
    "mean subtract of channels": (MeanSubtract(-3), image(2, 3, 4, 4)),
    "flatten": (Flatten(), image(2, 3, 4, 4)),
    "flatten tokens": (Flatten(), image(2, 3, 4)),
    "tokens": (Tokens(), image(2, 3, 4, 4)),
    "global average": (GlobalAverage(), image(2, 3, 4, 4)),
    "token average": (TokenAverage(), image(2, 3, 4)),
    "average pool 1d": (AvgPool1d(3, 2, 1), image(2, 3, 7)),
    "average pool 2d": (AvgPool2d(2, 1), image(2, 3, 4, 4)),
    "average pool 3d": (AvgPool3d(2), image(1, 2, 4, 4, 4)),
    "mask": (Mask(torch.tensor([True, False, True])), image(4, 3)),
    "max pool, as many channels as taps": (MaxPool2d(2), PICKED),
    "max pool, fewer channels": (MaxPool2d(2), PICKED[:, :2]),
    "max pool, more channels": (MaxPool2d((1, 2)), PICKED[:, :, :1, :]),
    "max pool 1d": (MaxPool1d(4), PICKED.flatten(2)),
    "max pool 3d": (MaxPool3d((1, 2, 2)), PICKED.unsqueeze(2)),
    "split heads": (SplitHeads(3), image(2, 5, 6)),
    "merge heads": (MergeHeads(), image(2, 3, 5, 4)),
}


@pytest.mark.parametrize("name", REACHED)
def test_sensitivities_are_bounds_and_are_reached(name):
    bond, x = REACHED[name]
    found, slot = attack(bond, (x,))
    assert 0.99 * slot <= found <= slot * (1 + 1e-9), f"{name}: {found} against {slot}"


@pytest.mark.parametrize("name", REACHED)
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_sensitivities_hold_at_random_points(name, scale):
    bond, x = REACHED[name]
    for seed in range(3):
        found, slot = attack(bond, (scale * gaussian(*x.shape, seed=seed),), starts=4)
        assert found <= slot * (1 + 1e-9), f"{name}: {found} against {slot}"


def spike(d, seed=0):
    """RMS 1, all of it in one entry."""
    x = 1e-9 * gaussian(2, d, seed=seed)
    x[:, 0] = math.sqrt(d)
    return x


@pytest.mark.parametrize("which", [0, 1])
def test_a_product_can_pass_on_root_d(which):
    """The bound √d·size is reached by a factor that has all its size in one entry."""
    found, slot = attack(Product(), (3 * spike(16), 2 * spike(16)), which)
    assert slot == pytest.approx(4 * (2, 3)[which])
    assert found == pytest.approx(slot)


def test_a_bounded_gate_passes_on_one():
    class Gate(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.act = act

        def forward(self, a, b):
            return a * self.act(b)

    ng.geometry.register(Gate)(
        lambda module, graph, a, b: trace(Product(), graph, a, trace(module.act, graph, b, name="act"))
    )
    for act, slope in ((Sigmoid(), 0.25), (Tanh(), 1.0), (Softmax(), 0.5)):
        found, slot = attack(Gate(act), (spike(16), 9 * spike(16)))
        assert slot == 1.0
        assert 0.99 <= found <= 1 + 1e-9
        found, slot = attack(Gate(act), (spike(16), 1e-9 * spike(16)), 1)
        assert slot == pytest.approx(4 * slope)
        assert found <= slot * (1 + 1e-9)


def test_a_product_of_unknown_width_says_that_it_assumes():
    graph = Graph()
    out = trace(Product(), graph, graph.input(), graph.input())
    assert {factor.known for factor in out.slots} == {"assumed"}


def test_softmax_from_largest_entry_to_sum_is_its_scale():
    """‖δp‖₁ ≤ s·‖δx‖∞, reached by two equal entries moving apart: all sign vectors, many points."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)
    best = 0.0
    for x in [TWO[0], *(3 * gaussian(4, seed=s) for s in range(50))]:
        p = Softmax(2.0)(x)
        jacobian = 2.0 * (p.diag() - p.outer(p))
        best = max(best, (signs @ jacobian).abs().sum(-1).max().item())
    assert 1.99 <= best <= 2 + 1e-12


def test_steepest_slopes_are_rounded_up():
    x = torch.linspace(-8, 8, 400_001, dtype=torch.float64, requires_grad=True)
    functional.silu(x).sum().backward()
    assert x.grad.abs().max() <= SiLU.SLOPE < x.grad.abs().max() + 1e-5
    # 5/3·SiLU keeps the RMS of a Gaussian within a hundredth.
    weight = torch.exp(-x.detach().square() / 2)
    rms = ((ScaledSiLU()(x.detach()).square() * weight).sum() / weight.sum()).sqrt()
    assert abs(rms - 1) < 0.01


# ---- the promise for networks


def drawn(model):
    """In float64, with every weight at norm 1, those that start at 0 too."""
    model = model.double()
    with torch.no_grad():
        for leaf in ng.compile(model).leaves:
            weight = dict(model.named_parameters())[leaf.parameter]
            weight.copy_(leaf.norm.init(weight.shape, dtype=torch.float64))
            weight.div_(leaf.norm.norm(weight).clamp_min(1))
    return model


BOUNDS = {
    "conv 1d": (lambda: Conv1d(6, 4, 3) @ ReLU() @ Conv1d(4, 6, 3, padding=1), (2, 4, 6)),
    "conv 2d": (lambda: Conv2d(5, 3, 3, padding=1) @ ReLU() @ Conv2d(3, 5, 3), (2, 3, 6, 6)),
    "conv 3d": (lambda: Conv3d(3, 2, 2) @ Abs() @ Conv3d(2, 3, (1, 2, 2)), (1, 2, 3, 4, 4)),
    "ends in a single conv": (lambda: Conv2d(3, 2, 3), (2, 3, 7, 5)),
    "strides": (lambda: Conv2d(4, 4, 2, stride=2) @ Abs() @ Conv2d(3, 4, 3, stride=2, padding=2), (2, 3, 7, 7)),
    "dilation": (lambda: Conv2d(4, 4, 2) @ Abs() @ Conv2d(3, 4, 3, padding=2, dilation=2), (2, 3, 6, 6)),
    "groups": (lambda: Conv2d(6, 4, 1, groups=2) @ ReLU() @ Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "depthwise": (lambda: Conv2d(4, 4, 1) @ Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 5, 5)),
    "transposed": (lambda: ConvTranspose2d(4, 2, 4, 2, 1) @ ReLU() @ Conv2d(3, 4, 3), (2, 3, 5, 5)),
    "transposed, groups": (lambda: Conv1d(4, 2, 3) @ ConvTranspose1d(4, 4, 3, 2, 1, 1, 2), (2, 4, 5)),
    "transposed 3d": (lambda: ConvTranspose3d(2, 2, 2, 2), (1, 2, 2, 2, 3)),
    "gain and bias": (
        lambda: Conv2d(4, 3, 3) @ Abs() @ Bias(4, axis=-3) @ Gain(4, axis=-3) @ Conv2d(3, 4, 1),
        (2, 3, 5, 5),
    ),
    "flatten": (lambda: Linear(64, 3) @ Flatten() @ Abs() @ Conv2d(3, 4, 3), (2, 3, 6, 6)),
    "pools": (
        lambda: Linear(6, 3) @ GlobalAverage() @ Conv2d(4, 6, 1) @ AvgPool2d(2) @ Abs() @ Conv2d(3, 4, 3),
        (2, 3, 6, 6),
    ),
    "max pool": (lambda: Conv2d(4, 3, 2) @ MaxPool2d(2) @ Conv2d(3, 4, 3), (2, 3, 8, 8)),
    "tokens": (lambda: Linear(4, 3) @ Positions(36, 4) @ Tokens() @ Conv2d(3, 4, 1), (2, 3, 6, 6)),
    "residual": (
        lambda: residual(0.5, Conv2d(4, 4, 3, padding=1) @ Abs() @ Conv2d(4, 4, 3, padding=1)) ** 2,
        (2, 4, 5, 5),
    ),
    "silu": (lambda: Linear(5, 3) @ SiLU() @ Linear(4, 5), (6, 4)),
    "tanh": (lambda: Linear(5, 3) @ Tanh() @ Linear(4, 5), (6, 4)),
    "sigmoid": (lambda: Linear(5, 3) @ Sigmoid() @ Linear(4, 5), (6, 4)),
    "softmax": (lambda: Linear(5, 3) @ Softmax(4.0) @ Linear(4, 5), (6, 4)),
    "gate": (
        lambda: Linear(5, 3) @ Product() @ (Linear(4, 5), Sigmoid() @ Linear(4, 5)),
        (6, 4),
    ),
    "bilinear": (lambda: Linear(5, 3) @ Product() @ (Linear(4, 5), Linear(4, 5)), (6, 4)),
    "heads": (lambda: MergeHeads() @ Abs() @ SplitHeads(2) @ Linear(4, 6), (2, 5, 4)),
    "ResMLP": (lambda: ResMLP(4, 8, 3, depth=3), (6, 4)),
    "ResCNN": (lambda: ResCNN(3, 4, 5, depth=2), (2, 3, 6, 6)),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("seed", range(2))
def test_what_calls_itself_a_bound_is_never_exceeded(name, seed):
    torch.manual_seed(seed)
    make, shape = BOUNDS[name]
    model = drawn(make())
    x = 3 * gaussian(*shape, seed=seed)  # larger than 1: the plan has to take it into account
    plan = ng.compile(model, (x,))
    assert plan.holds(model) == []
    found = check_geometry(model, (x,), plan=plan, starts=10, seed=seed)
    assert 0.02 < found <= 1 + 1e-6


def test_the_promise_is_nearly_reached_by_a_convolution_of_a_constant_image():
    torch.manual_seed(0)
    x = ng.norms.RMS().init((1, 3), dtype=torch.float64)[:, :, None, None].expand(1, 3, 5, 5)
    for model in (Conv2d(3, 4, 3), Conv2d(3, 6, 3, groups=3), ConvTranspose2d(3, 4, 4, 2)):
        assert check_geometry(model.double(), (x,)) > 0.5
    assert check_geometry(Conv2d(3, 4, 3).double(), (x,)) == pytest.approx(1)


TYPICAL = {
    "ViT": (lambda: ViT(3, patch=2, tokens=9, width=8, heads=2, depth=2, out_features=5), (2, 3, 6, 6)),
    "SwiGLU": (lambda: Stream(GatedMLP(8, 16) @ RMSNorm(), 0.5) @ Linear(8, 8), (6, 8)),
    "GEGLU": (lambda: Stream(GatedMLP(8, 16, "gelu") @ LayerNorm(), 0.5) @ Linear(8, 8), (6, 8)),
    "norms": (lambda: Linear(8, 4) @ AffineLayerNorm(8) @ Linear(8, 8) @ GainedRMSNorm(8) @ Linear(8, 8), (6, 8)),
    "channel norm": (
        lambda: Conv2d(4, 4, 3) @ LayerNorm(axis=-3) @ Conv2d(3, 4, 3) @ (0.5 * Identity()),
        (2, 3, 6, 6),
    ),
}


@pytest.mark.parametrize("name", TYPICAL)
def test_typical_plans_say_so_and_report_their_overshoot(name):
    torch.manual_seed(0)
    make, shape = TYPICAL[name]
    model = drawn(make())
    x = gaussian(*shape)
    plan = ng.compile(model, (x,))
    assert "typical" in plan.holds(model)[0]
    found = check_geometry(model, (x,), plan=plan, starts=10)
    print(f"{name}: {found:.2f} times the promise")
    assert 0.1 < found < 5


@pytest.mark.parametrize("depth", [1, 8])
def test_radii_do_not_depend_on_depth(depth):
    radii = {leaf.name: leaf.radius for leaf in ng.compile(ViT(3, 2, 9, 8, 2, depth, 5)).leaves}
    assert radii["embed.patch.weight"] == pytest.approx(1 / 7)
    assert radii["embed.positions.weight"] == pytest.approx(1 / 7)
    assert radii["blocks.0.attention.block.qkv.q.map.weight"] == pytest.approx(5 / 7)
    assert radii["blocks.0.mlp.block.down.weight"] == pytest.approx(5 / 21)
    cnn = ng.compile(ResCNN(3, 4, 5, depth))
    assert [leaf.radius for leaf in cnn.leaves[:2]] == pytest.approx([1 / 7, 5 / 14])
    assert all(leaf.known == "bound" for leaf in (*cnn.leaves, *ng.compile(ResMLP(3, 4, 5, depth)).leaves))


# ---- where features are


def test_inputs_are_measured_where_the_model_reads_them():
    x = torch.zeros(2, 4, 5, 5, dtype=torch.float64)
    x[:, 0] = 2.0  # RMS over channels 1, over a row of pixels 2
    for model in (
        Conv2d(4, 3, 3),
        Conv2d(4, 3, 3) @ Mul(1.0) @ ReLU(),
        GlobalAverage() @ (Conv2d(4, 3, 3) + Conv2d(4, 3, 3)),
        residual(0.5, Conv2d(4, 4, 3, padding=1)),
        Linear(4, 3) @ Tokens(),
    ):
        assert ng.compile(model.double(), (x,)).leaves[0].input_norm == pytest.approx(1.0)
    x = 3 * x.movedim(1, -1)
    assert ng.compile(Linear(4, 3).double(), (x,)).leaves[0].input_norm == pytest.approx(3.0)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Linear(4, 4) @ Conv2d(3, 4, 3),
        lambda: LayerNorm() @ Conv2d(3, 4, 3),
        lambda: Gain(4) @ Conv2d(3, 4, 3),
        lambda: Softmax() @ Conv2d(3, 4, 3),
        lambda: MaxPool1d(2) @ Conv2d(3, 4, 3),
        lambda: Conv2d(4, 4, 3) @ Flatten() @ Conv2d(3, 4, 3),
        lambda: Conv2d(4, 4, 3) + Linear(4, 4),
        lambda: ng.nn.Attention(1) @ (Conv2d(4, 4, 1), Conv2d(4, 4, 1), Conv2d(4, 4, 1)),
    ],
)
def test_images_and_vectors_are_not_mixed_up(model):
    made = model()
    with pytest.raises(ValueError, match=r"features on axis -?\d, but what runs before it has them on axis"):
        ng.compile(made)


def test_layouts_of_unknown_inputs_are_learned_together():
    graph = Graph()
    a, b = graph.input(), graph.input()
    graph.op("add", graph.op("add", a, b), graph.input())
    trace(Conv2d(3, 4, 3), graph, graph.op("mul", b))
    assert [node.layout.axis for node in graph.nodes[:5]] == [-3] * 5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Conv2d(3, 4, 3, groups=2), ValueError, "do not divide into 2 groups"),
        (lambda: Conv2d(3, 4, 0), ValueError, "whole numbers > 0"),
        (lambda: Softmax(0.0), ValueError, "scale must be"),
        (lambda: Mask(torch.ones(2)), TypeError, "tensor of bool"),
        (lambda: GatedMLP(4, 4, "relu"), ValueError, "one of"),
        (lambda: ResMLP(2, 2, 2, 0), ValueError, "depths must be ≥ 1"),
        (lambda: ResCNN(2, 2, 2, 1, kernel_size=2), ValueError, "kernel_size odd"),
        (lambda: ViT(3, 2, 9, 8, 2, 0, 5), ValueError, "depth must be ≥ 1"),
        (lambda: Positions(2, 4)(torch.zeros(3, 4)), ValueError, "more than context=2"),
    ],
)
def test_nonsense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: ViT(3, 2, 9, 8, 2, 1, 5), lambda: ResCNN(3, 4, 5, 2)], ids=["ViT", "ResCNN"])
def test_they_train(make):
    torch.manual_seed(0)
    model = make()
    start = copy.deepcopy(model.state_dict())
    x, y = torch.randn(20, 3, 6, 6), torch.randint(5, (20,))
    opt = ng.optimizer(model, (x,), lr=0.5)
    losses = []
    for _ in range(20):
        loss = functional.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all((start[name] != p).any() for name, p in model.named_parameters())
