"""Moments against the dense definition, and budgets as directions in training."""

import pytest
import torch
from helpers import gaussian
from torch import nn

import normgeo as ng
from normgeo.budgets import (
    BlockMoment,
    Budget,
    DataMetric,
    Diagonal,
    DiagonalMoment,
    Ellipsoid,
    Frobenius,
    FullMoment,
    KroneckerMoment,
    OnDiagonal,
    SketchMoment,
    Spectral,
    Step,
    on_values,
)
from normgeo.optim import Operate
from normgeo.rules import Plain
from normgeo.testing import check_optimizer

SHAPE = (3, 4)


def outer(G, H):
    g, h = G.flatten(1), H.flatten(1)
    m = torch.einsum("ni,nj->ij", g, h) / len(g)
    return (m + m.mT) / 2


def samples(n=20, seed=0):
    return gaussian(n, *SHAPE, seed=seed) * torch.logspace(0, -1, SHAPE[1], dtype=torch.float64)


@pytest.mark.parametrize("cross", [False, True])
def test_moments_are_parts_of_the_dense_moment(cross):
    """One call for training, validation and cross moments; the latter are indefinite (X0-1)."""
    G = samples()
    H = samples(seed=1) if cross else G
    other, dense = H if cross else None, outer(G, H)
    assert (torch.linalg.eigvalsh(dense)[0] < -1e-3) == cross
    full, diagonal, rows = FullMoment(), DiagonalMoment(), BlockMoment()
    torch.testing.assert_close(full.matrix(full.estimate(G, other))[0], dense)
    torch.testing.assert_close(diagonal.estimate(G, other)["moment"][0], dense.diagonal())
    block = rows.estimate(G, other)["moment"][0]
    for i in range(3):
        torch.testing.assert_close(block[i], dense.reshape(3, 4, 3, 4)[i, :, i])
    factors = KroneckerMoment().estimate(G, other)
    torch.testing.assert_close(factors["left"][0], dense.reshape(3, 4, 3, 4).diagonal(dim1=1, dim2=3).sum(-1))
    torch.testing.assert_close(factors["right"][0], dense.reshape(3, 4, 3, 4).diagonal(dim1=0, dim2=2).sum(-1))


def test_spectra_and_bases_are_those_of_the_matrix():
    G, V = samples(), gaussian(1, *SHAPE, seed=9)
    for moment in (FullMoment(), DiagonalMoment(), BlockMoment(), KroneckerMoment(), SketchMoment(rank=12)):
        state = moment.estimate(G)
        values, basis = moment.spectrum(state)
        dense = moment.matrix(state, SHAPE)[0] if not isinstance(moment, FullMoment) else state["moment"][0]
        torch.testing.assert_close(torch.linalg.eigvalsh(dense), values[0].sort().values)
        torch.testing.assert_close(moment.apply(values, basis, V).flatten(), dense @ V.flatten())


def test_kronecker_moments_are_exact_for_kronecker_gradients():
    a, b = gaussian(3, 3, seed=1), gaussian(4, 4, seed=2)
    G = torch.einsum("ai,nij,bj->nab", a, gaussian(40_000, 3, 4, seed=3), b)
    moment = KroneckerMoment()
    got, wanted = moment.matrix(moment.estimate(G), SHAPE)[0], torch.kron(a @ a.mT, b @ b.mT)
    assert (got - wanted).norm() < 0.03 * wanted.norm()


def test_long_sides_are_isotropic_and_cost_nothing():
    moment, G = KroneckerMoment(largest=3), samples()
    state = moment.estimate(G)
    assert state["right"].numel() == 0
    wanted = torch.kron(KroneckerMoment().estimate(G)["left"][0], torch.eye(4, dtype=torch.float64) / 4)
    torch.testing.assert_close(moment.matrix(state, SHAPE)[0], wanted)


def test_sketches_are_below_the_moment_by_what_was_cut_off():
    moment, G = SketchMoment(beta=1.0, rank=5), samples(60)
    state = moment.init(G[:1])
    for g in G:
        moment.observe(g.unsqueeze(0), state)
    gap = torch.linalg.eigvalsh(outer(G, G) - moment.matrix(state, SHAPE)[0])
    assert gap[0] > -1e-9
    assert gap[-1] <= torch.trace(outer(G, G)) / 5
    with pytest.raises(ValueError, match="cross moment may be indefinite"):
        moment.observe(G[:1], state, G[:1])


@pytest.mark.parametrize("moment", [FullMoment(0.9), DiagonalMoment(0.9), BlockMoment(0.9), KroneckerMoment(0.9)])
def test_averages_are_unbiased_from_the_first_step(moment):
    G = samples(6)
    state = moment.init(G[:1])
    for t in range(6):
        moment.observe(G[t : t + 1], state)
    weights = 0.9 ** torch.arange(5, -1, -1, dtype=torch.float64)
    for name, kept in moment.parts(G, G).items():
        wanted = torch.tensordot(weights / weights.sum(), kept, dims=1)
        torch.testing.assert_close(state[name][0], wanted)
    mean = FullMoment(beta=1.0)
    state = mean.init(G[:1])
    for g in G:
        mean.observe(g.unsqueeze(0), state)
    torch.testing.assert_close(state["moment"][0], outer(G, G))


@pytest.mark.parametrize("budget", [Frobenius(2.0), Spectral(3.0, 0.5)])
def test_structured_operators_are_the_best_of_all_operators_for_their_moment(budget):
    """Kronecker, block and diagonal moments give the same Q as the dense matrix that they stand for."""
    G, V = samples(), gaussian(1, *SHAPE, seed=9)
    for moment in (FullMoment(), DiagonalMoment(), BlockMoment(), KroneckerMoment()):
        state = moment.estimate(G)
        values, basis = moment.spectrum(state)
        q = budget.maximizer(moment.matrix(state, SHAPE)[0])
        got = moment.apply(on_values(budget)(values), basis, V)
        torch.testing.assert_close(got.flatten(), q @ V.flatten(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_data_metrics_are_the_ellipsoids_of_their_moment(power):
    m = outer(samples(), samples())
    family = DataMetric(power, B=0.7)
    s, u = torch.linalg.eigh(m)
    q = (u * family.allocate(s)) @ u.mT
    torch.testing.assert_close(q, family.at(m).maximizer(m), rtol=1e-6, atol=1e-8)
    assert float(family.at(m).gauge(q)) == pytest.approx(1)
    wanted = (u * s ** (1 - power)) @ u.mT
    torch.testing.assert_close(q / q.norm(), wanted / wanted.norm())
    assert family.allocate(1e30 * s.float()).isfinite().all()
    assert family.allocate(0 * s).eq(0).all()


def model():
    torch.manual_seed(0)
    return ng.nn.Sequential(
        up=ng.nn.Linear(4, 6), act=ng.nn.ReLU(), down=ng.nn.Linear(6, 6), bias=ng.nn.Bias(6), head=ng.nn.Linear(6, 3)
    ).double()


X, Y = gaussian(16, 4), gaussian(16, 3, seed=1)


def loss(net):
    return (net(X) - Y).square().mean()


class ShrinkingCap(Budget):
    """A user's: Σ q ≤ 1 and q ≤ 0.1 on the diagonal, by its projection alone."""

    kind = "diagonal"

    def project(self, q):
        q = q.clamp(0, 0.1)
        return q / q.sum(-1, keepdim=True).clamp_min(1)


DIRECTIONS = {
    "Frobenius": Operate(Frobenius()),
    "Spectral": Operate(Spectral(1.0, 0.05), every=3),
    "full": Operate(Spectral(1.0, 0.2), FullMoment(0.9)),
    "rows": Operate(Frobenius(), DiagonalMoment(0.9)),
    "Diagonal": Operate(Diagonal()),
    "OnDiagonal": Operate(OnDiagonal(Spectral(1.0, 0.05))),
    "RMSProp": Operate(DataMetric(1.5), DiagonalMoment(0.9)),
    "Shampoo": Operate(DataMetric(1.5, damping=1e-3), KroneckerMoment(0.9), every=2),
    "natural": Operate(DataMetric(2.0, damping=0.1), FullMoment(0.9)),
    "sketch": Operate(DataMetric(1.5), SketchMoment(0.9, rank=4)),
    "raw size": Operate(Frobenius(), size="budget"),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_budgets_train_and_keep_the_contract(name):
    def make(net):
        return ng.optimizer(net, direction=DIRECTIONS[name], lr=0.1)

    check_optimizer(make, model(), loss, effort="quick")
    net = model()
    opt, start = make(net), loss(net)
    for _ in range(30):
        opt.zero_grad()
        loss(net).backward()
        opt.step()
    assert loss(net) < (0.95 if name == "raw size" else 0.9) * start


@pytest.mark.filterwarnings("ignore::normgeo.budgets.NumericalWarning")
def test_compile_gives_each_leaf_its_moment_and_operator():
    net = model()
    plan = ng.compile(
        net, budgets={"up": ShrinkingCap(), "down": Ellipsoid(torch.eye(36).double()), "head": Frobenius()}
    )
    assert "up.weight: Operate(budget=" in str(plan)
    opt = plan.optimizer(net, lr=0.3)
    assert [len(group["params"]) for group in opt.param_groups] == [1, 1, 1, 1]
    start = loss(net)
    for _ in range(40):
        opt.zero_grad()
        loss(net).backward()
        opt.step()
    assert loss(net) < 0.7 * start
    state = opt.state[net.up.weight]
    assert state["direction.moment.moment"].shape == (24,)
    assert opt.state[net.down.weight]["direction.operator"].shape == (36, 36)
    assert opt.state[net.head.weight]["direction.basis.left"].shape == (3, 3)
    assert not any("direction" in key for key in opt.state[next(net.bias.parameters())])


def test_the_blocks_of_a_gpt_and_a_strangers_model_train():
    ids = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(0))
    gpt = ng.nn.GPT(vocab_size=11, context=8, width=16, heads=2, depth=2)
    plan = ng.compile(gpt, budgets={"blocks.*.mlp*": Spectral(trace=8.0, cap=1.0)})
    assert len(plan.directions) == 4
    stranger = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    recorded = ng.compile(stranger, (X,), budgets={"0.*": Operate(Frobenius())})
    for net, made, value in (
        (gpt, plan, lambda: nn.functional.cross_entropy(gpt(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())),
        (stranger, recorded, lambda: loss(stranger)),
    ):
        opt, start = made.optimizer(net, lr=0.1), value().detach()
        for _ in range(15):
            opt.zero_grad()
            value().backward()
            opt.step()
        assert value() < 0.9 * start


def test_plans_with_budgets_are_saved_and_extended(tmp_path):
    net = model()
    plan = ng.compile(net, budgets={"up": Frobenius() & Spectral(1.0, 0.3), "down": Operate(DataMetric(1.5), every=10)})
    plan.save(tmp_path / "plan.json")
    loaded = ng.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.directions["down.weight"] == Operate(DataMetric(1.5), every=10)
    assert plan.extend(model()).directions == plan.directions
    with pytest.raises(ValueError, match=r"budgets: the pattern 'upp' matches no leaf"):
        ng.compile(net, budgets={"upp": Frobenius()})
    with pytest.raises(TypeError, match=r"takes a normgeo.Budget, got RMSToRMS"):
        ng.compile(net, budgets={"up": ng.norms.RMSToRMS()})


def test_size_is_one_in_the_norm_of_the_leaf_or_what_the_budget_gives():
    W = gaussian(1, *SHAPE, seed=4)
    norm = ng.norms.RMSToRMS()
    for direction in (Operate(Frobenius()).bind(norm), Operate(Frobenius(4.0), size="budget").bind(norm)):
        state = direction.init(W)
        direction.observe(W, state, None)
        D = direction(W, state, W)
        if direction.size == "norm":
            assert float(norm.norm(D)) == pytest.approx(1)
        else:
            L, R, t = W @ W.mT, W.mT @ W, W.square().sum()
            wanted = 2 * (L @ W @ R) / t / (L.norm() * R.norm() / t)
            torch.testing.assert_close(D, wanted)


def test_step_budgets_are_the_duality_maps():
    W, norm = gaussian(2, *SHAPE, seed=4), ng.norms.RMSToRMS(ng.linalg.SVD())
    direction = Operate(Step(norm, radius=0.3), size="budget")
    torch.testing.assert_close(direction(W, {}, W), 0.3 * norm.dualize(W))


def test_decompositions_are_renewed_every_k_steps_and_once_per_shape(monkeypatch):
    calls = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: calls.append(tuple(x.shape)) or eigh(x))
    net = ng.nn.Sequential(*(ng.nn.Linear(5, 5) for _ in range(4))).double()
    opt = ng.optimizer(net, direction=Operate(Frobenius(), every=4), rule=Plain())
    x, seen = gaussian(3, 5), []
    for _ in range(9):
        opt.zero_grad()
        net(x).square().sum().backward()
        calls.clear()
        opt.step()
        seen.append(list(calls))
    stacked = [(4, 5, 5), (4, 5, 5)]
    assert [s[-2:] for s in seen[::4]] == [stacked] * 3
    assert all(not s for k, s in enumerate(seen) if k % 4)


def test_bad_settings_are_one_sentence():
    for make, message in (
        (lambda: Operate(ng.norms.RMSToRMS()), "takes a normgeo.Budget"),
        (lambda: Operate(Frobenius(), every=0), "every must be at least 1"),
        (lambda: FullMoment(beta=1.5), r"beta is the weight on the past and must be in \[0, 1\], got 1\.5"),
        (lambda: SketchMoment(rank=0), "rank must be at least 1, got 0"),
        (lambda: BlockMoment().estimate(torch.ones(2, 3)), r"more than 1 axes, got \(3,\)"),
        (
            lambda: FullMoment(largest=8).estimate(torch.ones(1, 3, 3)),
            r"leaf \(3, 3\) would have 9² entries; use Kronecker",
        ),
        (lambda: DiagonalMoment().estimate(torch.ones(1, 3), torch.ones(1, 2)), r"shape \(1, 2\), these \(1, 3\)"),
        (lambda: DataMetric(power=-1.0), "power must be a finite number > 0"),
        (lambda: DataMetric(damping=-1.0), "damping must be"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            make()
