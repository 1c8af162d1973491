"""The bench of budgets: the claim about the best operator, races, costs and training, on tiny sizes."""

import json

import pytest
import torch
from helpers import gaussian
from test_lab import TEXT, command

from normgeo import lab
from normgeo.budgets import DataMetric, Frobenius, FullMoment, KroneckerMoment, LayerWise, Spectral, on_values
from normgeo.lab import Comparison, Entry, Ledger, Quadratic, Race, Races, Way, budget_costs, claim, race
from normgeo.lab.budgets import Descent, LayerMoment
from normgeo.optim import Operate

# ---- the claim


@pytest.mark.parametrize("condition", [100.0, 1000.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_operator_is_first_at_first_and_stays_first_only_if_renewed(condition, seed):
    """X0-23: kept at the moment of the start, Q* is overtaken by random operators of the same budget."""
    found = claim(condition, seed=seed)
    assert found.rank(found.frozen, 1) == 1
    assert found.rank(found.frozen, 199) > 5
    assert all(found.rank(found.renewed, step) == 1 for step in range(1, 200))
    assert found == claim(condition, seed=seed)


def test_at_a_small_condition_number_the_kept_operator_stays_first():
    found = claim(4.0)
    assert all(found.rank(found.frozen, step) == 1 for step in (1, 5, 20, 199))


def test_the_expected_loss_of_the_claim_is_the_mean_over_starts():
    found = claim(10.0, dim=4, others=1, steps=3)
    h = lab.curvature(10.0, 4, torch.Generator().manual_seed(0))
    q = Frobenius().maximizer(h @ h)
    w = gaussian(200_000, 4)
    first = (w @ h * w).sum(1).mean()
    for step in range(1, 4):
        w = w - w @ h @ q
        assert float((w @ h * w).sum(1).mean() / first) == pytest.approx(found.frozen[step], rel=0.02)


@pytest.mark.parametrize("condition", [4.0, 100.0, 1000.0])
def test_frobenius_does_not_win_on_quadratics_not_even_with_exact_moments(condition):
    """In the eigenbasis all is diagonal. Each at its best size, gradient descent, which is a spectral budget with a trace
    of d caps, is below the Frobenius budget at every step."""
    h = torch.logspace(0, -torch.tensor(condition).log10(), 12, dtype=torch.float64)
    sizes = 2.0 ** torch.arange(-8, 6, 0.25, dtype=torch.float64).unsqueeze(1)
    best = {}
    for budget in (Frobenius(), Spectral(trace=12.0)):
        s, losses = torch.ones(len(sizes), 12, dtype=torch.float64), []
        for _ in range(100):
            s = (1 - sizes * on_values(budget)(h * h * s) * h).square() * s
            losses.append((h * s).sum(1).nan_to_num(torch.inf).min())
        best[type(budget)] = torch.stack(losses)
    assert bool((best[Spectral] < best[Frobenius]).all())


# ---- races


class Quiet(Quadratic):
    noise = 0.0


def test_a_race_of_gradient_descent_is_the_power_of_its_matrix():
    place, scales = Quiet(10.0, seeds=2), [0.1, 1.0]
    found = race(place, Way("none", "", Descent()), scales, 20)
    h, w = place.hessian, place.start().flatten(1).unsqueeze(-1)
    for c, losses in zip(scales, found.losses, strict=True):
        end = torch.linalg.matrix_power(torch.eye(12) - c * h, 20) @ w
        ratio = (end.mT @ h @ end / (w.mT @ h @ w)).flatten()
        assert losses[-1] == pytest.approx(float(ratio.log10().mean()), abs=1e-4)
    assert found.best(20).scale == 1.0
    assert found.best(20).edge


def test_the_scale_of_a_race_is_the_size_of_the_budget():
    place = Quadratic(10.0, seeds=1)
    ways = [Way("Frobenius", "", Operate(Frobenius(B), FullMoment(0.9), size="budget")) for B in (1.0, 4.0)]
    one, four = race(place, ways[0], [0.5, 1.0], 20), race(place, ways[1], [0.25, 0.5], 20)
    assert one.losses == four.losses
    assert one.losses[0] != one.losses[1]


def test_runs_that_diverge_are_out_and_leave_the_others_alone():
    place = Quadratic(10.0, seeds=2)
    way = Way("DataMetric", "", Operate(DataMetric(1.5), FullMoment(0.9), size="budget"))
    both, alone = race(place, way, [0.1, 1e6], 20), race(place, way, [0.1], 20)
    assert both.losses[0] == alone.losses[0]
    assert both.losses[1][1:] == [None] * (len(both.steps) - 1)
    assert both.best(20).scale == 0.1


@pytest.mark.parametrize(
    "place", [place for group in lab.landscapes(2).values() for place in group], ids=lambda p: p.name
)
def test_landscapes_follow_from_their_seeds_and_have_the_gradients_of_their_losses(place):
    start = place.start()
    assert torch.equal(type(place)(**vars(place)).start()[:1], start[:1])
    assert not torch.equal(start[0], start[1])
    assert torch.equal(place.gradient(start, 3), place.gradient(start, 3))
    assert not torch.equal(place.gradient(start, 3), place.gradient(start, 4))
    mean = torch.stack([place.gradient(start, step) for step in range(200 if place.noise else 4)]).mean(0)
    at = start.requires_grad_()
    (exact,) = torch.autograd.grad(place.loss(at).sum(), at)
    assert float((mean - exact).norm() / exact.norm()) < 0.1
    runs = start.detach().expand(3, *start.shape)
    torch.testing.assert_close(place.loss(runs)[2], place.loss(start.detach()))


def test_layers_get_a_scalar_each():
    moment, budget = LayerMoment(columns=(2, 1)), LayerWise(torch.tensor([1.0, 2.0]).double(), (6, 3))
    g = gaussian(1, 3, 3)
    direction = Operate(budget, moment, size="budget")
    state = direction.init(g)
    direction.observe(g, state, None)
    alpha = budget.maximizer(torch.stack([g[0, :, :2].square().sum(), g[0, :, 2:].square().sum()]))
    torch.testing.assert_close(direction(g, state, g)[0], g[0] * alpha[[0, 0, 1]])


def few(place, runs):
    return [
        Way("none: gradient descent", "", Descent()),
        Way("Frobenius", "", Operate(Frobenius(), FullMoment(0.9), size="budget")),
        Way("Spectral", "12 of 12", Operate(Spectral(12.0), FullMoment(0.9), size="budget")),
    ]


def test_the_command_races_once_and_says_who_wins(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("normgeo.lab.budgets.ways", few)
    monkeypatch.setattr(lab, "landscapes", lambda seeds: {"quadratic": [Quadratic(4.0, seeds)]})
    arguments = ["bench", "budgets", "--studies", "claim,quadratic", "--steps", 20, "--seeds", 1, "--out", tmp_path]
    code, shown, err = command(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    assert "who wins where" in shown
    results = json.loads((tmp_path / "results.json").read_text())
    kept = {(row[0], row[1]): row[2] for row in results["studies"]["claim"]["rows"]}
    assert kept["1000", "1"].endswith("(1)")
    assert kept["1000", "199"].endswith("(11)")
    rows = results["studies"]["winners"]["rows"]
    assert [row[:2] for row in rows] == [["quadratic, condition 4", str(step)] for step in (1, 5, 20)]
    assert rows[-1][2] == "Spectral"
    assert float(rows[-1][4]) < float(rows[-1][6])
    assert (tmp_path / "budgets.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "races.jsonl").read_text()
    assert lines.count("\n") == 3
    again = command(monkeypatch, capsys, *arguments)
    assert again == (0, shown, "")
    assert (tmp_path / "races.jsonl").read_text() == lines


def test_the_best_of_a_grid_is_found_among_all_settings(tmp_path):
    place = Quadratic(4.0, seeds=1)
    races = Races(Ledger(tmp_path / "r.jsonl", Race), [place], 20, (1.0, 2.0))
    for k, (at, way) in enumerate(races.todo):
        losses = [[0.0, -1.0, -2.0, -0.01 * k], [0.0, None, None, None]]
        races.ledger.keep(
            races.key(at, way), Race(place.name, way.budget, way.setting, [1.0, 2.0], [0, 1, 5, 20], losses)
        )
    (first, *_) = races.ranking(place, 20)
    assert (first.budget, first.loss) == (races.todo[-1][1].budget, pytest.approx(-0.01 * (len(races.todo) - 1)))
    assert len(races.ranking(place, 20)) == len({way.budget for _, way in races.todo})


# ---- costs


@pytest.mark.parametrize("d", [8, 32])
def test_bisection_solves_the_limits_with_all_of_them_active(d):
    s, limits = torch.linalg.eigvalsh(budget_costs._moment(d)), budget_costs._limits(d)
    q = lab.waterfill(s, limits)
    assert [float(q.sum()), float(q.max()), float(q.square().sum())] == pytest.approx(
        [limits.trace, limits.cap, limits.B]
    )
    # The conditions of Karush, Kuhn and Tucker: s = μ + ν·q where 0 < q < cap, on one line.
    free = (q > 1e-9) & (q < limits.cap - 1e-9)
    assert int(free.sum()) >= 2
    nu, mu = torch.linalg.lstsq(torch.stack([q[free], torch.ones_like(q[free])], 1), s[free, None]).solution.flatten()
    torch.testing.assert_close(s[free], mu + nu * q[free], rtol=1e-6, atol=1e-9)
    assert mu > 0
    assert nu > 0
    assert bool((s[q <= 1e-9] <= mu + 1e-9).all())
    assert bool((s[q >= limits.cap - 1e-9] >= mu + nu * limits.cap - 1e-9).all())


@pytest.mark.parametrize(
    ("dims", "spectra"), [((), (4,)), pytest.param((4,), (8,), marks=pytest.mark.slow)], ids=["small", "both"]
)
def test_completions_and_general_solvers_come_to_the_power_of_the_bisection(dims, spectra):
    rows = lab.completions(dims=dims, spectra=spectra, rounds=1)
    assert {row[0] for row in rows} >= {"bisection", "completed intersection", "SLSQP"}
    assert all(abs(float(row[4])) < 1e-5 for row in rows)


def test_costs_are_relative_to_their_reference():
    closed, steps = lab.closed_forms((8,), rounds=1), lab.directions(16, rounds=1)
    assert closed[0] == ("one eigh", "8 × 8", closed[0][2], "1")
    assert {"Frobenius", "Spectral", "DataMetric", "Diagonal", "Ellipsoid"} < {row[0] for row in closed}
    assert [row[1] for row in steps if row[0] == "Shampoo"] == [
        "16 × 16, new decompositions",
        "16 × 16, old decompositions",
    ]


def test_the_reference_is_shampoo():
    """Without a past L^-¼ G R^-¼ is the polar factor; and the budget of power 3/2 on Kronecker factors acts as it does."""
    g = gaussian(6, 4).float()
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(budget_costs.Shampoo(g, beta=0.0)(g), u @ v, rtol=1e-3, atol=1e-3)


# ---- training

SIZES = "gpt width 8 heads 2 context 8 batch 4 depth 1 steps 6 warmup 0"


def test_budgets_train_beside_others(monkeypatch, capsys, tmp_path):
    (tmp_path / "fox.txt").write_bytes(TEXT)
    operate = Operate(Spectral(trace=8.0), every=3)
    field = {
        "Spectral": [Entry.of("budget", lr=0.2, warmup=1, direction=operate)],
        "AdamW": [Entry.of("adamw", lr=0.01)],
    }
    monkeypatch.setattr(lab, "training_study", lambda: Comparison("tiny", [SIZES], field, "validation"))
    arguments = ["--studies", "training", "--text", tmp_path / "fox.txt", "--seeds", 1, "--out", tmp_path]
    code, _, err = command(monkeypatch, capsys, "bench", "budgets", *arguments)
    assert (code, err) == (0, "")
    studies = json.loads((tmp_path / "results.json").read_text())["studies"]
    assert [row[0] for row in studies["training"]["rows"]] == ["Spectral", "AdamW"]
    assert all(float(row[3]) < 4 for row in studies["training"]["rows"])
    state = {row[0]: float(row[3]) for row in studies["upkeep"]["rows"]}
    assert state["AdamW"] == pytest.approx(2, abs=0.1)
    assert state["Spectral"] > 3


def test_a_budgets_optimizer_has_the_direction_on_every_weight():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    contender = lab.operated(10, 0.1, Operate(Frobenius(), KroneckerMoment()), warmup=1)
    model = lab.Text(lab.Settings(8, 1, 2, 8, 4, 20, 2), lab.Corpus.from_bytes("fox", TEXT, TEXT)).model()
    (optimizer,) = contender.make(model).optimizers
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p in model.parameters():
        assert any("operator" in key for key in _names(optimizer.state[p]))


def _names(x):
    return [key for key in x] + [name for value in x.values() if isinstance(value, dict) for name in _names(value)]


def test_an_unknown_study_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(monkeypatch, capsys, "bench", "budgets", "--studies", "claim,colour")
    assert code == 2
    assert "--studies: unknown study 'colour'; choose from claim, quadratic" in err
    assert not list(tmp_path.iterdir())


def test_costs_without_scipy_say_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("normgeo.cli.budgets.find_spec", lambda name: None)
    code, shown, err = command(monkeypatch, capsys, "bench", "budgets", "--studies", "costs", "--out", tmp_path / "new")
    assert (code, shown) == (2, "")
    assert err.endswith("pip install scipy\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()
