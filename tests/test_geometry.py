"""The graph's backward pass against the published recursion, computed independently on the tree of modules."""

import math
from fractions import Fraction

import pytest
import torch
from helpers import published_gpt, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import normgeo as ng
from normgeo.geometry import GeometryError, Graph, View, assumed, bound, mass, register, tare, typical
from normgeo.nn import Add, Bias, Gain, Identity, Linear, Mul, Parallel, ReLU, Sequential, Sum

WIDTH = 4


@pytest.mark.parametrize("depth", [2, 8, 32])
def test_radii_of_the_published_gpt(depth):
    """1/7 for both embeddings and the head, 5/7 for q, k, v, 5/21 for attention-out and both MLP matrices: at any depth."""
    plan = ng.compile(published_gpt(65, 16, 8, 2, depth))
    assert len(plan.leaves) == 3 + 6 * depth
    for leaf in plan.leaves:
        attention_in = any(f".{name}." in leaf.name for name in "qkv")
        hidden = Fraction(5, 7) if attention_in else Fraction(5, 21)
        expected = Fraction(1, 7) if leaf.role == "embedding" or leaf.shape == (65, 8) else hidden
        assert leaf.radius == pytest.approx(float(expected), rel=1e-12)
        assert leaf.known == ("bound" if leaf.shape == (65, 8) and leaf.role == "linear" else "typical")
    assert "typical factors: η is typical, not a bound" in str(plan)


@pytest.mark.parametrize("depth", [2, 8, 32])
def test_our_gpt_has_the_same_radii(depth):
    expected = {
        "q": "5/7",
        "k": "5/7",
        "v": "5/7",
        "out": "5/21",
        "up": "5/21",
        "down": "5/21",
        "embed": "1/7",
        "head": "1/7",
    }
    plan = ng.compile(ng.nn.GPT(vocab_size=65, context=16, width=8, heads=2, depth=depth))
    for leaf in plan.leaves:
        name = leaf.name.removesuffix(".weight").removesuffix(".map").split(".")[-1]
        assert leaf.radius == pytest.approx(float(Fraction(expected[name])), rel=1e-12)
        assert leaf.known == ("bound" if name == "head" else "typical")


def modules(depth: int) -> st.SearchStrategy:
    """Random compositions of modules of one width, with masses that are not all 1."""
    linear = st.builds(lambda m: Linear(WIDTH, WIDTH).tare(m), st.floats(0.25, 4))
    leaves = st.one_of(
        linear, linear, st.builds(ReLU), st.builds(Identity), st.builds(Mul, st.sampled_from([0.5, -2.0, 3.0]))
    )
    if depth == 0:
        return leaves
    smaller = modules(depth - 1)
    return st.one_of(
        leaves,
        st.builds(lambda a, b: Sequential(a, b), smaller, smaller),
        st.builds(lambda a, b: Sum(a, b), smaller, smaller),
        st.builds(lambda a, b: Add() @ (a, b), smaller, smaller),
        st.builds(lambda c, a: c * a, st.sampled_from([0.25, -1.5]), smaller),
    )


def recursion(module: nn.Module, downstream: float, out: dict[nn.Parameter, float]) -> None:
    """b ∘ a: μ_a = sens_b·μ_b; of a sum or tuple each has the μ of what follows. Collects μ per weight."""
    if isinstance(module, Sequential):
        for child in reversed(list(module.children())):
            recursion(child, downstream, out)
            downstream *= sensitivity(child)
    elif isinstance(module, Sum | Parallel):
        for child in module.children():
            recursion(child, downstream, out)
    elif isinstance(module, Linear):
        out[module.weight] = out.get(module.weight, 0.0) + downstream


def sensitivity(module: nn.Module) -> float:
    if isinstance(module, Sequential):
        return math.prod(sensitivity(child) for child in module.children())
    if isinstance(module, Sum | Parallel):
        return sum(sensitivity(child) for child in module.children())
    return abs(module.factor) if isinstance(module, Mul) else 1.0


@given(modules(4))
def test_sensitivities_of_random_compositions_equal_the_recursion(inner):
    model = Linear(WIDTH, WIDTH) @ inner @ Linear(WIDTH, WIDTH)
    expected: dict[nn.Parameter, float] = {}
    recursion(model, 1.0, expected)
    plan = ng.compile(model)
    total = mass(model)
    named = dict(model.named_parameters())
    assert {leaf.name for leaf in plan.leaves} == set(named)
    for leaf in plan.leaves:
        assert leaf.sensitivity == pytest.approx(expected[named[leaf.name]])
        assert leaf.radius == pytest.approx(leaf.mass / (total * leaf.input_norm * leaf.sensitivity))


def test_on_a_dag_that_is_no_tree_paths_add():
    """x feeds y; the output is 2x + 3y + 5xy-like uses: μ(x) = 2 + slot_y·(3 + 5)."""
    graph = Graph()
    x = graph.op("x", graph.input())
    y = graph.op("y", x, slots=bound(0.5))
    out = graph.op("out", x, y, y, slots=(bound(2.0), bound(3.0), bound(5.0)))
    mu = graph.sensitivities(out)
    assert mu[y.index].value == 8.0
    assert mu[x.index].value == 6.0
    assert out.size.value == 2.0 + 0.5 * 8


def test_a_module_used_twice_is_one_leaf_whose_uses_add():
    shared = Linear(4, 4)
    plan = ng.compile(Sequential(shared, 0.5 * ReLU(), shared))
    (leaf,) = plan.leaves
    assert leaf.sensitivity == 1.5
    assert leaf.mass == 1.0


def test_sizes_flow_forward_and_count_as_at_least_one():
    big = ng.compile(Linear(4, 4) @ Sum(Identity(), Identity()) @ Linear(4, 4))
    assert [leaf.input_norm for leaf in big.leaves] == [1.0, 2.0]
    small = ng.compile(Linear(4, 4) @ (0.1 * Identity()) @ Linear(4, 4))
    assert [leaf.input_norm for leaf in small.leaves] == [1.0, 1.0]
    biased = ng.compile(Linear(4, 4) @ Bias(4) @ Gain(4))
    assert [(leaf.role, leaf.input_norm) for leaf in biased.leaves] == [("gain", 1.0), ("bias", 1.0), ("linear", 2.0)]


def test_what_is_known_is_as_good_as_the_worst_factor():
    assert (bound(1.0) * typical(2.0)).known == "typical"
    assert (typical(1.0) + assumed()).known == "assumed"
    assert bound(2.0).at_least(assumed(1.0)).known == "assumed"
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite number"):
            bound(bad)


class Halve(nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x / 2


def test_a_module_without_geometry_is_named_with_the_line_to_write():
    with pytest.raises(
        GeometryError, match=r"module Halve \(1\.inner\) has no geometry; write @normgeo\.geometry\.register\(Halve\)"
    ):
        ng.compile(Sequential(Linear(2, 2), Sequential(inner=Halve())))


def test_a_parameter_that_nobody_declares_is_named():
    class Mine(Halve):
        pass

    register(Mine)(lambda module, graph, x: graph.op("halve", x, slots=bound(0.5)))
    with pytest.raises(GeometryError, match=r"parameter 0\.unused has no geometry"):
        ng.compile(Sequential(Mine(), Linear(2, 2)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: Identity(), "no parameters"),
        (lambda: (0.0 * Identity()) @ Linear(2, 2), "does not reach the output"),
        (lambda: (Linear(2, 2), Linear(2, 2)) @ Identity(), "gives 2 tensors"),
        (lambda: Linear(3, 2) @ Linear(2, 2), r"Linear \(1\) takes 3 features and follows an operation with 2"),
        (lambda: ReLU() @ (Linear(2, 2), Linear(2, 2)), "cannot take the 2 tensors before it"),
    ],
)
def test_impossible_models_are_refused(model, message):
    made = model()
    with pytest.raises(ValueError, match=message):
        ng.compile(made)


@given(seeds)
def test_views_read_and_write_back(seed):
    stored = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    for view in (
        View("i o -> o i"),
        View("(three d) i -> three d i", (("three", 3),), 2),
        View("(h d) i -> h d i", (("h", 2),)),
    ):
        copy = stored.clone()
        view.write(copy, view.read(copy) + 1)
        assert torch.equal(view.read(copy), view.read(stored) + 1)
        changed = (copy != stored).sum()
        assert changed == view.read(stored).numel()


class FusedQKV(nn.Module):
    """A fused projection as a stranger would write it, stored (in, 3·out)."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, 3 * dim) / dim**0.5)

    def forward(self, x):
        return (x @ self.weight).chunk(3, -1)


@register(FusedQKV)
def _(module, graph, x):
    outs = []
    for index, block in enumerate("qkv"):
        out = graph.op(block, x, features=module.weight.shape[0])
        view = View("i (three o) -> three o i", (("three", 3),), index)
        graph.use(
            module.weight, out, role="linear", norm=ng.norms.RMSToRMS(), view=view, block=block, input_norm=x.size
        )
        outs.append(out)
    return tuple(outs)


def test_blocks_of_a_fused_weight_are_leaves_of_their_own():
    torch.manual_seed(0)
    model = ng.nn.Sequential(qkv=FusedQKV(8), mix=ng.nn.Attention(1), out=Linear(8, 8))
    plan = ng.compile(model)
    assert [leaf.name for leaf in plan.leaves] == ["qkv.weight[q]", "qkv.weight[k]", "qkv.weight[v]", "out.weight"]
    g = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    d = plan.dualize(g)["qkv.weight"]
    for i, leaf in enumerate(plan.leaves[:3]):
        alone = leaf.radius * ng.norms.RMSToRMS().dualize(g["qkv.weight"][:, 8 * i : 8 * i + 8].mT).mT
        torch.testing.assert_close(d[:, 8 * i : 8 * i + 8], alone)
    opt = plan.optimizer(model, lr=0.1, rule=ng.rules.Plain())
    before = model.qkv.weight.detach().clone()
    model(torch.randn(2, 5, 8)).square().sum().backward()
    d = plan.dualize({name: p.grad for name, p in model.named_parameters()})
    opt.step()
    torch.testing.assert_close(model.qkv.weight.detach(), before - 0.1 * d["qkv.weight"])


def test_tare_belongs_to_atoms_of_any_module():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    tare(model[2], 4)
    assert mass(model) == 5
    tare(model, relative=0.5)
    assert mass(model) == 2.5
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="finite number"):
            tare(model, bad)
    with pytest.raises(ValueError, match="no mass to rescale"):
        tare(nn.ReLU())
