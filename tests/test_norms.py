import pytest
import torch
from helpers import exported, gaussian, seeds
from hypothesis import given
from hypothesis import strategies as st

from normgeo import norms
from normgeo.linalg import SVD
from normgeo.norms import (
    L1,
    L2,
    RMS,
    Absolute,
    Blocks,
    Conv,
    ConvTransposed,
    Frobenius,
    KyFan,
    L1ToLinf,
    L1ToRMS,
    L2OfBlocks,
    Linf,
    Norm,
    Nuclear,
    RMSToLinf,
    RMSToRMS,
    Scaled,
    Schatten,
    Spectral,
    SumOfBlocks,
    Viewed,
    Weighted,
    with_polar,
)
from normgeo.testing import check_norm

INSTANCES = [
    Absolute(),
    L1(),
    L2(),
    RMS(),
    Linf(),
    Spectral(),
    Frobenius(),
    Nuclear(),
    Schatten(1.5),
    Schatten(4.0),
    KyFan(1),
    KyFan(2),
    KyFan(3),
    RMSToRMS(),
    L1ToRMS(),
    RMSToLinf(),
    L1ToLinf(),
    3 * RMSToRMS(),
    0.5 * Linf(),
    Blocks(RMSToRMS()),
    Blocks(0.1 * RMS()),
    2 * Blocks(L1ToRMS()),
    Blocks(Blocks(Linf())),
    Conv(1),
    ConvTransposed(1, stride=(2,)),
    SumOfBlocks(L2()),
    SumOfBlocks(0.5 * Linf()),
    L2OfBlocks(Absolute()),
    L2OfBlocks(0.5 * Linf()),
    Viewed(RMSToRMS(), "i o -> o i"),
    Viewed(Blocks(L2()), "m n -> n m"),
    Viewed(RMSToRMS(), "o i k -> o (i k)"),
]
sizes = st.integers(1, 7)


def test_every_exported_norm_is_checked():
    assert {type(norm) for norm in INSTANCES} | {Weighted} == set(exported(norms, Norm))


@pytest.mark.parametrize("norm", INSTANCES, ids=str)
@given(data=st.data(), seed=seeds)
def test_laws(norm, data, seed):
    shape = data.draw(st.tuples(*[sizes] * norm.ndim))
    check_norm(norm, shape, seed=seed)


@given(m=sizes, n=sizes, seed=seeds)
def test_rms_to_rms_is_the_largest_change_of_rms(m, n, seed):
    """Against the definition: sup RMS(Wx) over RMS(x) ≤ 1, by the top right singular vector and by random x."""
    w = gaussian(m, n, seed=seed)
    best = torch.linalg.svd(w)[2][0]
    candidates = torch.cat([best.unsqueeze(0), gaussian(100, n, seed=seed + 1)])
    x = RMS().dualize(candidates)
    gains = RMS().norm(x @ w.mT)
    torch.testing.assert_close(gains.max(), RMSToRMS().norm(w), rtol=1e-10, atol=1e-12)


@given(m=sizes, n=sizes, seed=seeds)
def test_l1_to_rms_is_the_largest_change_of_rms(m, n, seed):
    """‖x‖₁ ≤ 1 has the unit vectors as extreme points, so the largest RMS(xᵀW) is that of a row."""
    w = gaussian(m, n, seed=seed)
    x = gaussian(200, m, seed=seed + 1)
    gains = RMS().norm((x / x.abs().sum(-1, keepdim=True)) @ w)
    assert gains.max() <= L1ToRMS().norm(w) * (1 + 1e-12)
    torch.testing.assert_close(RMS().norm(torch.eye(m, dtype=w.dtype) @ w).max(), L1ToRMS().norm(w))


@pytest.mark.parametrize("norm", INSTANCES, ids=str)
@given(data=st.data(), seed=seeds)
def test_the_dual_norm_has_the_dual_as_its_gradient(norm, data, seed):
    """∇‖g‖* = dualize(g) wherever it is differentiable: autograd is the oracle."""
    g = gaussian(*data.draw(st.tuples(*[sizes] * norm.ndim)), seed=seed).requires_grad_()
    exact = with_polar(norm, SVD())
    exact.dual_norm(g).backward()
    torch.testing.assert_close(g.grad, exact.dualize(g.detach()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("norm", [RMSToRMS(), L1ToRMS(), RMS(), Linf()], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_follows_float64(norm, dtype):
    shape = (6, 4)[-norm.ndim :]
    g = gaussian(*shape).to(dtype)
    exact = with_polar(norm, SVD()).dualize(g.double())
    got = norm.dualize(g)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=0.02, atol=0.02)
    torch.testing.assert_close(norm.norm(g).double(), norm.norm(g.double()), rtol=0.01, atol=0)


def test_denormal_rows_give_finite_rows_and_zero_rows_stay():
    g = torch.zeros(3, 4)
    g[0] = 1e-42
    g[1, 2] = 1e-45
    d = L1ToRMS().dualize(g)
    torch.testing.assert_close(RMS().norm(d), torch.tensor([1.0, 1.0, 0.0]))


@given(st.floats(1e-30, 1e30), seeds)
def test_any_scale_gives_the_same_dual_to_rounding(c, seed):
    g = gaussian(6, 4, seed=seed, dtype=torch.float32)
    torch.testing.assert_close(RMSToRMS().dualize(c * g), RMSToRMS().dualize(g), rtol=0, atol=2e-3)
    torch.testing.assert_close(L1ToRMS().dualize(c * g), L1ToRMS().dualize(g), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", [RMSToRMS(), L1ToRMS()], ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_is_an_error(norm, shape):
    for function in (norm.norm, norm.dual_norm, norm.dualize):
        with pytest.raises(ValueError, match="at least one entry"):
            function(torch.zeros(shape))


def test_the_projection_of_a_sum_of_spectral_norms():
    """Hundreds of SVDs: slow, so once and not in the law-suite."""
    check_norm(SumOfBlocks(Spectral()), (2, 3, 2))


@given(seeds, st.integers(1, 4))
def test_ky_fan_interpolates_between_spectral_and_nuclear(seed, k):
    g = gaussian(4, 5, seed=seed)
    s = torch.linalg.svdvals(g)
    torch.testing.assert_close(KyFan(k).norm(g), s[:k].sum())
    torch.testing.assert_close(KyFan(1).dualize(g), with_polar(Spectral(), SVD()).dualize(g))
    torch.testing.assert_close(KyFan(4).dualize(g), Nuclear().dualize(g))
    torch.testing.assert_close(KyFan(1).project(g), Spectral().project(g))
    torch.testing.assert_close(KyFan(4).project(g), Nuclear().project(g), rtol=1e-6, atol=1e-8)


@given(seeds, st.floats(1.1, 10))
def test_schatten_is_the_power_norm_of_singular_values(seed, p):
    g = gaussian(4, 3, seed=seed)
    torch.testing.assert_close(Schatten(p).norm(g), torch.linalg.vector_norm(torch.linalg.svdvals(g), p))
    torch.testing.assert_close(Schatten(2.0).dualize(g), Frobenius().dualize(g))
    torch.testing.assert_close(Schatten(2.0).project(3 * g), Frobenius().project(3 * g), rtol=1e-6, atol=1e-8)


@given(seeds, st.integers(1, 5), st.integers(1, 5))
def test_operator_norms_against_their_definitions(seed, m, n):
    w, x = gaussian(m, n, seed=seed), gaussian(500, n, seed=seed + 1)
    rows = torch.linalg.vector_norm(w, dim=-1).argmax()
    best = torch.cat([x, w[rows].unsqueeze(0)])
    torch.testing.assert_close((RMS().dualize(best) @ w.mT).abs().max(), RMSToLinf().norm(w))
    torch.testing.assert_close(RMSToLinf().norm(w), (n * L1ToRMS()).norm(w))
    corners = torch.eye(n, dtype=w.dtype)
    torch.testing.assert_close((corners @ w.mT).abs().max(), L1ToLinf().norm(w))


def metric(seed, rank, dim):
    root = gaussian(dim, rank, seed=seed)
    return root @ root.mT


@given(seeds, st.integers(1, 6))
def test_weighted_obeys_the_laws(seed, dim):
    check_norm(Weighted(metric(seed, dim + 2, dim)), (dim,), seed=seed)


@given(seeds, st.integers(1, 3))
def test_a_singular_metric_is_a_seminorm_with_dual_infinite_off_its_range(seed, rank):
    a = metric(seed, rank, 5)
    norm, null = Weighted(a), torch.linalg.svd(a)[0][:, -1]
    inside, w = gaussian(5, seed=seed + 1) @ a, gaussian(5, seed=seed + 2)
    torch.testing.assert_close(norm.norm(w + 7 * null), norm.norm(w), rtol=1e-6, atol=1e-6)
    assert norm.dual_norm(inside + null) == torch.inf
    d = norm.dualize(inside)
    torch.testing.assert_close((inside * d).sum(), norm.dual_norm(inside), rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.norm(d), torch.tensor(1.0, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        norm.dual_norm(inside), (inside @ torch.linalg.pinv(a, rtol=1e-9) @ inside).sqrt(), rtol=1e-5, atol=0
    )
    p = norm.project(3 * w)
    assert norm.norm(p) <= 1 + 1e-9
    torch.testing.assert_close((p - 3 * w) @ null, torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "bad", [torch.ones(2), torch.tensor([[0.0, 1.0], [0.0, 0.0]]), -torch.eye(2), torch.tensor([[torch.nan]])]
)
def test_weighted_refuses_what_is_no_metric(bad):
    with pytest.raises(ValueError, match="Weighted needs"):
        Weighted(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schatten(1.0), "p = 1 is Nuclear"),
        (lambda: KyFan(0), "k ≥ 1"),
        (lambda: Viewed(RMS(), "a b -> a b"), "does not end in the 1 axes"),
        (lambda: Viewed(RMS(), "... a -> a"), "without"),
    ],
)
def test_impossible_norms_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(seeds)
def test_subgradients(seed):
    """‖w‖ ≥ ‖v‖ + ⟨z, w - v⟩ for z in ∂‖v‖ = {z : ‖z‖* ≤ 1, ⟨z, v⟩ = ‖v‖}, reached through the dual norm's dual."""
    for norm, shape in ((L1(), (4,)), (Linf(), (4,)), (L2(), (4,)), (Nuclear(), (3, 2)), (KyFan(2), (3, 3))):
        v, w = gaussian(*shape, seed=seed), gaussian(*shape, seed=seed + 1)
        g = v.requires_grad_()
        (z,) = torch.autograd.grad(norm.norm(g), g)
        v = v.detach()
        assert norm.dual_norm(z) <= 1 + 1e-9
        torch.testing.assert_close((z * v).sum(), norm.norm(v))
        assert norm.norm(w) >= norm.norm(v) + (z * (w - v)).sum() - 1e-9


def test_wrong_input_says_what_is_needed():
    with pytest.raises(ValueError, match=r"at least 2 axes, got torch\.float32"):
        RMSToRMS().dualize(torch.zeros(3))
    with pytest.raises(ValueError, match="floating tensor"):
        RMS().norm(torch.zeros(3, dtype=torch.long))
    for factor in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite factor > 0"):
            factor * RMS()


def test_norms_are_values():
    assert RMSToRMS() == RMSToRMS()
    assert hash(2 * Blocks(RMS())) == hash(Scaled(Blocks(RMS()), 2.0))
    assert RMSToRMS() != RMSToRMS(SVD())
    assert with_polar(2 * Blocks(RMSToRMS()), SVD()) == 2 * Blocks(RMSToRMS(SVD()))


def test_init_of_a_batch_draws_each_apart():
    w = Blocks(RMSToRMS()).init((3, 4, 4), torch.Generator().manual_seed(0))
    assert not torch.allclose(w[0], w[1])
    torch.testing.assert_close(RMSToRMS().norm(w), torch.ones(3))
    assert RMSToRMS().init((4, 2), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_norm_without_projection_says_so():
    class Half(Norm):
        ndim = 1

        def norm(self, w):
            return RMS().norm(w)

        def dual_norm(self, g):
            return RMS().dual_norm(g)

        def dualize(self, g):
            return RMS().dualize(g) / 2

    with pytest.raises(NotImplementedError, match="Half has no projection"):
        Half().project(torch.ones(3))
    with pytest.raises(AssertionError, match="dualize"):
        check_norm(Half(), (3,))


def test_matrices_near_the_largest_number_are_projected():
    """As the projection of their direction scaled by a power of two, which is the same for everything far outside."""
    w = gaussian(5, 3, dtype=torch.float32)
    for norm in (RMSToRMS(), Spectral()):
        expected = norm.project(w.double() * 2.0**40).float()
        for big in (2.0**40, 2.0**126 / w.abs().max()):
            torch.testing.assert_close(norm.project(w * big), expected, rtol=1e-5, atol=1e-6)
    tiny = w * 2.0**-140
    torch.testing.assert_close(RMSToRMS().project(tiny), tiny, rtol=1e-4, atol=2.0**-148)
