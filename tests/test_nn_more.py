"""Images, activations and gates: equal to torch, and where a plan finds their features."""

import copy

import pytest
import torch
from helpers import drawn, gaussian
from torch import nn
from torch.nn import functional

import normgeo as ng
from normgeo.geometry import Graph, trace
from normgeo.linalg import SVD
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
    ReLU,
    ResCNN,
    ResMLP,
    RMSNorm,
    SelfAttention,
    Sequential,
    Sigmoid,
    SiLU,
    Softmax,
    SplitHeads,
    Tanh,
    TokenAverage,
    Tokens,
    ViT,
    residual,
)
from normgeo.norms import RMS, Blocks, Conv, ConvTransposed, L1ToRMS, Linf
from normgeo.testing import check_geometry, check_optimizer

# ---- equal to torch


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (Conv1d(4, 6, 3, 2, 1, 2, 2), nn.Conv1d(4, 6, 3, 2, 1, 2, 2, bias=False), (2, 4, 9)),
        (Conv2d(4, 6, (3, 1), padding="same"), nn.Conv2d(4, 6, (3, 1), padding="same", bias=False), (2, 4, 5, 6)),
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


# ---- plans


@pytest.mark.parametrize("depth", [1, 8])
def test_radii_do_not_depend_on_depth(depth):
    radii = {leaf.name: leaf.radius for leaf in ng.compile(ViT(3, 2, 9, 8, 2, depth, 5)).leaves}
    assert radii["embed.patch.weight"] == pytest.approx(1 / 10)
    assert radii["embed.positions.weight"] == pytest.approx(1 / 10)
    assert radii["blocks.0.attention.block.qkv.q.map.weight"] == pytest.approx(5 / 10)
    assert radii["blocks.0.mlp.block.down.weight"] == pytest.approx(5 / 30)
    assert radii["head.weight"] == pytest.approx(4 / 10)
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


def test_heads_that_do_not_turn_may_be_odd():
    assert SelfAttention(6, 2, context=None)(torch.zeros(1, 5, 6)).shape == (1, 5, 6)
    with pytest.raises(ValueError, match="turned in pairs"):
        SelfAttention(6, 2, context=5)


@pytest.mark.parametrize("make", [lambda: ViT(3, 2, 9, 8, 2, 1, 5), lambda: ResCNN(3, 4, 5, 2)], ids=["ViT", "ResCNN"])
def test_they_train(make):
    torch.manual_seed(0)
    model = make()
    start = copy.deepcopy(model.state_dict())
    y = torch.randint(3, (20,))
    x = 0.5 * torch.randn(20, 3, 6, 6) + functional.one_hot(y, 3)[:, :, None, None]
    opt = ng.optimizer(model, (x,), lr=1.0)
    losses = []
    for _ in range(20):
        loss = functional.cross_entropy(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all((start[name] != p).any() for name, p in model.named_parameters())


def test_kernels_go_through_the_whole_optimizer():
    """Momentum, state dicts, copies, NaN: kernels of three shapes and a norm with phases."""
    torch.manual_seed(0)
    model = Linear(4, 2) @ GlobalAverage() @ ConvTranspose2d(4, 4, 3, 2) @ Abs() @ Conv2d(3, 4, 3, groups=1)
    model = model @ Conv2d(3, 3, 3, groups=3)
    x = torch.randn(2, 3, 7, 7)
    check_optimizer(ng.optimizer, model, lambda model: (model(x) - 1).square().mean(), effort="quick")
    plan = ng.compile(model)
    assert ng.Plan.from_json(plan.to_json()) == plan


# ---- norms that are given

images = RMS().init((6, 5, 5, 4), dtype=torch.float64).movedim(-1, 1)


@pytest.mark.parametrize(
    ("make", "slot", "known"),
    [
        (lambda: Conv2d(4, 4, 3, groups=2, norm=Conv(2, 2, polar=SVD())), 1.0, "bound"),
        (lambda: Conv2d(4, 4, 3, norm=0.5 * Conv(2)), 2.0, "bound"),
        (lambda: Conv2d(4, 4, 3, groups=2, norm=Conv(2)), 1.0, "typical"),
        (lambda: Conv2d(4, 4, 3, norm=Blocks(Conv(1))), 1.0, "typical"),
        (lambda: ConvTranspose2d(4, 4, 3, 2, norm=4.0 * ConvTransposed(2, stride=(2, 2))), 0.25, "bound"),
        (lambda: ConvTranspose2d(4, 4, 3, 2, norm=ConvTransposed(2)), 1.0, "typical"),
        (lambda: Positions(25, 4, norm=0.5 * L1ToRMS()) @ Tokens(), 2.0, "bound"),
        (lambda: Positions(25, 4, norm=Blocks(Linf())) @ Tokens(), 1.0, "typical"),
    ],
)
def test_given_norms_of_kernels_and_positions_are_bounds_only_where_they_are(make, slot, known):
    """A norm that is not the natural one of the atom, groups and strides included, makes its slot typical."""
    torch.manual_seed(0)
    model = (Conv2d(4, 4, 1) @ make() if not isinstance(make(), Sequential) else make()).double()
    plan = ng.compile(model, (images,))
    (leaf,) = [leaf for leaf in plan.leaves if leaf.role == "embedding"] or plan.leaves[:1]
    assert (leaf.input_norm * leaf.sensitivity, leaf.known) == (pytest.approx(slot), known)
    assert plan.holds(model) or known == "typical"
    check_geometry(model, (images,), plan=plan)  # fails if the plan promises and does not hold


def test_extending_keeps_the_sizes_of_images_along_their_channels():
    model = Conv2d(4, 4, 3).double()
    plan = ng.compile(model, (10 * images,))
    assert plan.leaves[0].input_norm == pytest.approx(10.0)
    assert plan.extend(model) == plan
    with pytest.raises(ValueError, match="NaN or Inf"):
        ng.compile(model, (images * torch.inf,))
