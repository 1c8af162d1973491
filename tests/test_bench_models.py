import copy
import dataclasses

import numpy as np
import pytest
import torch
from test_lab import TEXT, command
from torch import nn

from normgeo import lab
from normgeo.lab import Comparison, Entry, Sources, Training, Trial, Trials, UserError
from normgeo.lab.contenders import Flattened

SMALL = {
    "gpt2": "gpt2 width 16 depth 1 context 8 batch 2 steps 21",
    "llama": "llama width 16 depth 1 context 8 batch 2 steps 21",
    "resnet18": "resnet18 width 4 batch_size 8 steps 21",
}


@pytest.fixture
def sources(tmp_path):
    generator = np.random.default_rng(0)
    for name, shape in (("pictures", (8, 8)), ("vectors", (10,))):
        x = generator.integers(256, size=(60, *shape), dtype=np.uint8)
        y = (x.reshape(60, -1)[:, 0] > 127).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    (tmp_path / "fox.txt").write_bytes(TEXT)
    return Sources(tmp_path / "fox.txt", images=tmp_path / "pictures.npz")


@pytest.mark.parametrize("kind", SMALL)
def test_a_model_as_it_is_trains_with_every_contender_and_is_judged_in_evaluation_mode(kind, sources, tmp_path):
    entries = [Entry.of("ours", lr=0.1, warmup=2), Entry.of("adamw", lr=0.01, warmup=2)]
    entries.append(Entry.of("muon", lr=0.05, lr_rest=0.01))
    trials = Trials(tmp_path / "trials.jsonl", sources)
    for trial in trials.run(Trial(SMALL[kind], entry, 0) for entry in entries):
        assert 0 < trials[trial].validation < 3.5
    problem = sources(SMALL[kind], 0)
    training = Training(entries[0].contender(problem.steps), problem, torch.device("cpu"))
    seen = []
    training.model.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    for _ in range(2):
        training.advance()
    assert set(seen) == {True, False}
    assert training.model.training


def test_the_score_of_pictures_leaves_the_averages_of_batch_norm_alone(sources):
    problem = sources(SMALL["resnet18"], 0)
    model = problem.model().eval()
    before = copy.deepcopy(model.state_dict())
    score = problem.score(model, torch.device("cpu"), final=True)
    assert 0 <= score.accuracy <= 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_pictures_have_two_or_three_axes(sources, tmp_path):
    vectors = dataclasses.replace(sources, images=tmp_path / "vectors.npz")
    with pytest.raises(UserError, match=r"--images: an example of vectors.npz has the shape \(10,\)"):
        vectors(SMALL["resnet18"], 0)


def test_without_transformers_a_sentence_says_so(sources, monkeypatch):
    monkeypatch.setattr("normgeo.lab.models.find_spec", lambda name: None)
    with pytest.raises(UserError, match="llama comes from transformers; pip install"):
        sources(SMALL["llama"], 0)


@pytest.mark.parametrize(
    ("kind", "hidden"),
    [
        ("gpt2", {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}),
        ("llama", {f"{m}_proj.weight" for m in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")}),
        ("resnet18", {"conv.weight", "conv1.weight", "conv2.weight", "shortcut.0.weight"}),
    ],
)  # fmt: skip
def test_muon_gets_the_hidden_matrices_and_kernels(kind, hidden, sources):
    problem = sources(SMALL[kind], 0)
    model = problem.model()
    muon, adamw = lab.muon(20, 0.1, 0.01).make(model, problem.compile).optimizers
    given = {id(p) for p in muon.weights}
    names = [name for name, p in model.named_parameters() if id(p) in given]
    assert all(any(name.endswith(each) for each in hidden) for name in names)
    assert all(any(name.endswith(each) for name in names) for each in hidden)
    assert len(given) + sum(len(group["params"]) for group in adamw.param_groups) == len(list(model.parameters()))


def test_flattened_muon_is_muon_on_matrices_that_share_the_memory_of_the_weights():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.randn(5, 6))]
    matrices = [nn.Parameter(w.detach().clone().flatten(1)) for w in weights]
    ours, torchs = Flattened(weights, lr=0.1, weight_decay=0.1), torch.optim.Muon(matrices, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        for weight, matrix in zip(weights, matrices, strict=True):
            weight.grad = torch.randn_like(weight)
            matrix.grad = weight.grad.flatten(1).clone()
        ours.step()
        torchs.step()
        ours.zero_grad()
    assert all(torch.equal(w.flatten(1), m) for w, m in zip(weights, matrices, strict=True))
    assert all(w.grad is None for w in weights)


def test_heads_have_sixteen_features_at_every_width(sources):
    assert [sources(f"gpt2 width {width} depth 1", 0).settings.heads for width in (64, 256)] == [4, 16]


def test_every_study_names_problems_that_exist(sources):
    for study in lab.model_studies().values():
        for problem in study.problems:
            assert sources.of(problem)
            assert sources(problem, 0).steps >= 100


def test_the_command_prints_a_table(monkeypatch, capsys, tmp_path, sources):
    small = {
        "resnet18": Comparison("small", [SMALL["resnet18"]], {"AdamW": [Entry.of("adamw", lr=0.01)]}, "validation")
    }
    monkeypatch.setattr(lab, "model_studies", lambda: small)
    options = ["--images", sources.images, "--studies", "resnet18", "--seeds", 1, "--out", tmp_path / "out"]
    code, shown, err = command(monkeypatch, capsys, "bench", "models", *options)
    assert (code, err) == (0, "")
    assert "AdamW" in shown
    code, _, err = command(monkeypatch, capsys, "bench", "models", "--studies", "resnet18", "--out", tmp_path / "no")
    assert (code, err.count("\n")) == (2, 1)
    assert "--images: resnet18 needs labelled images" in err
