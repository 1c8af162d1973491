import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normgeo.linalg import FAST, TIGHT
from normgeo.linalg.coefficients import (
    CANS,
    about_one,
    evaluate,
    optimal_polynomials,
    optimal_quintics,
    polar_express,
)

# arXiv 2505.16932, for [1e-3, 1].
PUBLISHED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


def worst(schedule, lower):
    return np.abs(evaluate(schedule, np.geomspace(lower, 1, 20_001)) - 1).max()


def test_the_computed_quintics_are_the_published_ones():
    np.testing.assert_allclose(optimal_quintics(6), PUBLISHED[:6], rtol=0, atol=1e-13)
    np.testing.assert_allclose(optimal_quintics(8), PUBLISHED, rtol=0, atol=1e-10)


def test_cans_is_the_optimum_without_cushion():
    np.testing.assert_allclose(optimal_quintics(5, cushion=0.0), CANS, rtol=0, atol=5.1e-5)


@given(lower=st.floats(1e-4, 0.99), a=st.floats(-1, 1), b=st.floats(-1, 1), c=st.floats(-1, 1))
def test_no_other_quintic_is_closer_to_one(lower, a, b, c):
    best = optimal_quintics(1, lower, cushion=0.0)
    other = tuple(x + 0.1 * y for x, y in zip(best[0], (a, b, c), strict=True))
    assert worst(best, lower) <= worst((other,), lower) + 1e-7


@given(st.floats(1e-4, 0.999999), st.integers(1, 12))
def test_quintics_equioscillate(lower, steps):
    """The image of [lower, 1] is centred on 1: its ends are p(lower) = 1 - e and 1 + e."""
    y = evaluate(optimal_quintics(steps, lower, cushion=0.0), np.geomspace(lower, 1, 20_001))
    assert y.min() == pytest.approx(y[0], abs=1e-12)
    assert y.max() - 1 == pytest.approx(1 - y[0], abs=1e-6)


@pytest.mark.parametrize("steps", [2, 4, 5, 6])
def test_the_cushion_costs_little(steps):
    assert worst(optimal_quintics(steps, cushion=0.0), 1e-3) <= worst(optimal_quintics(steps), 1e-3)
    assert worst(optimal_quintics(steps), 1e-3) <= worst(optimal_quintics(steps, cushion=0.0), 1e-3) + 0.015


@given(st.integers(1, 12), st.floats(1, 1.1), st.sampled_from([1e-2, 1e-3, 1e-5]))
def test_polar_express_stays_in_the_unit_interval(steps, safety, lower):
    y = evaluate(polar_express(steps, safety, lower), np.geomspace(1e-9, 1, 30_011))
    assert y.min() > 0
    assert y.max() <= 1 + 1e-6


@given(st.floats(0.05, 0.99), st.sampled_from([5, 9, 13]))
def test_the_best_polynomial_of_any_degree_equioscillates(lower, degree):
    """Chebyshev: k coefficients are the best if p - 1 has k + 1 extremes of one size and alternating sign."""
    best = optimal_polynomials((degree,), lower, cushion=0.0)
    y = evaluate(best, np.linspace(lower, 1, 200_001)) - 1
    size = np.abs(y).max()
    signs = np.sign(y[np.abs(y) > 0.999 * size - 1e-13])
    assert size < 1e-11 or 1 + (np.diff(signs) != 0).sum() == (degree + 1) // 2 + 1


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.floats(-1, 2))
def test_about_one_is_the_same_polynomial(step, y):
    direct = sum(c * y**k for k, c in enumerate(step))
    assert sum(q * (1 - y) ** k for k, q in enumerate(about_one(tuple(step)))) == pytest.approx(direct, abs=1e-9)


def test_what_tight_and_fast_promise():
    x = np.geomspace(1e-9, 1, 200_001)
    for polar, lower, error in ((TIGHT, 6e-4, 0.009), (FAST, 4e-3, 0.08)):
        y = evaluate(polar.schedule, x)
        assert y.max() <= polar.ceiling + 1e-9
        assert y.min() > 0
        assert np.abs(y[x >= lower] - 1).max() <= error
    assert np.abs(evaluate(TIGHT.schedule, x)[x >= 1e-3] - 1).max() <= 0.0055


@pytest.mark.parametrize("bad", [{"lower": 0.0}, {"lower": 1.0}, {"cushion": 1.0}, {"cushion": -0.1}, {"steps": 0}])
def test_quintics_refuse_nonsense(bad):
    with pytest.raises(ValueError, match="0 < lower < 1"):
        optimal_quintics(**{"steps": 3, **bad})
