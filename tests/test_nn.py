import copy
import math
import pickle

import pytest
import torch
from helpers import gaussian
from torch.nn import functional

import normgeo as ng
from normgeo.nn import (
    GELU,
    GPT,
    MLP,
    Add,
    Attention,
    Bias,
    Embedding,
    Enumerate,
    Gain,
    HeadNorm,
    Identity,
    LayerNorm,
    Linear,
    Mul,
    Parallel,
    ReLU,
    RMSNorm,
    Rotary,
    ScaledGELU,
    ScaledReLU,
    SelfAttention,
    Sequential,
    Stream,
    Sum,
    Typical,
    residual,
)
from normgeo.testing import check_geometry


def test_the_algebra_computes_what_it_says():
    a, b, x = Linear(3, 3), Linear(3, 3), gaussian(2, 3, dtype=torch.float32)
    cases = {
        "a @ b": (a @ b, a(b(x))),
        "a + b": (a + b, a(x) + b(x)),
        "a - b": (a - b, a(x) - b(x)),
        "-a": (-a, -a(x)),
        "2 * a": (2 * a, 2 * a(x)),
        "a * 2": (a * 2, a(2 * x)),
        "a / 2": (a / 2, a(x / 2)),
        "a ** 0": (a**0, x),
        "add of a tuple": (Add() @ (a, b), a(x) + b(x)),
        "scaled tuple": (Add() @ Mul(3.0) @ (a, b), 3 * (a(x) + b(x))),
        "chain": (a @ ReLU() @ b @ Identity(), a(b(x).relu())),
    }
    for name, (module, expected) in cases.items():
        torch.testing.assert_close(module(x), expected, msg=name)


def test_composition_shares_weights_and_powers_draw_their_own():
    a, x = Linear(3, 3), gaussian(2, 3, dtype=torch.float32)
    twice = a @ ReLU() @ a
    assert len(list(twice.parameters())) == 1
    torch.testing.assert_close(twice(x), a(a(x).relu()))
    torch.testing.assert_close((a + a)(x), 2 * a(x))
    weights = list((a**3).parameters())
    assert len(weights) == 3
    assert weights[0] is a.weight
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    for norm in (ng.norms.RMSToRMS().norm(w) for w in weights):
        torch.testing.assert_close(norm, torch.tensor(1.0))


def test_names_stay_short_and_readable():
    names = [name for name, _ in GPT(5, 4, 8, 2, 2).named_parameters()]
    assert names[:2] == ["embed.weight", "blocks.0.attention.block.qkv.q.map.weight"]
    assert names[-2:] == ["blocks.1.mlp.block.down.weight", "head.weight"]
    chained = Sequential(up=Linear(2, 2)) @ Sequential(up=Linear(2, 2)) @ Linear(2, 2)
    assert [name for name, _ in chained.named_parameters()] == ["0.weight", "up.weight", "2.weight"]


def test_atoms_compute_and_start_at_size_one():
    torch.manual_seed(0)
    x, ids = gaussian(2, 6, dtype=torch.float32), torch.tensor([[0, 2, 1]])
    linear, embedding, gain, bias = Linear(6, 4), Embedding(3, 5), Gain(6), Bias(6)
    torch.testing.assert_close(linear(x), x @ linear.weight.mT)
    torch.testing.assert_close(embedding(ids), embedding.weight[ids])
    assert torch.equal(gain(x), x)
    assert torch.equal(bias(x), x)
    assert not Linear(6, 4, zero=True).weight.any()
    for atom in (linear, embedding, gain):
        torch.testing.assert_close(atom.norm.norm(atom.weight.detach()), torch.tensor(1.0))
    assert Linear(2, 2, dtype=torch.float64).weight.dtype == torch.float64
    assert Linear(2, 2, device="meta").weight.is_meta


def test_bonds_equal_torch():
    x = gaussian(3, 8, dtype=torch.float32)
    torch.testing.assert_close(GELU()(x), functional.gelu(x))
    torch.testing.assert_close(LayerNorm()(x), functional.layer_norm(x, (8,)))
    torch.testing.assert_close(RMSNorm()(x), functional.rms_norm(x, (8,), eps=1e-5))
    torch.testing.assert_close(ScaledReLU()(x), math.sqrt(2) * x.relu())
    torch.testing.assert_close(ScaledGELU()(x), math.sqrt(2) * functional.gelu(x))
    assert Enumerate()(torch.zeros(2, 3)).tolist() == [0, 1, 2]
    slopes = torch.linspace(-6, 6, 200_001, dtype=torch.float64, requires_grad=True)
    functional.gelu(slopes).sum().backward()
    assert slopes.grad.abs().max() <= GELU.SLOPE < slopes.grad.abs().max() + 1e-4


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_equals_torch_per_head(heads, scale):
    q, k, v = (gaussian(2, 5, 8, seed=s) for s in range(3))
    out = Attention(heads, scale=scale)(q, k, v)
    mask = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
    d = 8 // heads
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        weights = ((scale or 1 / d) * q[..., part] @ k[..., part].mT + mask).softmax(-1)
        torch.testing.assert_close(out[..., part], weights @ v[..., part])


BOUNDS = {
    "linear": lambda: Linear(8, 4),
    "relu mlp": lambda: Linear(16, 4) @ ReLU() @ Linear(16, 16) @ ReLU() @ Linear(8, 16),
    "gelu": lambda: Linear(16, 4) @ GELU() @ Linear(8, 16),
    "bias": lambda: Linear(16, 4) @ ReLU() @ Bias(16) @ Linear(8, 16),
    "gain": lambda: Linear(8, 4) @ Gain(8) @ ReLU() @ Gain(8) @ Linear(8, 8),
    "residual": lambda: Linear(8, 4) @ residual(0.25, Linear(16, 8) @ ReLU() @ Linear(8, 16)) ** 3,
    "sums": lambda: (Linear(8, 4) + 2 * Linear(8, 4)) @ (Identity() - Linear(8, 8)),
    "shared": lambda: (lambda a: a @ ReLU() @ a)(Linear(8, 8)),
    "one head": lambda: Linear(8, 8) @ Mul(1 / 3) @ Attention(1) @ (Linear(8, 8), Linear(8, 8), Linear(8, 8)),
    "one sharp head": lambda: Attention(1, scale=1.5) @ (Linear(8, 8), Linear(8, 8), Linear(8, 8)),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("seed", range(3))
def test_what_calls_itself_a_bound_is_never_exceeded(name, seed):
    """The worst Δ that the power method finds in the modular norm; 20 restarts, at weights of norm 1."""
    torch.manual_seed(seed)
    model = BOUNDS[name]().double()
    x = 3 * gaussian(2, 6, 8, seed=seed)  # larger than 1: the plan has to take it into account
    plan = ng.compile(model, (x,))
    assert plan.holds(model)
    found = check_geometry(model, (x,), plan=plan, starts=20, seed=seed)
    assert 0.1 < found <= 1 + 1e-6


def test_attention_slots_are_bounds_and_are_nearly_reached():
    """μ_q = s·d·x_k·x_v: two opposite keys and values, and a change of q along them, come close."""
    d = 4
    one = torch.ones(d, dtype=torch.float64)
    k, v = torch.stack([one, -one]), torch.stack([one, -one])
    q = torch.zeros(2, d, dtype=torch.float64)
    attend = Attention(1, causal=False)
    slope = torch.func.jvp(lambda q: attend(q, k, v), (q,), (torch.ones_like(q),))[1]
    rms = slope.square().mean(-1).sqrt().max()
    assert 0.95 <= rms <= 1


def test_typical_factors_report_their_overshoot():
    """2·ReLU declared as 1: the plan says typical, and the search finds a change of nearly 2."""
    model = (Linear(8, 8) @ Typical(2 * ReLU(), 1.0) @ Linear(8, 8)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.eye(8))
    plan = ng.compile(model)
    assert [leaf.known for leaf in plan.leaves] == ["typical", "typical"]
    assert "typical" in plan.holds(model).reasons[0]
    found = check_geometry(model, (torch.ones(1, 8, dtype=torch.float64),), plan=plan)
    assert 1.4 < found < 2.001


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_attention_slots_depend_on_the_right_sizes(scale):
    """μ_q = s·d·x_k·x_v, μ_k = s·d·x_q·x_v, μ_v = 1, output as large as v: with three different sizes."""
    graph = ng.geometry.Graph()
    sizes = {"q": 2.0, "k": 3.0, "v": 5.0}
    q, k, v = (graph.input(ng.geometry.bound(size), features=4) for size in sizes.values())
    out = ng.geometry.trace(Attention(1, scale=scale), graph, q, k, v)
    assert [slot.value for slot in out.slots] == [scale * 4 * 3 * 5, scale * 4 * 2 * 5, 1.0]
    assert out.size.value == 5.0


def test_modules_are_torch_modules():
    torch.manual_seed(0)
    model = GPT(11, 6, 8, 2, 2)
    ids = torch.randint(0, 11, (2, 6))
    expected = model(ids)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(ids), expected)
    other = GPT(11, 6, 8, 2, 2)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(ids), expected)
    assert model.double()(ids).dtype == torch.float64
    assert "RMSToRMS" in repr(model)


def test_head_norm_and_rotary_equal_their_formulas():
    x = gaussian(2, 5, 12)
    heads = x.reshape(2, 5, 3, 4)
    torch.testing.assert_close(HeadNorm(3)(x).reshape_as(heads), functional.rms_norm(heads, (4,), eps=1e-6))
    turned = Rotary(3, context=5)(x).reshape_as(heads)
    pairs, expected = (torch.complex(y[..., :2], y[..., 2:]) for y in (heads, turned))
    rate = torch.tensor([1.0, 10_000.0**-0.5], dtype=torch.float64)
    angle = torch.arange(5).reshape(5, 1, 1) * rate
    torch.testing.assert_close(pairs * torch.polar(torch.ones_like(angle), angle), expected, rtol=1e-6, atol=1e-6)
    # Only differences of positions matter: ⟨turn(q, s), turn(k, t)⟩ is the same at s + 1, t + 1.
    q, k = (Rotary(1, 8)(gaussian(1, 4, seed=s).expand(8, 4)) for s in (1, 2))
    gram = q @ k.mT
    torch.testing.assert_close(gram[1:, 1:], gram[:-1, :-1], rtol=1e-5, atol=1e-5)


def test_gpt_is_causal():
    torch.manual_seed(0)
    model = GPT(11, 6, 8, 2, 2)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    ids = torch.randint(0, 11, (1, 6))
    changed = ids.clone()
    changed[0, 4] = (ids[0, 4] + 1) % 11
    difference = (model(ids) - model(changed)).abs().amax(-1)[0]
    assert difference[:4].max() < 1e-4 < difference[4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0, 3), "whole numbers > 0"),
        (lambda: Linear(2.0, 3), "whole numbers > 0"),
        (lambda: float("nan") * Identity(), "finite number"),
        (lambda: Identity() ** -1, "0, 1, 2"),
        (lambda: Attention(0), "heads must be ≥ 1"),
        (lambda: Attention(2, scale=-1.0), "scale must be"),
        (lambda: Attention(3)(*[torch.zeros(1, 2, 4)] * 3), "do not divide into 3 heads"),
        (lambda: SelfAttention(8, 3, 4), "choose heads that divide it"),
        (lambda: Rotary(2, 4)(torch.zeros(5, 8)), "5 tokens are more than context=4"),
        (lambda: Rotary(2, 4)(torch.zeros(3, 6)), "even width per head"),
        (lambda: Stream(Identity(), 1.0), r"in \(0, 1\)"),
        (lambda: LayerNorm(0.0), "eps must be > 0"),
        (lambda: Typical(Linear(2, 2)), "modules without weights"),
        (lambda: MLP(2, 2, 2, depth=1), "must be ≥ 2"),
        (lambda: GPT(2, 2, 2, 1, 0), "depth must be ≥ 1"),
        (lambda: Sum(), "at least one module"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="compose with modules"):
        Identity() @ 3
    with pytest.raises(TypeError, match="takes modules, got int"):
        Parallel(Identity(), 3)


def test_slices_of_a_chain_are_chains_of_the_same_modules():
    model = Sequential(Linear(4, 4), ReLU(), head=Linear(4, 2))
    tail = model[1:]
    assert isinstance(tail, Sequential)
    assert list(dict(tail.named_parameters())) == ["head.weight"]
    assert tail[-1] is model[2]
    assert (len(model[:0]), len(model[::2]), len(model[0:1])) == (0, 2, 1)
    x = torch.randn(3, 4)
    torch.testing.assert_close(tail(model[:1](x)), model(x))
    assert ng.compile(tail @ model[:1]).leaves[0].radius == 0.5
