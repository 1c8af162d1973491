import dataclasses

import pytest
import torch
from helpers import exported, gaussian, seeds
from hypothesis import given
from hypothesis import strategies as st

import normgeo
from normgeo import linalg
from normgeo.budgets import Spectral
from normgeo.linalg import (
    FAST,
    SVD,
    TIGHT,
    NewtonSchulz,
    Polar,
    PolarExpress,
    RandomizedSVD,
    exponent,
    l2,
    newton_schulz,
    shift,
    steepest_gain,
    svd,
    svdvals,
)
from normgeo.linalg.coefficients import CANS, CUBIC, DEEPSEEK, KELLER, QUINTIC, YOU
from normgeo.testing import check_polar

STATED = {  # largest shortfall for singular values of G/‖G‖_F in [1e-3, 1], largest overshoot
    SVD(): (1e-5, 1e-5),
    TIGHT: (0.006, 1e-5),
    FAST: (0.45, 1e-5),
    PolarExpress(): (0.006, 1e-5),
    PolarExpress(gram=True): (0.006, 1e-4),
    RandomizedSVD(40): (1e-5, 1e-5),  # of full rank here
    RandomizedSVD(8): (1.0, 1e-5),  # what is beyond its rank it leaves out, and nothing exceeds 1
    NewtonSchulz(KELLER): (0.53, 0.203),
    NewtonSchulz(YOU): (0.526, 0.146),
    NewtonSchulz(CANS): (0.12, 0.121),
    NewtonSchulz(DEEPSEEK): (1e-4, 6e-4),
    NewtonSchulz(DEEPSEEK, gram=True): (2e-4, 7e-4),
    NewtonSchulz(15 * CUBIC): (0.584, 1e-5),
    NewtonSchulz(10 * QUINTIC): (0.502, 1e-5),
}
sides = st.integers(1, 40)


@given(seeds, st.integers(-140, 120))
def test_shift_is_exact_and_exponent_brackets_the_largest_entry(seed, power):
    x = gaussian(3, 5, seed=seed, dtype=torch.float32)
    scaled = shift(x, power)
    assert torch.equal(scaled.double(), (x.double() * 2.0**power).float().double())
    e = exponent(x, 1)
    largest = x.abs().amax(-1, keepdim=True)
    assert ((shift(largest, -e) >= 0.5) & (shift(largest, -e) < 1)).all()


@given(seeds, st.integers(-120, 120))
def test_l2_neither_underflows_nor_overflows(seed, power):
    x = gaussian(4, 7, seed=seed)
    expected = x.norm(dim=-1, keepdim=True) * 2.0**power
    torch.testing.assert_close(l2((x * 2.0**power).float(), 1).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [0.1, 1 / 3])
def test_sizes_of_many_equal_entries(value):
    """In one sum float32 would err by 2e-3."""
    x = torch.full((4096, 1024), value)
    for size in (l2(x, 2), newton_schulz.l2_in_range(x, 2)):
        assert size.item() == pytest.approx(value * 2**11, rel=5e-6)
    assert newton_schulz._unit(x)[0, 0].item() == pytest.approx(2**-11, rel=5e-6)


def test_l2_of_numbers_is_their_size():
    x = torch.tensor([-3.0, 0.0, 1e30])
    assert torch.equal(l2(x, 0), x.abs())


def test_l2_of_zero_and_nan():
    assert l2(torch.zeros(3), 1).item() == 0
    assert l2(torch.tensor([1.0, torch.nan]), 1).isnan().all()


@pytest.mark.parametrize("polar", STATED, ids=str)
@given(m=sides, n=sides, seed=seeds)
def test_every_polar_keeps_its_stated_error(polar, m, n, seed):
    error, overshoot = STATED[polar]
    check_polar(polar, (m, n), error=error, overshoot=overshoot, seed=seed)


def test_every_exported_polar_states_an_error():
    assert set(exported(linalg, Polar)) == {type(polar) for polar in STATED}


@pytest.mark.parametrize(("steps", "error"), [(5, 0.25), (6, 0.006), (7, 1e-5), (8, 1e-5), (12, 1e-5)])
def test_polar_express_error_by_steps(steps, error):
    for shape in [(64, 64), (32, 128), (128, 32)]:
        check_polar(PolarExpress(steps), shape, error=error)


def test_polar_express_in_bfloat16_is_within_a_few_per_cent():
    g = gaussian(64, 32, dtype=torch.float32)
    sizes = torch.linalg.svdvals(PolarExpress(dtype=torch.bfloat16)(g))
    assert 0.95 < sizes.min() <= sizes.max() < 1.03


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_polar_keeps_dtype_and_batch(dtype):
    g = gaussian(2, 3, 4, 6).to(dtype)
    for polar in (SVD(), PolarExpress(), PolarExpress(gram=True), NewtonSchulz(DEEPSEEK)):
        p = polar(g)
        assert p.dtype == dtype
        assert p.shape == g.shape
        assert (p.double() @ p.double().mT - torch.eye(4)).abs().max() < 0.02


@pytest.mark.parametrize("gram", [False, True])
def test_a_transpose_and_strides_change_nothing(gram):
    polar = PolarExpress(gram=gram)
    g = gaussian(2, 12, 5)
    torch.testing.assert_close(polar(g.mT), polar(g).mT, atol=1e-12, rtol=0)
    assert torch.equal(polar(gaussian(24, 5)[::2]), polar(gaussian(24, 5)[::2].contiguous()))
    assert polar(g).is_contiguous()


HARD = {
    "gaussian": torch.linalg.svdvals(gaussian(64, 256)),
    "to 1e-3": torch.logspace(0, -3, 64, dtype=torch.float64),
    "to 1e-10": torch.logspace(0, -10, 64, dtype=torch.float64),
    "half zero": torch.tensor([1.0, 0.0], dtype=torch.float64).repeat_interleave(32),
    "spike": torch.tensor([1.0] + 63 * [1e-4], dtype=torch.float64),
}


@pytest.mark.parametrize("spectrum", HARD)
@pytest.mark.parametrize(
    ("schedule", "dtype", "error", "top"),
    [
        (linalg.coefficients.polar_express(6), torch.float32, 1e-4, 1 + 1e-4),
        (linalg.coefficients.polar_express(10), torch.float32, 1e-3, 1 + 1e-4),
        (DEEPSEEK, torch.float32, 5e-3, 1.0025),
        (linalg.coefficients.polar_express(6), torch.float16, 0.15, 1 + 3e-3),
    ],
)
def test_gram_form_against_the_svd(spectrum, schedule, dtype, error, top):
    s = HARD[spectrum]
    u, v = (torch.linalg.qr(gaussian(k, k, seed=k))[0] for k in (64, 256))
    g = (u * s) @ v[:64]
    wanted = (u * linalg.coefficients.evaluate(schedule, s / s.norm())) @ v[:64]
    p = NewtonSchulz(schedule, dtype, gram=True)(g.float()).double()
    assert torch.linalg.matrix_norm(p - wanted, 2) <= error
    assert torch.linalg.matrix_norm(p, 2) <= top


def in_bfloat16(polar):
    return dataclasses.replace(polar, dtype=torch.bfloat16, gram=False)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64), (256, 256)])
@pytest.mark.parametrize("spectrum", ["gaussian", "to 1e-3", "to 1e-10", "half 1e-3", "spike", "flat"])
def test_tight_keeps_its_promise_in_bfloat16(spectrum, shape):
    """Singular values of G/‖G‖_F in [1e-3, 1] land in [.99, 1], and ⟨G, P⟩ ≥ .95 ‖G‖*: also where most are 1e-3."""
    m, k = min(shape), max(shape)
    s = {
        "gaussian": torch.linalg.svdvals(gaussian(m, k)),
        "to 1e-3": torch.logspace(0, -3, m, dtype=torch.float64),
        "to 1e-10": torch.logspace(0, -10, m, dtype=torch.float64),
        "half 1e-3": torch.cat([torch.full((m // 2,), (2 / m) ** 0.5), torch.full((m // 2,), 1e-3)]).double(),
        "spike": torch.cat([torch.ones(1), torch.full((m - 1,), 1e-3)]).double(),
        "flat": torch.ones(m, dtype=torch.float64),
    }[spectrum]
    u, v = (torch.linalg.qr(gaussian(side, side, seed=side))[0] for side in (m, k))
    g = ((u * s) @ v[:m] if shape[0] == m else v[:, :m] @ (s[:, None] * u)).float()
    p = in_bfloat16(TIGHT)(g)
    sizes = torch.linalg.svdvals(p.double())
    assert sizes.max() <= 1
    assert sizes[: int((s / s.norm() >= 0.999e-3).sum())].min() >= 0.99
    assert (g.double() * p.double()).sum() >= 0.95 * s.sum()
    for power in (100, -100):
        assert torch.equal(in_bfloat16(TIGHT)(g * 2.0**power), p)
    if spectrum == "flat":  # elsewhere rounding decides where small singular vectors point
        torch.testing.assert_close(in_bfloat16(TIGHT)(g.mT), p.mT, atol=0.02, rtol=0)


def rough(m, n, seed=0):
    """Gradients: sparse, positive, of heavy tails, of low rank, constant, with rows of very different size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    return {
        "sparse": (uniform(m, n) < 0.02) * normal(m, n),
        "positive": uniform(m, n),
        "signs": normal(m, n).sign(),
        "heavy tails": normal(m, n) / uniform(m, n),
        "rank of a third": normal(m, m // 3) @ normal(m // 3, n),
        "spikes": normal(m, 4) @ normal(4, n) + 1e-2 * normal(m, n),
        "constant": torch.ones(m, n) + 1e-3 * normal(m, n),
        "rows to 1e-3": normal(m, n) * torch.logspace(0, -3, m)[:, None],
        "columns to 1e-3": normal(m, n) * torch.logspace(0, -3, n),
    }


@pytest.mark.parametrize("shape", [(64, 65), (65, 127), (300, 64), (128, 512)])
def test_no_gradient_makes_bfloat16_leave_the_ball(shape):
    """Steps of degree 9 are steep where values are large, and there must be no rounding."""
    for kind, g in rough(*shape).items():
        s = torch.linalg.svdvals(g.double())
        for polar, least, most in ((TIGHT, 0.99, 1.0005), (FAST, 0.91, 1.02)):
            sizes = torch.linalg.svdvals(in_bfloat16(polar)(g).double())
            within = int((s / s.norm() >= (1e-3 if polar is TIGHT else 4e-3)).sum())
            assert sizes[0] <= most, kind
            assert sizes[within - 1] >= least, kind


@pytest.mark.parametrize("side", [64, 85, 99, 141, 148, 169, 240, 300])
def test_equal_rounding_errors_add_up_to_little(side):
    """Of equal entries all are rounded alike, at every step: with less margin tight diverges for most of these sides."""
    signs = torch.randn(side, generator=torch.Generator().manual_seed(0)).sign()
    for g in (torch.ones(side, side), signs[:, None] * torch.ones(2 * side), torch.ones(side, side).tril(-side // 2)):
        for polar, most in ((TIGHT, 1.012), (FAST, 1.03)):
            assert torch.linalg.matrix_norm(in_bfloat16(polar)(g), 2) <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(64, 256), (256, 64)])
@pytest.mark.parametrize("spectrum", ["gaussian", "to 1e-3", "half zero", "spike"])
def test_tight_keeps_its_promise_in_other_dtypes(spectrum, shape, dtype):
    """`in_dtype`: values of G/‖G‖_F in [1e-3, 1] land in [.99, 1]."""
    s = HARD[spectrum]
    u, v = (torch.linalg.qr(gaussian(k, k, seed=k))[0] for k in (64, 256))
    g = ((u * s) @ v[:64]).float()
    polar = linalg.in_dtype(dtype)
    assert polar.gram
    sizes = torch.linalg.svdvals(polar(g if shape[0] == 64 else g.mT).double())
    assert sizes.max() <= 1 + 1e-6
    assert sizes[: int((s / s.norm() >= 1e-3).sum())].min() >= 0.99


def test_precision_takes_a_dtype():
    model = torch.nn.Linear(4, 4)
    plan = normgeo.compile(model, example_inputs=(torch.ones(1, 4),))
    opt = plan.optimizer(model, precision=torch.float32)
    norms = {leaf.norm for leaves in opt._leaves.values() for leaf in leaves}
    assert any(getattr(norm, "polar", None) == linalg.in_dtype(torch.float32) for norm in norms)
    with pytest.warns(RuntimeWarning, match="computed in float32"):
        plan.optimizer(model, precision=torch.float16)
    with pytest.raises(ValueError, match="a floating dtype such as"):
        plan.optimizer(model, precision=torch.int8)


def test_mixed_takes_the_gram_form_where_products_stay_in_float32(monkeypatch):
    wide = gaussian(64, 96).float()
    for fast, gram in ((True, False), (False, True)):
        monkeypatch.setattr(newton_schulz, "multiplies_bfloat16_fast", lambda device, fast=fast: fast)
        called = []
        form = newton_schulz._gram_form
        monkeypatch.setattr(
            newton_schulz, "_gram_form", lambda *a, form=form, called=called: called.append(a) or form(*a)
        )
        TIGHT(wide)
        TIGHT(gaussian(63, 96).float())  # small
        TIGHT(gaussian(64, 96))  # precise
        assert bool(called) == gram
        assert len(called) <= 1
        monkeypatch.setattr(newton_schulz, "_gram_form", form)


def test_mixed_is_bfloat16_only_where_it_pays(monkeypatch):
    plain, short = (dataclasses.replace(TIGHT, dtype=None, gram=gram) for gram in (True, False))
    wide, small, precise = gaussian(64, 96).float(), gaussian(63, 96).float(), gaussian(64, 96)
    for fast, other in ((True, in_bfloat16(TIGHT)), (False, plain)):
        monkeypatch.setattr(newton_schulz, "multiplies_bfloat16_fast", lambda device, fast=fast: fast)
        assert torch.equal(TIGHT(wide), other(wide))
        assert torch.equal(TIGHT(small), short(small))
        assert torch.equal(TIGHT(precise), short(precise))


def test_the_last_step_is_the_same_polynomial():
    """In powers of I - XXᵀ, for 3 and 5 coefficients and for c = 0, wide and tall."""
    u, v = (torch.linalg.qr(gaussian(6, 6, seed=k))[0] for k in (0, 1))
    s = torch.linspace(0.1, 1, 6, dtype=torch.float64)
    for schedule in (TIGHT.schedule, FAST.schedule, KELLER, 4 * CUBIC, (TIGHT.schedule[-1], *CUBIC)):
        wanted = (u * linalg.coefficients.evaluate(schedule, s / s.norm())) @ v
        torch.testing.assert_close(NewtonSchulz(schedule)((u * s) @ v), wanted, atol=1e-12, rtol=0)


def test_gradients_at_the_ends_of_the_range():
    """Up to the largest float; below 2⁻¹²⁶ the result may fall short, but is finite and still a descent direction."""
    g = gaussian(5, 4).float()
    p = PolarExpress()(g)
    torch.testing.assert_close(PolarExpress()(g / g.abs().max() * torch.finfo(torch.float32).max), p, atol=1e-3, rtol=0)
    for power in (-130, -140, -147):
        tiny = PolarExpress()(shift(g, power))
        assert torch.linalg.matrix_norm(tiny, 2) <= 1 + 1e-5
        assert (tiny * g).sum() > 0


def test_powers_of_two_change_nothing_in_a_batch_of_all_scales():
    """Where squares leave the range of float32, all of the batch is scaled before ‖G‖_F is taken."""
    g = gaussian(70, 90).float()
    batch = torch.stack([shift(g, power) for power in (0, -20, 60, -100, 120)] + [torch.zeros_like(g)])
    for polar in (TIGHT, FAST, PolarExpress()):
        p = polar(batch)
        torch.testing.assert_close(p[0], polar(g), rtol=0, atol=0.02)
        for one in p[1:-1]:
            assert torch.equal(one, p[0])
        assert not p[-1].any()
    assert PolarExpress()(torch.stack([g, g * torch.nan]))[1].isnan().all()


def test_five_coefficients_end_in_one_that_counts():
    with pytest.raises(ValueError, match="the last of five coefficients must not be 0"):
        NewtonSchulz(((1.5, -0.5, 0.0), (2.0, -1.5, 0.5, 0.1, 0.0)))


def test_gram_form_is_the_same_polynomial():
    g = gaussian(3, 8, 20)
    nines = TIGHT.schedule[-1:]
    for schedule in (KELLER, YOU, 4 * CUBIC, DEEPSEEK, linalg.coefficients.polar_express(9), TIGHT.schedule, nines):
        plain, gram = (NewtonSchulz(schedule, gram=gram)(g) for gram in (False, True))
        torch.testing.assert_close(gram, plain, atol=1e-11, rtol=0)


def test_newton_schulz_refuses_nonsense():
    for bad in ((), ((1.5, -0.5),)):
        with pytest.raises(ValueError, match="one \\(a, b, c\\) a step"):
            NewtonSchulz(bad)
    with pytest.raises(ValueError, match="diverges in bfloat16"):
        PolarExpress(dtype=torch.bfloat16, gram=True)
    for dtype in (torch.bfloat16, torch.float16):
        for make in (lambda d: NewtonSchulz(CANS, d), lambda d: PolarExpress(safety=1.0, dtype=d)):
            with pytest.raises(ValueError, match="no margin for the rounding"):
                make(dtype)


@pytest.mark.parametrize("side", [96, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_constant_gradient_survives_rounding(side, dtype):
    schedules = [KELLER, YOU, DEEPSEEK, *map(linalg.coefficients.polar_express, (5, 6, 10))]
    for schedule in schedules:
        assert NewtonSchulz(schedule, dtype)(torch.ones(side, side)).norm() < 1.2


def test_svd_drops_noise_directions():
    u = torch.linalg.qr(gaussian(6, 6))[0]
    g = (u * torch.tensor([1.0, 1.0, 1e-17, 0, 0, 0], dtype=torch.float64)) @ gaussian(6, 6, seed=1)
    sizes = torch.linalg.svdvals(SVD()(g))
    assert sizes[:2].min() > 1 - 1e-10
    assert sizes[2:].max() < 1e-10


def test_polar_express_never_ascends_on_hard_spectra():
    for s in (
        torch.logspace(0, -10, 32),
        torch.cat([torch.ones(1), torch.full((31,), 1e-5)]),
        1 / torch.arange(1, 33.0),
    ):
        u, v = (torch.linalg.qr(gaussian(32, 32, seed=k))[0] for k in (0, 1))
        g = (u * s.double()) @ v
        p = PolarExpress()(g.float()).double()
        assert (g * p).sum() >= 0.95 * s.sum()


def test_singular_values_pass_nan_on():
    x = torch.stack([torch.eye(2), torch.tensor([[1.0, torch.inf], [0.0, 1.0]])])
    assert svdvals(x)[0].tolist() == [1.0, 1.0]
    assert svdvals(x)[1].isnan().all()
    assert svd(x)[1][1].isnan().all()
    assert SVD()(x)[1].isnan().all()
    assert PolarExpress()(x)[1].isnan().any()


def test_power_method_finds_the_operator_norm_from_rms_to_rms():
    j = gaussian(5, 9)

    def rms(x):
        return x.square().mean().sqrt()

    found = steepest_gain(
        forward=j.mv,
        backward=j.mT.mv,
        norming=lambda y: y / (rms(y) * y.numel()),
        dualize=lambda g: g / rms(g),
        starts=[gaussian(9, seed=k) / rms(gaussian(9, seed=k)) for k in range(3)],
        iterations=200,
    )
    assert found == pytest.approx(float(torch.linalg.svdvals(j)[0]) * (9 / 5) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"safety": 0.9}, {"steps": (5, 7)}])
def test_polar_express_refuses_nonsense(bad):
    with pytest.raises(ValueError, match="PolarExpress needs"):
        PolarExpress(**bad)


@pytest.mark.parametrize("polar", [PolarExpress(), PolarExpress(gram=True), NewtonSchulz(YOU), TIGHT], ids=str)
def test_polars_compile_without_a_graph_break(polar):
    g = gaussian(2, 4, 8)
    compiled = torch.compile(polar, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(g), polar(g), atol=1e-12, rtol=0)


@pytest.mark.parametrize("gram", [False, True])
def test_newton_schulz_has_derivatives(gram):
    g = gaussian(1, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(PolarExpress(3, gram=gram), g)


def test_eigh_copes_with_moments_of_rows_that_are_rarely_seen():
    """On matrices like these torch.linalg.eigh can give up in float32."""
    scales = torch.logspace(-2.5, -7.5, 188, dtype=torch.float64)
    g = gaussian(20, 188) * scales * (gaussian(20, 188, seed=1) > 1)
    m = (g.mT @ g).float()
    values, vectors = linalg.eigh(torch.stack([m, m * 2.0**-60]))
    torch.testing.assert_close(values[1] * 2.0**60, values[0])
    torch.testing.assert_close((vectors * values.unsqueeze(-2) @ vectors.mT)[0], m, rtol=0, atol=1e-5 * float(m.max()))
    torch.testing.assert_close(
        values[0].double(), torch.linalg.eigvalsh(m.double()), rtol=0, atol=1e-5 * float(m.max())
    )


@pytest.mark.parametrize("silent", [False, True])
def test_eigh_goes_on_in_float64_where_lapack_fails(monkeypatch, silent):
    whole = torch.linalg.eigh

    def stubborn(x):
        if x.dtype == torch.float32 and not silent:
            raise torch.linalg.LinAlgError("no convergence")
        return tuple(part * torch.nan if x.dtype == torch.float32 else part for part in whole(x))

    monkeypatch.setattr(torch.linalg, "eigh", stubborn)
    values, vectors = linalg.eigh(torch.diag(torch.tensor([3.0, 1.0])))
    assert values.tolist() == [1, 3]
    assert vectors.dtype == torch.float32


@pytest.mark.parametrize("silent", [False, True])
def test_eigvalsh_goes_on_in_float64_where_lapack_fails(monkeypatch, silent):
    whole = torch.linalg.eigvalsh

    def stubborn(x):
        if x.dtype == torch.float32 and not silent:
            raise torch.linalg.LinAlgError("no convergence")
        return whole(x) * torch.nan if x.dtype == torch.float32 else whole(x)

    monkeypatch.setattr(torch.linalg, "eigvalsh", stubborn)
    x = torch.diag(torch.tensor([3.0, 1.0]))
    assert linalg.eigvalsh(x).tolist() == [1, 3]
    assert linalg.eigvalsh(x).dtype == torch.float32
    assert Spectral().support(x) == 3
    assert linalg.eigvalsh(torch.stack([x, x * torch.inf]))[1].isnan().all()
    assert torch.autograd.gradcheck(lambda x: linalg.eigvalsh((x + x.mT) / 2), gaussian(3, 3).requires_grad_())


@given(seeds, st.integers(1, 60), st.integers(1, 60), st.integers(1, 12))
def test_randomized_svd_finds_no_more_than_there_is_and_all_of_a_low_rank(seed, m, n, rank):
    g = gaussian(m, rank, seed=seed) @ gaussian(rank, n, seed=seed + 1)
    nuclear = svdvals(g).sum()
    for width in (4, 12):
        p = RandomizedSVD(width)(g)
        found = (g * p).sum()
        assert svdvals(p)[0] <= 1 + 1e-9
        assert found <= nuclear * (1 + 1e-9)
        if rank <= width:
            torch.testing.assert_close(found, nuclear, rtol=1e-8, atol=0)
