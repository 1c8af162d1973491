"""The learning power of each set, beside a conic solver that is given nothing but the set.

`pip install "normgeo[solvers]"` to run.
"""

import numpy as np
import pytest
import torch
from helpers import gaussian
from test_budgets import spd, symmetric

from normgeo import norms
from normgeo.budgets import Diagonal, Ellipsoid, Frobenius, LayerWise, Spectral, Step

cp = pytest.importorskip("cvxpy", reason="an independent conic solver: pip install cvxpy")

DIM = 5
METRIC = spd(DIM, 3)
COSTS = torch.linspace(0.1, 3, DIM, dtype=torch.float64)
SIZES = torch.linspace(0.5, 2, DIM, dtype=torch.float64)
DIMS = (3, 1, 4, 1, 5)


def frobenius(q):
    return [q >> 0, cp.sum_squares(q) <= 2.3]


def spectral(q):
    return [q >> 0, cp.trace(q) <= 1, 0.3 * np.eye(DIM) - q >> 0]


def ellipsoid(q):
    root = np.linalg.cholesky(METRIC.numpy())  # tr(Q W Q) = ‖Q L‖²_F with W = L Lᵀ
    return [q >> 0, cp.sum_squares(q @ root) <= 1.3]


def total(q):
    part = cp.Variable((DIM, DIM), symmetric=True)
    return frobenius(part) + spectral(q - part)


MATRICES = {
    "Frobenius": (Frobenius(2.3), frobenius),
    "Spectral": (Spectral(1.0, 0.3), spectral),
    "Ellipsoid": (Ellipsoid(METRIC, 1.3), ellipsoid),
    "Intersection": (Frobenius(2.3) & Spectral(1.0, 0.3), lambda q: frobenius(q) + spectral(q)),
    "Sum": (Frobenius(2.3) + Spectral(1.0, 0.3), total),
}
VECTORS = {
    "Diagonal": (Diagonal(COSTS, 0.7), lambda q: [q >= 0, COSTS.numpy() @ cp.square(q) <= 0.7]),
    "LayerWise": (
        LayerWise(SIZES, DIMS, 0.7),
        lambda a: [a >= 0, (SIZES.square().numpy() * np.array(DIMS)) @ cp.square(a) <= 0.7],
    ),
    "Step, infinity": (Step(norms.Linf(), 0.3), lambda x: [cp.norm(x, "inf") <= 0.3]),
    "Step, L1": (Step(norms.L1(), 0.3), lambda x: [cp.norm(x, 1) <= 0.3]),
    "Step, L2": (Step(norms.L2(), 0.3), lambda x: [cp.norm(x, 2) <= 0.3]),
}


def most(moment, shape, constraints, **variable):
    q = cp.Variable(shape, **variable)
    problem = cp.Problem(cp.Maximize(cp.sum(cp.multiply(moment.numpy(), q))), constraints(q))
    return problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("definite", [True, False], ids=["definite", "indefinite"])
@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.filterwarnings("ignore::normgeo.budgets.numerical.NumericalWarning")
def test_no_operator_of_the_set_learns_faster(name, definite, seed):
    budget, constraints = MATRICES[name]
    moment = spd(DIM, seed) if definite else symmetric(DIM, seed)
    found = most(moment, (DIM, DIM), constraints, symmetric=True)
    assert float(budget.support(moment)) == pytest.approx(found, rel=2e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", VECTORS)
def test_no_vector_of_the_set_learns_faster(name, seed):
    budget, constraints = VECTORS[name]
    moment = gaussian(DIM, seed=seed)
    assert float(budget.support(moment)) == pytest.approx(most(moment, DIM, constraints), rel=1e-6)


def test_nor_any_matrix_of_the_spectral_ball():
    moment = gaussian(3, 4, seed=0)
    found = most(moment, (3, 4), lambda x: [cp.sigma_max(x) <= 2])
    assert float(Step(norms.Spectral(), radius=2.0).support(moment)) == pytest.approx(found, rel=1e-6)
