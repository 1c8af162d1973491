"""Budgets against their laws, against independent solvers, and against the closed forms where the theory misprints them."""

import numpy as np
import pytest
import scipy.optimize
import torch
from helpers import exported, gaussian, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

import normgeo as ng
from normgeo import budgets, norms
from normgeo.budgets import (
    Blocks,
    Budget,
    Diagonal,
    Dynamic,
    Ellipsoid,
    Frobenius,
    Invariant,
    LayerWise,
    OnDiagonal,
    Penalty,
    Product,
    Spectral,
    Step,
)
from normgeo.linalg import SVD
from normgeo.testing import check_budget

DIM = 5


def spd(d, seed=0, low=-1.0):
    u = torch.linalg.qr(gaussian(d, d, seed=seed))[0]
    return (u * torch.logspace(0, low, d, dtype=torch.float64)) @ u.mT


def symmetric(d, seed=0):
    x = gaussian(d, d, seed=seed)
    return x + x.mT


SINGULAR = spd(DIM, 7, low=-2) @ torch.diag(torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.float64)) @ spd(DIM, 7, low=-2)
INSTANCES = {
    "Frobenius": Frobenius(2.3),
    "Spectral": Spectral(trace=1.0, cap=0.3),
    "Spectral, all capped": Spectral(trace=9.0, cap=1.0),
    "Spectral, one direction": Spectral(trace=1.0, cap=1.0),
    "OnDiagonal": OnDiagonal(Spectral(trace=1.0, cap=0.4)),
    "Diagonal": Diagonal(costs=torch.linspace(0.1, 3, DIM, dtype=torch.float64), B=0.7),
    "Ellipsoid": Ellipsoid(spd(DIM, 3, low=-2), B=1.3),
    "Ellipsoid, singular": Ellipsoid(SINGULAR),
    "LayerWise": LayerWise(torch.linspace(0.2, 2, DIM, dtype=torch.float64), dims=(3, 1, 4, 1, 5)),
    "Step, infinity": Step(norms.Linf(), radius=0.3),
    "Step, spectral": Step(norms.Spectral(SVD()), radius=2.0),
    "Scaled": 2 * Frobenius(),
    "Scaled Ellipsoid": 0.1 * Ellipsoid(spd(DIM, 3)),
    "Product": Product(Diagonal(2.0)),
    "Product of matrices": Product(Frobenius()),
    "Blocks": Blocks(Spectral(1.0, 0.3)),
}
ITERATED = {
    "Intersection of invariant": Frobenius() & Spectral(1.4, 0.6),
    "Sum": Frobenius() + Spectral(1.4, 0.6),
}
ABSTRACT = {Budget, Invariant}


def test_every_exported_budget_is_checked():
    checked = {type(budget) for budget in [*INSTANCES.values(), *ITERATED.values()]}
    assert checked == set(exported(budgets, Budget)) - ABSTRACT - set(exported(budgets, Dynamic))


@pytest.mark.parametrize("name", INSTANCES)
@settings(max_examples=4)
@given(seed=seeds)
def test_laws(name, seed):
    check_budget(INSTANCES[name], dim=DIM, seed=seed)


@pytest.mark.filterwarnings("ignore::normgeo.budgets.NumericalWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", ITERATED)
def test_laws_of_what_is_found_numerically(name):
    check_budget(ITERATED[name], dim=3)


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_laws_in_other_dimensions(dim):
    for budget in (Frobenius(), Spectral(1.5, 1.0), Diagonal(2.0), OnDiagonal(Frobenius())):
        check_budget(budget, dim=dim)


def solved(m, use, dim=DIM, starts=3):
    """max ⟨Q, M⟩ over use(Q) ≤ 1, use homogeneous of degree 1: BFGS on log of the ratio, over Q = L Lᵀ."""
    best = 0.0

    def objective(x):
        q = torch.tensor(x.reshape(dim, dim), dtype=torch.float64, requires_grad=True)
        full = q @ q.mT
        value = -(full * m).sum() / use(full)
        (slope,) = torch.autograd.grad(value, q)
        return float(value.detach()), slope.numpy().ravel()

    for seed in range(starts):
        start = gaussian(dim, dim, seed=seed).numpy().ravel()
        found = scipy.optimize.minimize(
            objective, start, jac=True, method="BFGS", options={"maxiter": 500, "gtol": 1e-10}
        )
        best = max(best, -found.fun)
    return best


@pytest.mark.parametrize("moment", ["psd", "indefinite"])
def test_frobenius_equals_an_independent_solver(moment):
    m = spd(DIM, 1) if moment == "psd" else symmetric(DIM, 1)
    assert float(Frobenius(2.3).support(m)) == pytest.approx(solved(m, lambda q: q.norm() / 2.3**0.5), rel=1e-7)


@pytest.mark.parametrize("moment", ["psd", "indefinite"])
def test_ellipsoid_equals_an_independent_solver(moment):
    w, m = spd(DIM, 3, low=-2), spd(DIM, 1) if moment == "psd" else symmetric(DIM, 1)
    found = solved(m, lambda q: (torch.trace(q @ w @ q) / 1.3).sqrt())
    assert float(Ellipsoid(w, 1.3).support(m)) == pytest.approx(found, rel=1e-6)


def test_what_ellipsoids_make_of_metrics_that_commute_with_the_moment():
    """X0-4: with the moment itself as metric every direction gets the same, which whitens nothing; M^{3/2} gives M^{-1/2}
    and M² gives M⁻¹."""
    m = spd(DIM, 2)
    s, u = torch.linalg.eigh(m)
    for power in (1.0, 1.5, 2.0):
        q = Ellipsoid((u * s**power) @ u.mT, B=0.7).maximizer(m)
        wanted = (u * s ** (1 - power)) @ u.mT
        torch.testing.assert_close(q / q.norm(), wanted / wanted.norm(), rtol=1e-8, atol=1e-8)
    best = float((0.7 * torch.trace(m)) ** 0.5)
    assert float(Ellipsoid(m, B=0.7).support(m)) == pytest.approx(best, rel=1e-9)


def test_newton_is_not_the_best_symmetric_operator_in_its_ellipsoid():
    """X0-10: for M = ggᵀ the Lyapunov solution beats the ray of H⁻¹."""
    h, g = spd(DIM, 5, low=-2), gaussian(DIM, seed=6)
    budget, m = Ellipsoid(h), g.outer(g)
    ray = torch.linalg.inv(h)
    ray = ray / budget.gauge(ray)
    assert budget.support(m) > 1.05 * (ray * m).sum()
    q = budget.maximizer(m)
    c = (h @ q + q @ h)[0, 0] / m[0, 0]
    torch.testing.assert_close(h @ q + q @ h, c * m, rtol=1e-8, atol=1e-8)


def test_layers_share_by_evidence_over_cost():
    """X0-19: α ∝ S/(d·‖θ‖²) beats the printed α ∝ 1/‖θ‖ at the same cost."""
    sizes, dims = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64), (4, 2, 3)
    s = torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)
    budget = LayerWise(sizes, dims, B=0.3)
    printed = 1 / sizes
    assert budget.support(s) > 1.05 * (s * printed / budget.gauge(printed)).sum()
    alpha = budget.maximizer(s)
    ratio = alpha * torch.tensor(dims) * sizes**2 / s
    torch.testing.assert_close(ratio, ratio[0].expand(3))
    cost = sum(n**2 * d * a**2 for n, d, a in zip(sizes, dims, alpha, strict=True))
    assert float(cost) == pytest.approx(0.3)


@given(seed=seeds)
def test_steps_are_trust_regions_and_majorisations(seed):
    g = gaussian(4, 3, seed=seed)
    for norm in (norms.Frobenius(), norms.Spectral(SVD()), norms.L1ToRMS()):
        region, price = Step(norm, radius=0.2), Penalty(Step(norm), sharpness=5.0)
        step = region.maximizer(g)
        assert float(norm.norm(step)) == pytest.approx(0.2)
        assert float((g * step).sum()) == pytest.approx(0.2 * float(norm.dual_norm(g)))
        best = price.maximizer(g)
        gain = (g * best).sum() - 2.5 * norm.norm(best) ** 2
        assert float(gain) == pytest.approx(float(price.gain(g)))
        for k in range(20):
            other = best + 10.0 ** -(k % 4) * gaussian(4, 3, seed=seed + k)
            assert (g * other).sum() - 2.5 * norm.norm(other) ** 2 <= gain + 1e-9
    torch.testing.assert_close(Penalty(Step(norms.Frobenius()), 10.0).maximizer(g), g / 10)


def test_blocks_are_the_dense_block_diagonal():
    ms = torch.stack([symmetric(3, 1), spd(3, 2)])
    dense = torch.block_diag(*ms)
    for budget in (Frobenius(2.0), Spectral(1.0, 0.3)):
        torch.testing.assert_close(torch.block_diag(*Blocks(budget).maximizer(ms)), budget.maximizer(dense))
        torch.testing.assert_close(Blocks(budget).support(ms), budget.support(dense))


@pytest.mark.filterwarnings("ignore::normgeo.budgets.NumericalWarning")
def test_an_intersection_equals_an_independent_solver():
    w, m = spd(3, 3), symmetric(3, 1)
    both = Ellipsoid(w) & Spectral(trace=0.8, cap=0.4)

    def use(q):
        return torch.stack([torch.trace(q @ w @ q).sqrt(), q.trace() / 0.8, torch.linalg.eigvalsh(q)[-1] / 0.4]).amax()

    found = solved(m, use, dim=3, starts=6)
    best = float(both.support(m))
    assert best >= found * (1 - 1e-6)
    assert found == pytest.approx(best, rel=2e-3)  # BFGS stops at kinks
    assert float(both.gauge(both.maximizer(m))) == pytest.approx(1, abs=1e-6)


@given(seed=seeds, trace=st.floats(0.1, 9), cap=st.floats(0.1, 3))
def test_spectral_equals_a_linear_program_on_the_eigenvalues(seed, trace, cap):
    m = symmetric(DIM, seed)
    s = torch.linalg.eigvalsh(m).numpy()
    found = scipy.optimize.linprog(-s, A_ub=np.ones((1, DIM)), b_ub=[trace], bounds=[(0, cap)] * DIM)
    assert float(Spectral(trace, cap).support(m)) == pytest.approx(-found.fun, rel=1e-9, abs=1e-9)


@given(seed=seeds)
def test_diagonal_equals_an_independent_solver(seed):
    r, c = gaussian(DIM, seed=seed), 0.1 + gaussian(DIM, seed=seed + 1).square()
    found = scipy.optimize.minimize(
        lambda q: -(q @ r.numpy()),
        np.full(DIM, 0.1),
        jac=lambda q: -r.numpy(),
        bounds=[(0, None)] * DIM,
        constraints={"type": "ineq", "fun": lambda q: 0.7 - c.numpy() @ q**2, "jac": lambda q: -2 * c.numpy() * q},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert float(Diagonal(c, 0.7).support(r)) == pytest.approx(-found.fun, rel=1e-6, abs=1e-8)


def test_the_printed_closed_forms_fail_for_indefinite_moments():
    """X0-1: √B·M/‖M‖ is not ≽ 0 and claims more power than any Q ≽ 0 has; water must not be filled where M < 0."""
    m = torch.diag(torch.tensor([3.0, 2.0, -4.0], dtype=torch.float64))
    assert Frobenius().support(m) == pytest.approx(13**0.5)
    assert Frobenius().gauge(m / m.norm()) == torch.inf
    assert Spectral(trace=3.0, cap=1.0).support(m) == pytest.approx(5.0)


def test_strict_order_fails():
    """X0-2: M ≻ N on three of four directions, and yet the best power is the same."""
    n = torch.diag(torch.tensor([3.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    m = n + torch.diag(torch.tensor([0.0, 0.5, 0.5, 0.5], dtype=torch.float64))
    assert Spectral(1.0, 1.0).support(m) == Spectral(1.0, 1.0).support(n) == 3.0


def test_isotropic_moments_give_gradient_descent():
    """Q = η·I with η = √(B/d); the spectral budget shares its trace among all directions."""
    m = 0.3 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(Frobenius(2.0).maximizer(m), 0.5**0.5 * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(Diagonal(1.0, 2.0).maximizer(m.diagonal()), torch.full((4,), 0.5**0.5).double())
    torch.testing.assert_close(Spectral(1.0, 1.0).maximizer(m), torch.eye(4, dtype=torch.float64) / 4)


def test_power_is_the_rate_at_which_the_loss_falls():
    """On a quadratic: L(θ - ε·Q g) falls at the rate gᵀQg = ⟨Q, ggᵀ⟩."""
    h, theta = spd(4, 3), gaussian(4, seed=4)
    g = h @ theta
    q = Spectral(1.0, 0.4).maximizer(g.outer(g) + 0.1 * spd(4, 5))

    def loss(x):
        return 0.5 * x @ h @ x

    eps = 1e-6
    rate = (loss(theta + eps * q @ g) - loss(theta - eps * q @ g)) / (2 * eps)
    torch.testing.assert_close(rate, (q * g.outer(g)).sum(), rtol=1e-6, atol=0)


@given(seed=seeds)
def test_the_cross_moment_has_the_best_validation_power(seed):
    """Among all operators of the budget, the best for sym E[g hᵀ] lowers the validation loss fastest; the one for E[g gᵀ]
    may even raise it."""
    g, h = gaussian(40, DIM, seed=seed), gaussian(40, DIM, seed=seed + 1)
    train, cross = g.mT @ g / 40, (g.mT @ h + h.mT @ g) / 80
    for budget in (Frobenius(), Spectral(1.0, 0.4)):
        by_train, by_cross = budget.maximizer(train), budget.maximizer(cross)
        assert (by_cross * cross).sum() >= (by_train * cross).sum() - 1e-12


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_any_scale_of_the_moment_gives_the_same_operator(scale):
    m = symmetric(DIM, 2).float()
    for budget in (Frobenius(), Spectral(1.0, 0.3)):
        torch.testing.assert_close(budget.maximizer(m * scale), budget.maximizer(m), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", INSTANCES)
def test_sixteen_bits_are_computed_in_thirty_two(name):
    budget = INSTANCES[name]
    core = 2 if budget.kind == "matrix" else 1
    shape = (DIM,) * budget.ndim if budget.kind == "step" else (2,) * (budget.ndim - core) + (DIM,) * core
    m = gaussian(*shape, seed=1).bfloat16()
    m = m + m.mT if budget.kind == "matrix" else m
    q = budget.maximizer(m)
    assert q.dtype == torch.bfloat16
    torch.testing.assert_close(q.float(), budget.maximizer(m.float()), rtol=2e-2, atol=2e-2)


def test_a_broken_budget_is_told_which_law_it_breaks():
    class TooSmall(Frobenius):
        def allocate(self, s):
            return 0.5 * super().allocate(s)

    class Greedy(Frobenius):
        def allocate(self, s):
            return 2 * super().allocate(s)

    class Blind(Frobenius):
        def allocate(self, s):
            return super().allocate(s.abs())

    class Elsewhere(Frobenius):
        def allocate(self, s):
            return super().allocate((s > 0).to(s))

    class Unchecked(Diagonal):
        def maximizer(self, m):
            return m.clamp_min(0) / m.clamp_min(0).norm(dim=-1, keepdim=True).clamp_min(1e-30)

    for budget, law in (
        (TooSmall(), "gauge"),
        (Greedy(), r"gauge\(maximizer\(M\)\) = 2"),
        (Blind(), "power|support|gauge|subgradient|≽ 0"),
        (Elsewhere(), "is beaten"),
        (Unchecked(), "NaN"),
    ):
        with pytest.raises(AssertionError, match=law):
            check_budget(budget)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Frobenius(-1.0), r"B must be a finite number > 0, got -1\.0"),
        (lambda: Frobenius(float("inf")), "bounded"),
        (lambda: Spectral(trace=0.0), r"trace must be .* got 0\.0; the set would be \{0\}"),
        (lambda: Spectral(cap=float("nan")), "cap must be .* got nan"),
        (lambda: Diagonal(costs=torch.tensor([1.0, 0.0])), r"got 0\.0 \(1 such\)"),
        (lambda: Diagonal(costs=-2.0), "costs must be"),
        (lambda: Frobenius().maximizer(torch.full((2, 2), torch.nan)), "4 entries of NaN or Inf"),
        (lambda: Frobenius().maximizer(torch.tensor([[0.0, 1.0], [0.0, 0.0]])), r"\|M - Mᵀ\| is 1, largest \|M\| is 1"),
        (lambda: Frobenius().support(torch.ones(3)), r"a matrix \(\.\.\., d, d\), got torch\.float32 of shape \(3,\)"),
        (lambda: Spectral().gauge(torch.ones(2, 3)), r"got torch\.float32 of shape \(2, 3\)"),
        (lambda: Diagonal().maximizer(torch.ones(3, dtype=torch.int64)), "torch.int64"),
        (lambda: Ellipsoid(torch.diag(torch.tensor([1.0, -2.0]))), r"eigenvalues go from -2 to 1"),
        (lambda: Ellipsoid(torch.tensor([[1.0, 1.0], [0.0, 1.0]])), r"not symmetric: largest \|W - Wᵀ\| is 1"),
        (lambda: Ellipsoid(torch.ones(2, 3)), r"shape \(2, 3\)"),
        (lambda: Ellipsoid(torch.eye(2)).maximizer(torch.eye(3)), "a metric of 2 rows, but was given 3"),
        (lambda: Diagonal(torch.ones(2)).maximizer(torch.ones(3)), "has 2 costs, but was given 3"),
        (lambda: LayerWise(torch.ones(2), (3,)), r"shape \(2,\) and dims is \(3,\)"),
        (lambda: Step(norms.L2(), 0.0), "radius must be"),
        (lambda: -1 * Frobenius(), r"factor must be .* got -1\.0"),
        (lambda: Frobenius() & Diagonal(), r"Frobenius \(matrix, 2 axes\), Diagonal \(diagonal, 1 axes\)"),
        (lambda: Diagonal().maximizer(torch.ones(0)), r"shape \(0,\)"),
    ],
)
def test_bad_input_is_one_sentence_with_the_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_budgets_are_at_the_top():
    assert ng.Budget is Budget
    assert ng.testing.check_budget is check_budget
