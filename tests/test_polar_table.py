"""docs/polar.md is what its generator gives, and its worst gradients are neither missed nor imagined."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import gaussian
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from normgeo.linalg import TIGHT, NewtonSchulz
from normgeo.linalg.coefficients import DEEPSEEK, KELLER, polar_express

SPEC = importlib.util.spec_from_file_location(
    "generate_polar", Path(__file__).parents[1] / "docs" / "generate_polar.py"
)
polar = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(polar)

DEFAULT = TIGHT.schedule


def worst_spectrum(schedule, n):
    """The best n values with `count` large ones, a whole number, near the bound's."""
    _, _, _, count = polar.worst_descent(schedule, n)
    k = max(1, round(count))
    low = np.geomspace(1e-7, 1 / np.sqrt(n), 2_000)
    high = np.sqrt((1 - (n - k) * low**2) / k)
    spectra = np.concatenate([np.repeat(low[:, None], n - k, 1), np.repeat(high[:, None], k, 1)], axis=1)
    return min(spectra, key=lambda s: polar.descent(schedule, s))


def test_the_committed_page_is_current():
    assert polar.TARGET.read_text(encoding="utf-8") == polar.page(), "run python docs/generate_polar.py"


def spread(low, *schedule):
    y = polar.evaluate(schedule, np.linspace(low, 1, 200_001))
    return y.min() / y.max()


def test_fewest_products():
    """Steps one by one are as good as the sequence made at once; a cubic other than the best is worse."""
    found = polar.fewest(16)
    for count in (15, 16):
        low, degrees = found[count]
        best = polar.optimal_polynomials(degrees, 1e-3, cushion=0)
        assert low == pytest.approx(spread(1e-3, *best), abs=1e-4)
    assert found[15][0] < 0.99 * found[16][0] < 0.99
    for low in (0.01, 0.3, 0.8):
        best = 1 + low + low * low
        assert polar.contracted(3, low) == pytest.approx(spread(low, (1, -1 / best, 0)), abs=1e-6)
        assert max(spread(low, (1, -c / best, 0)) for c in (0.98, 1.02)) < polar.contracted(3, low)


@pytest.mark.parametrize(("n", "least"), [(2, 0.95), (64, 0.95), (256, 0.95), (1024, 0.85), (4096, 0.70)])
def test_the_default_descends_on_the_worst_gradient(n, least):
    assert polar.worst_descent(DEFAULT, n).descent >= least
    for schedule in (polar_express(10), polar_express(10, lower=1e-5), DEEPSEEK):
        assert polar.worst_descent(schedule, n).descent >= 0.95


@given(st.lists(st.floats(0, 7), min_size=2, max_size=64), st.sampled_from([DEFAULT, KELLER, polar_express(5)]))
def test_no_gradient_is_worse_than_the_worst(logs, schedule):
    spectrum = np.power(10.0, -np.array(logs))
    assert polar.descent(schedule, spectrum) >= polar.worst_descent(schedule, len(logs)).descent - 1e-5


@pytest.mark.parametrize("schedule", [DEFAULT, KELLER], ids=["default", "Keller"])
@pytest.mark.parametrize("n", [64, 256])
def test_the_worst_gradient_exists(schedule, n):
    bound, spectrum = polar.worst_descent(schedule, n).descent, torch.from_numpy(worst_spectrum(schedule, n))
    u, v = (torch.linalg.qr(gaussian(n, n, seed=k))[0] for k in (0, 1))
    g = (u * spectrum) @ v
    found = float((g * NewtonSchulz(schedule)(g)).sum() / spectrum.sum())
    assert found == pytest.approx(polar.descent(schedule, spectrum.numpy()), abs=1e-9)
    assert bound - 1e-6 <= found <= bound + 0.02


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_flops_are_what_torch_counts(gram, ratio):
    if gram and ratio == 1:
        return
    m = 16
    count = FlopCounterMode(display=False)
    for schedule in (schedule for _, schedule in polar.METHODS if not (gram and max(map(len, schedule)) > 3)):
        with count:
            NewtonSchulz(schedule, gram=gram)(gaussian(m, ratio * m))
        expected = (polar.gram_flops if gram else polar.flops)(schedule, ratio) * m**3
        assert count.get_total_flops() == expected
