import pytest
import torch
from helpers import exported, gaussian, seeds
from hypothesis import given
from hypothesis import strategies as st

from normgeo import norms
from normgeo.linalg import SVD
from normgeo.norms import RMS, Blocks, Conv, ConvTransposed, L1ToRMS, Linf, Norm, RMSToRMS, Scaled, with_polar
from normgeo.testing import check_norm

INSTANCES = [
    RMS(),
    Linf(),
    RMSToRMS(),
    L1ToRMS(),
    3 * RMSToRMS(),
    0.5 * Linf(),
    Blocks(RMSToRMS()),
    Blocks(0.1 * RMS()),
    2 * Blocks(L1ToRMS()),
    Blocks(Blocks(Linf())),
    Conv(1),
    ConvTransposed(1, stride=(2,)),
]
sizes = st.integers(1, 7)


def test_every_exported_norm_is_checked():
    assert {type(norm) for norm in INSTANCES} == set(exported(norms, Norm))


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
