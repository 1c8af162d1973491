"""Steps of norms without matrix products: in place, in rows of large leaves, and as exact as the long way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_paths import Allocations

import normgeo as ng
from normgeo import constraints, norms, rules
from normgeo.constraints import Rate
from normgeo.linalg import host_sees
from normgeo.norms.vectors import unit
from normgeo.optim import place
from normgeo.optim.descent import descend
from normgeo.testing.bowl import NoWaiting

TABLE, VECTOR = (24, 5), (37,)
NORMS = {norms.L1ToRMS(): TABLE, norms.RMSToLinf(): TABLE, 3 * norms.L1ToLinf(): TABLE, norms.Linf(): VECTOR}


def descent(norm, shape, steps=4, dtype=torch.float32, grads=None, **options):
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
    leaf = ng.geometry.Leaf("p", "p", shape, "linear", norm)
    opt = ng.optim.Optimizer([{"params": [p], "leaves": [(leaf,)]}], lr=0.1, **options)
    for step in range(steps):
        p.grad = torch.randn(shape, generator=generator).to(dtype) if grads is None else grads[step].to(dtype)
        p.grad[1::3] = 0
        opt.step()
    return p, opt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS, ids=repr)
@pytest.mark.parametrize(
    "options",
    [
        {"rule": rules.Momentum(0.5, nesterov=True), "constraint": constraints.Decay(0.1)},
        {"rule": rules.HeavyBall(0.5), "constraint": constraints.DecoupledDecay(0.01)},
        {"rule": rules.Stored(rules.Momentum(0.9)), "constraint": constraints.CorrectedDecay(0.1)},
        {"rule": rules.Plain(), "constraint": constraints.L2Penalty(0.1)},
        {"rule": rules.Momentum(0.5), "capturable": True},
        {"rule": rules.Momentum(0.5), "step": ng.steps.Linear(10, warmup=2), "nonfinite": "zero"},
        {"rule": rules.Momentum(0.5), "step": ng.steps.Warmup(2) * ng.steps.Linear(10)},
    ],
    ids=str,
)
def test_a_leaf_in_rows_ends_where_it_ends_whole(options, norm, dtype, monkeypatch):
    """To the bit, its state too, whatever moves it."""
    whole, its = descent(norm, NORMS[norm], dtype=dtype, **options)
    monkeypatch.setitem(place.MOST, "cpu", 32)
    rows, other = descent(norm, NORMS[norm], dtype=dtype, **options)
    assert len(other._bound[0].stacks[0].blocks()) > 1
    assert torch.equal(whole, rows)
    assert its.state[whole].keys() == other.state[rows].keys()
    assert all(torch.equal(x, other.state[rows][name]) for name, x in its.state[whole].items())
    assert float(other.state[rows]["moved"]) > 0


def test_what_needs_the_whole_leaf_gets_it(monkeypatch):
    monkeypatch.setitem(place.MOST, "cpu", 32)
    for norm, options in (
        (norms.Frobenius(), {}),
        (norms.L1ToRMS(), {"iterate": ng.optim.EMA()}),
        (norms.L1ToRMS(), {"constraint": constraints.Ball(1.0)}),
        (norms.L1ToRMS(), {"step": ng.steps.Prodigy()}),
    ):
        _, opt = descent(norm, TABLE, **options)
        assert len(opt._bound[0].stacks[0].blocks()) == 1


def test_a_bad_gradient_leaves_all_rows_as_they_were(monkeypatch):
    monkeypatch.setitem(place.MOST, "cpu", 32)
    p, opt = descent(norms.L1ToRMS(), TABLE, nonfinite="zero", rule=rules.Stored(rules.Momentum(0.9)))
    other = torch.nn.Parameter(torch.ones(3))
    leaf = ng.geometry.Leaf("q", "q", (3,), "bias", norms.RMS())
    opt.add_param_group({"params": [other], "leaves": [(leaf,)]})
    before = p.detach().clone(), {name: x.clone() for name, x in opt.state[p].items()}
    p.grad[-1, -1], other.grad = torch.nan, torch.ones(3)
    with pytest.warns(RuntimeWarning, match="NaN or Inf in the gradient of p"):
        opt.step()
    assert torch.equal(p, before[0])
    assert not torch.equal(other, torch.ones(3))
    assert all(torch.equal(x, before[1][name]) for name, x in opt.state[p].items() if name != "step")


def test_a_step_of_a_large_leaf_works_in_the_space_of_a_chunk(monkeypatch):
    monkeypatch.setitem(place.MOST, "cpu", 4096)
    _, opt = descent(norms.L1ToRMS(), (1024, 64), steps=2)
    with Allocations() as count:
        opt.step()
    assert 0 < count.most <= 9 * 4 * 4096


@pytest.mark.parametrize("shape", [(200,), (3,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("at", [0, 197])
def test_who_moved_is_counted(at, dtype, shape):
    """A step that rounds away, one of a single entry, wherever it is, and none."""
    gradient = torch.zeros(shape)
    assert float(descent(norms.Linf(), shape, 1, dtype, [gradient])[1].state.popitem()[1]["moved"]) == 0
    gradient[at if shape == (200,) else 0] = 1
    assert float(descent(norms.Linf(), shape, 1, dtype, [gradient])[1].state.popitem()[1]["moved"]) == 1
    tiny = torch.tensor(1e-30, dtype=torch.float64)
    p, opt = descent(norms.Linf(), shape, 1, dtype, [gradient], constraint=constraints.Decay(0.1))
    opt.param_groups[0]["lr"] = tiny
    opt.step()
    assert float(opt.state[p]["moved"]) == 1


@pytest.mark.parametrize(
    "constraint",
    [
        constraints.Free(),
        constraints.Decay(0.3),
        constraints.DecoupledDecay(0.3),
        constraints.CorrectedDecay(0.3),
        constraints.L2Penalty(0.3),
    ],
    ids=repr,
)
def test_one_pass_is_a_step_and_the_constraint(constraint):
    W, D = (torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2))
    rate = Rate(torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
    long = constraint.retract(W - 0.1 * D, W, rate, constraint.init(W))
    d = constraint.pull(rate)
    descend(list(W), list(D), 2 * [(0.1, 0.0 if d is None else float(d))])
    torch.testing.assert_close(W, long, rtol=0, atol=1e-15)


@pytest.mark.parametrize("mass", [1e-25, 1e-35, 1e-45])
def test_a_leaf_of_next_to_no_mass_decays_like_any_other(mass):
    ps = [torch.nn.Parameter(torch.tensor([3.0, 0.0])) for _ in range(2)]
    leaves = [(ng.geometry.Leaf(str(m), str(m), (2,), "bias", norms.Linf(), mass=m),) for m in (1.0, mass)]
    opt = ng.optim.Optimizer([{"params": ps, "leaves": leaves}], lr=0.5, constraint=constraints.Decay(0.2))
    for p in ps:
        p.grad = torch.ones(2)
    opt.step()
    torch.testing.assert_close(ps[1].detach(), torch.tensor([2.7, -0.5 * mass]), rtol=1e-6, atol=2e-45)


# ---- unit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=60, deadline=None)
@given(exponents=st.lists(st.integers(-1074, 1023), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_units_of_slices_of_any_size(dtype, exponents, seed):
    """Against float64 after a shift by a power of two; slices next to each other may differ. As on a device."""
    info = torch.finfo(dtype)
    least, most = (-149, 127) if dtype == torch.float32 else (-1074, 1023)
    g = torch.randn(len(exponents), 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    g = g / g.abs().amax(1, keepdim=True)
    x = g.to(dtype)
    for i, e in enumerate(min(max(e, least), most) for e in exponents):
        half = e // 2
        x[i] = x[i] * 2.0**half * 2.0 ** (e - half)
    wide = x.double()
    for _ in range(3):  # to a size at which squares are safe, without rounding
        largest = wide.abs().amax(1, keepdim=True)
        wide = torch.where(
            largest < 2.0**-200, wide * 2.0**400, torch.where(largest > 2.0**200, wide * 2.0**-400, wide)
        )
    wanted = wide / wide.norm(dim=1, keepdim=True).where(wide.any(1, keepdim=True), torch.ones(()).double())
    torch.testing.assert_close(unit(x, 1, 3.0).double(), 3 * wanted, rtol=0, atol=12 * info.eps)
    with NoWaiting():
        blind = unit(x, 1, 3.0)
    assert torch.equal(blind, unit(x, 1, 3.0))


def test_rows_without_a_positive_entry_have_been_seen():
    age = torch.full((1, 3), 5.0)
    m = torch.ones(1, 3, 2)
    rules.base.drop_stale(m, torch.tensor([[[-1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]]), age, 6)
    assert age.tolist() == [[0, 6, 0]]
    assert m.tolist() == [[[1, 1], [0, 0], [1, 1]]]


def test_the_host_looks_at_nothing_that_is_traced():
    assert host_sees(torch.ones(1))
    with NoWaiting():
        assert not host_sees(torch.ones(1))
    assert not host_sees(torch.ones(1, device="meta"))


def test_the_host_looks_at_nothing_that_is_mapped_over_or_empty():
    """`vmap` has no numbers to show, and of no numbers there is no least."""
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    for norm in (norms.L1ToRMS(), norms.RMSToLinf(), norms.RMS(), norms.Frobenius()):
        torch.testing.assert_close(torch.func.vmap(norm.dualize)(x), norm.dualize(x))
    assert norms.RMS().dualize(torch.zeros(2, 0, 5)).shape == (2, 0, 5)


@pytest.mark.parametrize("exponent", range(-24, 16, 3))
def test_units_in_float16(exponent):
    x = torch.tensor([[2.0**exponent, 0.0], [0.0, 0.0]], dtype=torch.float16)
    assert unit(x, 1, 3.0).tolist() == [[3, 0], [0, 0]]
    assert unit(torch.zeros(1, 70000, dtype=torch.float16), 1, 70000**0.5).abs().max() == 0


def test_who_moved_is_known_of_few_entries():
    """Also where a step rounds away and the way back would not: numbers lie closer below 1 than above."""
    p = torch.nn.Parameter(torch.ones(2, 3))
    p.grad = -torch.ones(2, 3)
    leaf = ng.geometry.Leaf("p", "p", (2, 3), "linear", norms.L1ToLinf())
    opt = ng.optim.Optimizer([{"params": [p], "leaves": [(leaf,)]}], lr=0.75 * 2**-24)
    opt.step()
    assert torch.equal(p, torch.ones(2, 3))
    assert int(opt.state[p]["moved"]) == 0


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="gradients have the dtype of their parameters")
def test_rows_of_bfloat16_have_gradients_of_float32(monkeypatch):
    ends = []
    for most in (10**6, 32):
        monkeypatch.setitem(place.MOST, "cpu", most)
        p = torch.nn.Parameter(torch.ones(TABLE, dtype=torch.bfloat16))
        p.grad_dtype = torch.float32
        p.grad = torch.randn(TABLE, generator=torch.Generator().manual_seed(0))
        leaf = ng.geometry.Leaf("p", "p", TABLE, "linear", norms.L1ToRMS())
        ng.optim.Optimizer([{"params": [p], "leaves": [(leaf,)]}], lr=0.1).step()
        ends.append(p.detach())
    assert torch.equal(*ends)
