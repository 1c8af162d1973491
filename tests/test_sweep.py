import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from test_lab import command, corpus

import normgeo as ng
from normgeo import lab
from normgeo.lab import Bowl, Contender, Entry, Logistic, Settings, Sources, Sweep, Text, Training, Trial, UserError
from normgeo.lab.baselines import BASELINES
from normgeo.lab.sweep import RULES, grid, rule
from normgeo.steps import MetaOptimize, Polyak

CPU = torch.device("cpu")


# ---- problems


def test_the_bowl_has_its_optimum_and_its_condition():
    problem = Bowl(condition=100, width=3, seed=1)
    h, goal = problem.batch(0)
    values = torch.linalg.eigvalsh(h)
    assert float(values[-1]) == pytest.approx(1)
    assert float(values[0]) == pytest.approx(0.01)
    model = problem.model()
    assert float(ng.norms.RMSToRMS().norm(model.weight.detach())) == pytest.approx(1)
    assert float(ng.norms.RMSToRMS().norm(goal)) == pytest.approx(1)
    away = (model.weight.detach() - goal).flatten()
    assert problem.score(model, CPU, final=True).loss == pytest.approx(float(away @ h @ away) / 2)
    with torch.no_grad():
        model.weight.copy_(goal)
    assert problem.score(model, CPU, final=True).loss == 0


def test_the_least_logistic_loss_is_that_of_scipy():
    problem = Logistic(seed=3)
    model = problem.model()

    def gap(w):
        weight = torch.tensor(w.reshape(10, 16), requires_grad=True)
        with torch.no_grad():
            model.weight.copy_(weight)
        x, y = all_of(problem)
        loss = torch.nn.functional.cross_entropy(x @ weight.T, y)
        loss.backward()
        return float(loss.detach()), weight.grad.numpy().ravel()

    found = minimize(gap, np.zeros(160), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-15})
    assert -1e-12 < problem.score(model, CPU, final=True).loss < 1e-6
    with torch.no_grad():
        model.weight.copy_(torch.tensor(found.x.reshape(10, 16)))
    assert -1e-12 < problem.score(model, CPU, final=True).loss < 1e-6
    assert problem.score(problem.model(), CPU, final=True).loss > 0.5


def all_of(problem):
    from normgeo.lab.optima import _drawn

    return _drawn(problem.seed)[:2]


def images(path, shape=(8, 8)):
    generator = np.random.default_rng(0)
    y = generator.integers(3, size=60).astype(np.uint8)
    x = generator.integers(256, size=(60, *shape)).astype(np.uint8)
    np.savez(path, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return path


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_pictures_are_the_file_s_and_a_transformer_reads_them(tmp_path, shape):
    sources = Sources(images=images(tmp_path / "x.npz", shape))
    problem = sources("vit width 16 depth 1 heads 2 batch_size 10 steps 4", 0)
    x, y = problem.batch(0)
    assert x.shape == (10, *(shape[2:] or (1,)), 8, 8)
    with np.load(tmp_path / "x.npz") as file:
        raw = torch.from_numpy(file["x_train"]).float()
    raw = (raw - raw.mean(0)) / problem.data.x_train.new_tensor(float((raw - raw.mean(0)).square().mean().sqrt()))
    distances = (raw.reshape(40, -1)[None] - x.movedim(1, -1).reshape(10, 1, -1)).abs().amax(-1)
    assert float(distances.amin(1).max()) < 1e-5
    assert problem.model()(x).shape == (10, int(y.max()) + 1)
    assert problem.score(problem.model(), CPU, final=True).loss == pytest.approx(math.log(3))


# ---- training


def small():
    return Text(Settings(width=8, depth=1, heads=2, context=8, batch=4, steps=10, warmup=2), corpus())


def finished(contender, problem):
    training = Training(contender, problem, CPU)
    while not training.done:
        training.advance()
    return training


@pytest.mark.parametrize("step", [Polyak(most=0.1), ng.steps.Cauchy(every=2), ng.steps.Secant(every=2)])
def test_rules_that_ask_for_a_closure_train_as_by_hand(step):
    training = finished(lab.ours(10, lr=1.0, step=step), small())
    problem = small()
    model = problem.model()
    opt = ng.optimizer(model, lr=1.0, step=step)
    for t in range(10):

        def closure(t=t):
            opt.zero_grad()
            loss = problem.loss(model, *problem.batch(t))
            if not isinstance(step, ng.steps.Cauchy):
                loss.backward()
            return loss

        opt.step(closure)
    for mine, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_is_scored_is_the_average():
    contender = lab.ours(10, lr=0.3, step=ng.steps.Constant(), iterate=ng.optim.EMA(0.9))
    training = finished(contender, small())
    plain = small().score(training.model, CPU, final=True).loss
    with training.optimizer.averaged():
        average = small().score(training.model, CPU, final=True).loss
    assert training.curve.validation[-1] == average
    assert average != plain


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_train_and_come_back_from_their_state(name):
    contender = Entry.of(name).contender(10)
    whole = finished(contender, small())
    assert whole.curve.train[-1] < whole.curve.train[0] + 1e-3
    first = Training(contender, small(), CPU)
    for _ in range(5):
        first.advance()
    second = Training(contender, small(), CPU)
    second.load_state(first.state())
    while not second.done:
        second.advance()
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(UserError, match=r"--against: prodigyopt is not installed; write pip install"):
        Sweep(["quadratic steps 20"], against=["prodigy"])


def test_a_model_without_hidden_matrices_or_with_nothing_else_has_a_muon():
    for problem in (Bowl(width=3), small()):
        assert isinstance(lab.muon(10, 0.1, 0.1), Contender)
        finished(lab.muon(problem.steps, 0.1, 0.1), problem)


# ---- the study


@given(st.floats(-5, 5), st.floats(0.1, 10))
def test_a_grid_ends_around_its_best_point(log_best, start):
    best = start * 2**log_best

    def cost(lr):
        return abs(math.log(lr / best)) if lr < 30 * best else math.inf

    lrs = grid(start, cost)
    costs = [cost(lr) for lr in lrs]
    place = costs.index(min(costs))
    assert 0 < place < len(lrs) - 1
    assert all(b == pytest.approx(2 * a) for a, b in itertools.pairwise(lrs))
    assert min(costs) <= math.log(2) / 2 + 1e-9


class Table:
    """Outcomes that are known in advance, run when they are asked for."""

    def __init__(self, loss):
        self.loss, self.done = loss, set()

    def make(self, problem, seed):
        return Sources()(problem, seed)

    def __contains__(self, trial):
        return trial in self.done

    def __getitem__(self, trial):
        assert trial in self.done, f"{trial} was not run"
        loss = self.loss(trial)
        return lab.Outcome(loss, loss, None, 1.0)


def run(study, table, seeds):
    for todo in study.rounds(table, seeds):
        table.done |= set(todo)


def gaps(best):
    """Gap of a trial: 1e-4·(distance to the best lr of its maker)^2, at least 1e-6."""

    def loss(trial):
        options = dict(trial.entry.options)
        if "step" in options:
            return 2e-6 if isinstance(options["step"], ng.steps.Auto) else 1e-2
        return 1e-6 * 10 ** abs(math.log2(options["lr"] / best[trial.entry.maker]))

    return loss


def test_a_sweep_tunes_each_optimizer_and_compares_gaps_by_decades():
    best = {"ours": 0.8, "adamw": 8e-3, "muon": 1e-2}
    study = Sweep(["quadratic width 3 steps 50"], ours=["auto", "meta"], against=["muon"])
    table = Table(gaps(best))
    run(study, table, 2)
    muon = [dict(t.entry.options) for t in table.done if t.entry.maker == "muon"]
    assert {each["lr_rest"] for each in muon} == {8e-3}
    assert {each["decay"] for each in muon} == {0.0}
    lines = {line.name: line for line in study.lines(table, 2)}
    assert [lr for lr, _ in lines["normgeo, best of 5"].grid] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    bowl = Sources()("quadratic width 3 steps 50", 0)
    first = bowl.score(bowl.model(), CPU, final=True).loss
    decades = math.log10(first / 1e-6)
    assert lines["normgeo, auto"].excess == pytest.approx(math.log10(2) / decades)
    assert lines["normgeo, best of 5"].excess == 0
    (auto, meta) = study.verdicts(table, 2)
    assert auto[1] == ("1 of 1" if math.log10(2) / decades <= 0.01 else "0 of 1")
    assert meta[1:] == ("0 of 1", "quadratic width 3 steps 50", "0 of 1", "quadratic width 3 steps 50")


def test_losses_are_compared_by_their_ratio_and_a_run_that_diverged_loses(tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("abc" * 2000)
    problem = "gpt width 8 heads 2 depth 1 context 8 steps 50"

    def loss(trial):
        options = dict(trial.entry.options)
        if "step" in options:
            return 1.005 if isinstance(options["step"], ng.steps.Auto) else math.inf
        return {"ours": 1.0, "adamw": 1.2}[trial.entry.maker] + abs(math.log2(options["lr"] / 0.1)) * 1e-3

    table = Table(loss)
    table.make = lambda problem, seed: Sources(text)(problem, seed)
    study = Sweep([problem], ours=["auto", "meta"], against=["adamw"])
    run(study, table, 1)
    lines = {line.name.split(" of")[0]: line for line in study.lines(table, 1)}
    assert lines["normgeo, auto"].excess == pytest.approx(1.005 / lines["normgeo, best"].losses[0] - 1)
    assert lines["normgeo, meta"].excess == math.inf
    auto, meta = study.verdicts(table, 1)
    assert (auto[1], auto[3]) == ("1 of 1", "1 of 1")
    assert (meta[1], meta[3]) == ("0 of 1", "0 of 1")


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_start_that_a_factor_scales(name):
    one, hundredth = rule(name)(100), rule(f"{name}*0.01")(100)
    assert one != hundredth
    assert one.contender(100).name == "normgeo"


def test_metaoptimize_from_a_hundredth():
    options = dict(rule("meta*0.01")(100).options)
    assert options["lr"] == pytest.approx(0.002)
    assert isinstance(options["step"].right, MetaOptimize)


# ---- the command


def test_the_command_runs_once_and_goes_on_where_it_stopped(monkeypatch, capsys, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "sweep",
        "--problems",
        "quadratic width 3",
        "--steps",
        20,
        "--seeds",
        1,
        "--out",
        out,
        "--against",
        "adamw",
    ]
    code, shown, err = command(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    assert "normgeo, auto" in shown
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((out / "results.json").read_text())
    assert {line["name"].split(",")[0] for line in results["lines"]} == {"normgeo", "AdamW"}
    assert results["studies"]["verdicts"]["rows"][0][0] == "auto"
    before = (out / "trials.jsonl").read_bytes()
    assert command(monkeypatch, capsys, *arguments)[0] == 0
    assert (out / "trials.jsonl").read_bytes() == before
    trials = lab.Trials(out / "trials.jsonl", Sources())
    assert Trial("quadratic width 3 steps 20", rule("auto")(20), 0) in trials


MISTAKES = {
    "rule": (["--ours", "auto,best"], "--ours: unknown rule 'best'; choose from auto"),
    "factor": (["--ours", "meta*x"], "--ours: 'meta*x' has no number after the *"),
    "negative": (["--ours", "meta*-1"], "--ours: the factor of 'meta*-1' must be a finite number > 0"),
    "optimizer": (["--against", "adam"], "--against: unknown optimizer 'adam'; choose from adamw, muon"),
    "kind": (["--problems", "poem"], "--problems: unknown kind 'poem'; choose from gpt, gpt2, llama, mlp, vit"),
    "size": (["--problems", "quadratic wide 3"], "--problems: quadratic has no 'wide'; choose from condition"),
    "number": (
        ["--problems", "quadratic width x"],
        "--problems: 'quadratic width x steps 200' is not a kind and its sizes",
    ),
    "none": (["--problems", ","], "--problems: name at least one"),
    "steps": (["--steps", "many"], "--steps: whole numbers separated by commas, got 'many'"),
    "short": (["--steps", "5"], "--steps: at least one number, all at least 10, got '5'"),
    "images": (["--problems", "vit"], "--images: vit needs labelled images; give an .npz file"),
    "no images": (["--problems", "vit", "--images", "nowhere.npz"], "--images: cannot read nowhere.npz"),
    "flat": (["--problems", "vit", "--images", "flat.npz"], "--images: an example of flat.npz has the shape (6,)"),
    "odd": (
        ["--problems", "vit width 20", "--images", "x.npz"],
        "--problems: a width of 20 is not 4 heads of even width",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(monkeypatch, capsys, tmp_path, mistake):
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "x.npz")
    images(tmp_path / "flat.npz", (6,))
    arguments, message = MISTAKES[mistake]
    code, _, err = command(monkeypatch, capsys, "sweep", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
