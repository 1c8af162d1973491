"""Who sees whom in attention, against a softmax written out; and division by the RMS."""

import math

import pytest
import torch
from helpers import gaussian
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import normgeo as ng
from normgeo.geometry import Graph, bound, trace
from normgeo.linalg import steepest_gain
from normgeo.nn import Attention, Linear, RMSDivide, SelfAttention
from normgeo.testing import check_geometry
from normgeo.testing.geometry import norming

T = 6
EVEN = (torch.arange(T) % 2 == 0).expand(T, T)
SLOPE = -(torch.arange(T)[:, None] - torch.arange(T)).abs().double() / 3  # further keys count less (ALiBi)
PER_HEAD = torch.stack([EVEN, ~EVEN])
HIDDEN = SLOPE.masked_fill(~EVEN, -torch.inf)

MASKS = {
    "none": dict(causal=False),
    "causal": dict(causal=True),
    "window": dict(causal=True, window=2),
    "window to both sides": dict(causal=False, window=3),
    "bool": dict(causal=False, mask=EVEN),
    "bool and causal": dict(causal=True, mask=EVEN | torch.eye(T, dtype=torch.bool)),
    "bool per head": dict(causal=False, mask=PER_HEAD),
    "additive": dict(causal=False, mask=SLOPE),
    "additive, causal, window": dict(causal=True, window=4, mask=SLOPE),
    "additive with -inf": dict(causal=False, mask=HIDDEN),
    "keys only": dict(causal=False, mask=EVEN[:1]),
    "larger than the input": dict(causal=True, mask=torch.ones(9, 9, dtype=torch.bool).triu(-1)),
}


def written_out(q, k, v, heads, scale, causal, window=None, mask=None):
    """One head, query and key at a time."""
    t, d = q.shape[-2], q.shape[-1] // heads
    out = torch.zeros_like(v)
    for h in range(heads):
        own = slice(h * d, (h + 1) * d)
        for i in range(t):
            weights, total = [], 0.0
            for j in range(t):
                seen = (j <= i or not causal) and (window is None or abs(i - j) < window)
                extra = 0.0
                if mask is not None:
                    entry = mask.expand(heads, -1, -1) if mask.ndim == 2 else mask
                    entry = entry[h, min(i, entry.shape[1] - 1), j]
                    seen, extra = (seen and bool(entry), 0.0) if mask.dtype == torch.bool else (seen, entry.item())
                weights.append(math.exp(scale * (q[i, own] @ k[j, own]).item() + extra) if seen else 0.0)
                total += weights[-1]
            if total:
                out[i, own] = sum(w / total * v[j, own] for j, w in enumerate(weights))
    return out


@pytest.mark.parametrize("name", MASKS)
def test_attention_equals_the_softmax_written_out(name):
    q, k, v = (2 * gaussian(T, 4, seed=s) for s in range(3))
    out = Attention(2, scale=0.7, **MASKS[name])(q, k, v)
    torch.testing.assert_close(out, written_out(q, k, v, 2, 0.7, **MASKS[name]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("additive", [False, True])
def test_queries_that_see_nothing_get_zero_and_no_nan(dtype, additive):
    mask = torch.ones(T, T, dtype=torch.bool).tril(-1)  # the first query sees nothing
    mask = torch.zeros(T, T).masked_fill(~mask, -torch.inf) if additive else mask
    q, k, v = (gaussian(2, T, 4, seed=s).to(dtype).requires_grad_() for s in range(3))
    out = Attention(2, mask=mask)(q, k, v)
    assert (out[:, 0] == 0).all()
    out.square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in (q, k, v))
    assert not q.grad[:, 0].any()


@pytest.mark.parametrize("name", ["none", "bool per head", "additive, causal, window", "additive with -inf"])
@pytest.mark.parametrize("which", range(3))
def test_masks_do_not_change_the_bounds(name, which):
    """‖J Δ‖ against the slots with one head, searched over Δ; two opposite keys nearly reach those of q and k."""
    options = {key: value[:1] if getattr(value, "ndim", 0) == 3 else value for key, value in MASKS[name].items()}
    one = torch.ones(4, dtype=torch.float64)
    opposite = torch.stack([one * (-1) ** (i // 2) for i in range(T)])
    points = [tuple((1 + s) * gaussian(T, 4, seed=3 * s + i) for i in range(3)) for s in range(2)]
    points += [(1e-9 * opposite, opposite, opposite), (opposite, 1e-9 * opposite, opposite)]
    best = 0.0
    for x in points:
        attend, graph = Attention(1, scale=0.3, **options), Graph()
        nodes = [graph.input(bound(rms(each).max().item()), features=4) for each in x]
        slot = trace(attend, graph, *nodes).slots[which]
        assert slot.known == "bound"

        def f(y, x=x, attend=attend):
            return attend(*x[:which], y, *x[which + 1 :])

        with sdpa_kernel(SDPBackend.MATH):
            pull = torch.func.vjp(f, x[which])[1]
            found = steepest_gain(
                forward=lambda d, f=f, y=x[which]: torch.func.jvp(f, (y,), (d,))[1],
                backward=lambda u, pull=pull: pull(u)[0],
                norming=norming,
                dualize=lambda g: g / rms(g).clamp_min(1e-12),
                starts=[gaussian(T, 4) / rms(gaussian(T, 4))],
                iterations=10,
            )
        assert found <= slot.value * (1 + 1e-9)
        best = max(best, found / slot.value)
    assert best > 0.5


def rms(x):
    return x.square().mean(-1, keepdim=True).sqrt()


def test_the_promise_holds_behind_masks():
    torch.manual_seed(0)
    mask = torch.ones(T, T, dtype=torch.bool).tril(-1)
    qkv = (Linear(8, 8), Linear(8, 8), Linear(8, 8))
    model = (Linear(8, 8) @ (Attention(1, causal=False, mask=mask) / 3) @ qkv).double()
    assert 0.05 < check_geometry(model, (2 * gaussian(2, T, 8),)) <= 1 + 1e-6


@pytest.mark.parametrize("options", [dict(window=2), dict(mask=torch.ones(9, 9, dtype=torch.bool).triu(-1))])
def test_a_token_out_of_sight_has_no_influence(options):
    torch.manual_seed(0)
    model = SelfAttention(8, 2, context=9, **options)
    model.out.reset_parameters()
    torch.nn.init.eye_(model.out.weight)
    x = torch.randn(1, T, 8)
    other = x.clone()
    other[:, 0] += 1
    changed = (model(other) - model(x)).abs().amax(-1)[0]
    assert changed[0] > 1e-3
    assert changed[1] > 1e-3
    assert (changed[2:] == 0).all()
    assert any("mask" in key for key in model.state_dict()) == ("mask" in options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Attention(1, window=0), ValueError, "window counts"),
        (lambda: Attention(1, mask=torch.ones(3, 3, dtype=torch.int64)), TypeError, "tensor of bool, or of floats"),
        (lambda: Attention(1, mask=torch.ones(3, dtype=torch.bool)), ValueError, r"axes \(..., queries, keys\)"),
        (lambda: Attention(1, mask=torch.full((3, 3), torch.nan)), ValueError, "no inf or NaN"),
        (
            lambda: Attention(1, mask=torch.zeros(3, 3))(*[torch.zeros(5, 2)] * 3),
            ValueError,
            "do not fit a mask of 3×3",
        ),
    ],
)
def test_nonsense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- x/RMS(x)


def test_rms_divide():
    x = gaussian(3, 5)
    torch.testing.assert_close(RMSDivide()(x), functional.rms_norm(x, (5,), eps=1e-300))
    torch.testing.assert_close(RMSDivide(axis=-2)(x), RMSDivide()(x.mT).mT)
    for dtype in (torch.float32, torch.bfloat16):
        y = x.to(dtype)
        for scale in (2.0**-110, 2.0**120):
            torch.testing.assert_close(RMSDivide()(y * scale), RMSDivide()(y), rtol=2e-2, atol=0)
    zero = torch.zeros(2, 5, requires_grad=True)
    RMSDivide()(zero).sum().backward()
    assert zero.grad.isfinite().all()
    assert torch.autograd.gradcheck(RMSDivide(), x.requires_grad_())


@pytest.mark.parametrize("size", [0.01, 1.0, 3.0])
def test_rms_divide_passes_on_one_over_the_smallest_rms(size):
    x = size * gaussian(2, 5) / rms(gaussian(2, 5)) * torch.tensor([[1.0], [2.0]])
    pull = torch.func.vjp(RMSDivide(), x)[1]
    found = steepest_gain(
        forward=lambda d: torch.func.jvp(RMSDivide(), (x,), (d,))[1],
        backward=lambda u: pull(u)[0],
        norming=norming,
        dualize=lambda g: g / rms(g).clamp_min(1e-12),
        starts=[RMSDivide()(gaussian(2, 5, seed=s)) for s in range(9)],
    )
    assert found == pytest.approx(1 / size)
    (leaf, _) = ng.compile(Linear(5, 3) @ RMSDivide() @ Linear(4, 5)).leaves
    assert (leaf.sensitivity, leaf.known) == (1.0, "typical")
