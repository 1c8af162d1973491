"""Budgets that give one thing: the rest is found numerically, precisely enough, and says so once."""

import warnings

import pytest
import torch
from helpers import gaussian

from normgeo.budgets import Budget, Frobenius, NumericalWarning, Spectral
from normgeo.testing import check_budget

FROBENIUS, SPECTRAL = Frobenius(2.0), Spectral(1.0, 0.3)


class ByMaximizer(Budget):
    def maximizer(self, m):
        return FROBENIUS.maximizer(m)


class ByGauge(Budget):
    def gauge(self, q):
        return FROBENIUS.gauge(q)


class ByProjection(Budget):
    def project(self, q):
        s, u = torch.linalg.eigh(q)
        s = s.clamp_min(0)
        return (u * (s * (2**0.5 / s.norm(dim=-1, keepdim=True)).clamp_max(1)).unsqueeze(-2)) @ u.mT


class ByConstraints(Budget):
    def constraints(self):
        return [lambda q: 2 - q.square().sum()]


class Kinked(Budget):
    def maximizer(self, m):
        return SPECTRAL.maximizer(m)


class KinkedGauge(Budget):
    def gauge(self, q):
        return SPECTRAL.gauge(q)


class MatrixConstraint(Budget):
    def constraints(self):
        return [lambda q: 1 - q.trace(), lambda q: 0.3 * torch.eye(len(q)).to(q) - q]


class OnVectors(Budget):
    kind = "diagonal"

    def constraints(self):
        return [lambda q: 1 - q.sum(), lambda q: 0.3 - q]


WAYS = [ByMaximizer, ByGauge, ByProjection, ByConstraints]
pytestmark = pytest.mark.filterwarnings("ignore::normgeo.budgets.NumericalWarning")


def moments(d=4):
    x = gaussian(3, d, d)
    return torch.stack([x[0] @ x[0].mT, x[1] + x[1].mT, -x[2] @ x[2].mT])


def operators(d=4):
    x = gaussian(2, d, d, seed=5)
    return torch.cat([x @ x.mT, SPECTRAL.maximizer(moments(d)[:1])])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_all_laws(way):
    check_budget(way(), dim=3)


@pytest.mark.parametrize("way", [ByMaximizer, ByProjection], ids=lambda way: way.__name__)
def test_laws(way):
    check_budget(way(), dim=3)


@pytest.mark.parametrize(
    ("way", "closed"),
    [*((way, FROBENIUS) for way in WAYS), *((way, SPECTRAL) for way in (Kinked, KinkedGauge, MatrixConstraint))],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_completions_equal_the_closed_form(way, closed):
    m, q = moments(), operators()
    torch.testing.assert_close(way().support(m), closed.support(m), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(way().gauge(q), closed.gauge(q), rtol=1e-6, atol=0)


def test_vectors_are_completed_too():
    m = torch.tensor([[3.0, -1.0, 2.0, 1.0], [1.0, 1.0, 1.0, -5.0]], dtype=torch.float64)
    wanted = [0.3 * 3 + 0.3 * 2 + 0.3 * 1, 0.9]
    torch.testing.assert_close(OnVectors().support(m), torch.tensor(wanted).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_projection_is_the_nearest_point(way):
    q = gaussian(3, 3, seed=2)
    q = 3 * (q + q.mT)
    torch.testing.assert_close(way().project(q), ByProjection().project(q), rtol=1e-4, atol=1e-4)


def test_the_cost_is_told_once(recwarn):
    class Told(Budget):
        def constraints(self):
            return [lambda q: 1 - q.trace()]

    m = torch.eye(2)
    with pytest.warns(
        NumericalWarning, match=r"Told.maximizer is found numerically from its constraints.* ms each"
    ) as told:
        Told().maximizer(m)
    assert len([w for w in told if "maximizer" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Told().maximizer(m)


def test_a_budget_that_says_nothing_is_refused():
    class Nothing(Budget):
        pass

    with pytest.raises(TypeError, match="Nothing is no set yet: define one of maximizer, gauge, project, constraints"):
        Nothing()


def making(*slacks):
    class Made(Budget):
        def constraints(self):
            return list(slacks)

    return Made()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (making(lambda q: q.trace() - 1), "0 is not in the set, constraint 0 has slack -1 there"),
        (making(lambda q: 1 - q[0, 0]), "unbounded"),
        (making(lambda q: 1 + q.trace()), r"unbounded: .*·I is within all its constraints"),
        (
            making(lambda q: 1 - torch.linalg.eigvalsh(q)[-1]),
            "a constraint has kinks .* Write one on eigenvalues as a matrix",
        ),
        (making(lambda q: -q.trace()), r"no ε·I is strictly inside; constraint 0 has slack"),
    ],
)
def test_sets_that_are_no_budgets_are_refused_with_numbers(budget, message):
    with pytest.raises(ValueError, match=message):
        budget.maximizer(torch.diag(torch.tensor([1.0, 2.0])))


def test_the_stated_tolerance_is_what_is_promised():
    assert ByGauge().tolerance == 1e-6
    assert Frobenius().tolerance == 0
