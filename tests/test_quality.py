import json
import math

import numpy as np
import pytest
import torch
from test_lab import TEXT, command

from normgeo import lab
from normgeo.lab import Classify, Comparison, Entry, Parabola, Sources, Transfer, Trial, Trials, UserError


@pytest.fixture
def sources(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((300, 6)).astype(np.float16)
    y = (x[:, 0] > 0).astype(np.uint8)
    np.savez(tmp_path / "half.npz", x_train=x[:200], y_train=y[:200], x_test=x[200:], y_test=y[200:])
    (tmp_path / "fox.txt").write_bytes(TEXT)
    return Sources(tmp_path / "fox.txt", tmp_path / "half.npz")


HALF = "mlp width 8 batch_size 32 steps 20"


def test_a_vector_problem_sees_every_example_once_an_epoch_and_its_batches_follow_from_seed_and_step(sources):
    problem = sources(HALF, 3)
    assert isinstance(problem, Classify)
    epoch = torch.cat([problem.batch(step)[0] for step in range(6, 12)])  # 6 batches of 32 in 200
    assert len(epoch.unique(dim=0)) == 192
    again = sources(HALF, 3)
    assert torch.equal(again.batch(9)[0], problem.batch(9)[0])
    assert not torch.equal(sources(HALF, 4).batch(9)[0], problem.batch(9)[0])
    assert problem.data.x_train.square().mean().item() == pytest.approx(1)


def test_trials_are_run_once_and_kept(sources, tmp_path):
    path = tmp_path / "trials.jsonl"
    trials = Trials(path, sources, jobs=1)
    todo = [
        Trial(HALF, Entry.of(maker, lr=0.01, **more), 0) for maker, more in (("ours", {"warmup": 2}), ("adamw", {}))
    ]
    assert set(trials.run(todo)) == set(todo)
    assert not list(trials.run(todo))
    with path.open("a") as file:
        file.write('{"key": "to')  # killed while it wrote
    again = Trials(path, sources)
    assert [again[each] for each in todo] == [trials[each] for each in todo]
    assert path.read_text().count("\n") == 2
    assert path.read_text().endswith("\n")
    assert 0.4 < again[todo[0]].accuracy <= 1
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(UserError, match=r"line 1 of .* is not a trial"):
        Trials(path, sources)


@pytest.mark.slow
def test_several_processes_come_to_the_same(sources, tmp_path):
    todo = [Trial(HALF, Entry.of("adamw", lr=0.01), seed) for seed in range(2)]
    one, two = (Trials(tmp_path / f"{jobs}.jsonl", sources, jobs) for jobs in (1, 2))
    for trials in (one, two):
        assert set(trials.run(todo)) == set(todo)
    assert [one[each].validation for each in todo] == pytest.approx([two[each].validation for each in todo], rel=1e-5)


def test_runs_on_other_data_are_other_runs(sources, tmp_path):
    trial = Trial(HALF, Entry.of("adamw", lr=0.01), 0)
    trials = Trials(tmp_path / "t.jsonl", sources)
    list(trials.run([trial]))
    other = tmp_path / "other.npz"
    other.write_bytes((tmp_path / "half.npz").read_bytes())
    assert trial not in Trials(tmp_path / "t.jsonl", Sources(None, other))


class Table:
    """Outcomes that are known in advance."""

    def __init__(self, loss):
        self.loss, self.make = loss, lambda problem, seed: type("P", (), {"steps": 100})

    def __getitem__(self, trial):
        loss = self.loss(trial)
        return lab.Outcome(loss, loss, None, 1.0)


def test_a_comparison_tunes_on_the_first_seed_and_then_runs_the_best_on_all():
    grid = [Entry.of("adamw", lr=lr) for lr in (0.1, 0.2, 0.4)]
    study = Comparison("", ["p"], {"AdamW": grid}, "validation")
    table = Table(lambda trial: abs(trial.entry.lr - 0.2) + trial.seed)
    rounds = list(study.rounds(table, 3))
    assert rounds[0] == [Trial("p", entry, 0) for entry in grid]
    assert rounds[1] == [Trial("p", grid[1], 1), Trial("p", grid[1], 2)]
    ((name, setting, _, validation, accuracy),) = study.rows(table, 3)
    assert (name, validation, accuracy) == ("AdamW", "1.000 ± 1.000", "")
    assert "lr 0.2" in setting
    assert "(best of 3)" in setting
    rising = Table(lambda trial: trial.entry.lr)
    assert "(best of 3, end of the grid)" in study.rows(rising, 1)[0][1]


@pytest.mark.parametrize("shift", [1.0, 1.3, 0.8])
def test_transfer_finds_the_wandering_of_known_optima(shift):
    optima = {"small": 0.2, "large": 0.2 * shift}
    grid = [Entry.of("ours", lr=lr) for lr in (0.05, 0.1, 0.2, 0.4, 0.8)]
    study = Transfer("", list(optima), {"normgeo": grid})
    table = Table(lambda trial: 2 + math.log(trial.entry.lr / optima[trial.problem]) ** 2 + trial.seed)
    *rows, total = study.rows(table, 3)
    assert [float(row[3]) for row in rows] == pytest.approx(list(optima.values()), rel=5e-3)
    assert float(rows[1][5]) == pytest.approx(100 * math.log(shift) ** 2 / 3, abs=0.01)
    assert total[3] == f"span ×{max(shift, 1 / shift):.2f}"


def test_an_optimum_at_the_end_of_a_grid_is_not_taken_for_one():
    fit = Parabola.through([0.1, 0.2, 0.4], [1.0, 2.0, 3.0])
    assert fit.edge
    assert "end of the grid" in fit.shown()
    assert not Parabola.through([0.1, 0.2, 0.4], [3.0, 2.0, math.inf]).edge


def test_the_command_runs_what_it_is_asked_for(monkeypatch, capsys, tmp_path, sources):
    small = {
        "depth": Transfer(
            "depths",
            [f"gpt width 8 heads 2 context 8 batch 4 depth {d} steps 6 warmup 0" for d in (1, 2)],
            {"normgeo": [Entry.of("ours", lr=lr, warmup=1) for lr in (0.1, 0.2, 0.4)]},
        )
    }
    monkeypatch.setattr(lab, "studies", lambda: small)
    out = tmp_path / "out"
    arguments = ["bench", "quality", "--text", tmp_path / "fox.txt", "--studies", "depth", "--seeds", 1, "--out", out]
    code, shown, err = command(monkeypatch, capsys, *arguments)
    assert (code, err) == (0, "")
    assert "span" in shown
    results = json.loads((out / "results.json").read_text())
    assert len(results["studies"]["depth"]["rows"]) == 3
    assert {"normgeo", "torch", "python", "seeds"} < set(results)
    assert len((out / "trials.jsonl").read_text().splitlines()) == 6


MISTAKES = {
    "study": (["--studies", "colour"], "--studies: unknown study 'colour'; choose from"),
    "no classes": (["--studies", "width"], "--classes: mlp needs labelled vectors"),
    "no file": (["--studies", "width", "--classes", "nowhere.npz"], "--classes: cannot read nowhere.npz"),
    "no text": (["--studies", "gpt", "--text", "nowhere.txt"], "--text: cannot read nowhere.txt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(monkeypatch, capsys, tmp_path, mistake):
    monkeypatch.chdir(tmp_path)
    arguments, message = MISTAKES[mistake]
    code, _, err = command(monkeypatch, capsys, "bench", "quality", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_without_labels_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=np.zeros((2, 2)))
    with pytest.raises(UserError, match="has no y_train, x_test, y_test"):
        lab.labelled_file(tmp_path / "x.npz")
