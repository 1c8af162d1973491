import errno
import json
import os
from pathlib import Path

import pytest
import torch

from normgeo import lab
from normgeo.cli import main
from normgeo.cli import train as train_module
from normgeo.lab import Corpus, Settings, Text, Training, UserError, contenders

TEXT = ("the quick brown fox jumps over the lazy dog; " * 60).encode()
SMALL = Settings(width=8, depth=1, heads=2, context=8, batch=4, steps=20, warmup=2, lr=0.2)


def corpus():
    return Corpus.from_bytes("fox", TEXT[:2000], TEXT[2000:])


def problem():
    return Text(SMALL, corpus())


def run(training):
    while not training.done:
        training.advance()
    return training


def test_a_corpus_is_its_bytes_in_order():
    c = corpus()
    assert bytes(c.vocabulary[i] for i in c.train) == TEXT[:2000]
    assert bytes(c.vocabulary[i] for i in c.validation) == TEXT[2000:]
    assert list(c.vocabulary) == sorted(set(TEXT))


def test_the_standard_library_is_split_by_the_hash_of_its_files(tmp_path):
    for i in range(60):
        (tmp_path / f"module{i}.py").write_text(f"# {i}\n" * 5000)
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n" * 10)
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("SECRET = 1\n" * 10_000)
    c = lab.standard_library(tmp_path)
    text = bytes(c.vocabulary[i] for i in torch.cat([c.train, c.validation]))
    assert b"SECRET" not in text
    assert len(text) == sum((tmp_path / f"module{i}.py").stat().st_size for i in range(60))
    assert 0.02 < len(c.validation) / len(text) < 0.25
    assert lab.standard_library(tmp_path).sha256 == c.sha256
    assert not set(_lines(c, c.train)) & set(_lines(c, c.validation))


def _lines(c, ids):
    return bytes(c.vocabulary[i] for i in ids).splitlines()


def test_the_standard_library_of_this_python_is_long_enough():
    c = lab.standard_library()
    assert len(c.train) + len(c.validation) > 1_000_000


def test_a_small_standard_library_asks_for_a_text(tmp_path):
    (tmp_path / "a.py").write_text("pass\n")
    with pytest.raises(UserError, match="normgeo train --text FILE"):
        lab.standard_library(tmp_path)


@pytest.mark.parametrize("name", ["normgeo", "AdamW", "Muon + AdamW"])
def test_every_contender_learns_and_resumes_bit_by_bit(name, tmp_path):
    (contender,) = [c for c in contenders(["adamw", "muon"], steps=20, lr=0.2, warmup=2) if c.name == name]
    whole = run(Training(contender, problem(), torch.device("cpu")))
    assert whole.curve.train[-1] < whole.curve.train[0]
    assert whole.curve.validated == list(range(2, 21, 2))
    part = Training(contender, problem(), torch.device("cpu"))
    for _ in range(7):
        part.advance()
    lab.save_checkpoint(tmp_path / "c.pt", part.state())
    resumed = Training(contender, problem(), torch.device("cpu"))
    resumed.load_state(lab.load_checkpoint(tmp_path / "c.pt", torch.device("cpu")))
    run(resumed)
    assert resumed.curve.train == whole.curve.train
    assert resumed.curve.validation == whole.curve.validation
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_contenders_start_from_the_same_weights_and_see_the_same_batches():
    ours, theirs = (
        Training(c, problem(), torch.device("cpu")) for c in contenders(["adamw"], steps=20, lr=0.2, warmup=2)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))
    assert torch.equal(ours.problem.batch(3)[0], theirs.problem.batch(3)[0])


def test_a_torn_checkpoint_is_never_loaded(tmp_path):
    path = tmp_path / "c.pt"
    lab.save_checkpoint(path, {"step": 1})
    lab.save_checkpoint(path, {"step": 2})
    assert lab.load_checkpoint(path, torch.device("cpu"))["step"] == 2
    path.write_bytes(path.read_bytes()[:100])
    assert lab.load_checkpoint(path, torch.device("cpu"))["step"] == 1
    path.with_name("c.pt.previous").write_bytes(b"")
    with pytest.raises(UserError, match="no readable checkpoint"):
        lab.load_checkpoint(path, torch.device("cpu"))


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    lab.save_checkpoint(path, {"step": 1})

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full; what was there is intact"):
        lab.save_checkpoint(path, {"step": 2})
    assert lab.load_checkpoint(path, torch.device("cpu"))["step"] == 1
    assert not list(tmp_path.glob("*.partial"))


def test_a_nan_loss_stops_with_advice():
    (ours,) = contenders([], steps=20, lr=0.2, warmup=2)
    training = Training(ours, problem(), torch.device("cpu"))
    with torch.no_grad():
        next(training.model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="became nan at step 1; try a smaller --lr"), pytest.warns(RuntimeWarning):
        training.advance()


# ---- the command


def command(monkeypatch, capsys, *arguments):
    """Exit status, standard output and standard error of `normgeo ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["normgeo", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "fox.txt"
    path.write_bytes(TEXT)
    return path


SIZES = ["--width", 8, "--depth", 1, "--heads", 2, "--context", 8, "--batch", 4, "--steps", 20]


def test_train_writes_results_and_a_picture(monkeypatch, capsys, tmp_path, text):
    out = tmp_path / "out"
    code, shown, err = command(
        monkeypatch, capsys, "train", "--text", text, *SIZES, "--compare", "adamw,muon", "--out", out
    )
    assert (code, err) == (0, "")
    for expected in (
        "sha256",
        "blocks.0.mlp.block.up.weight",
        "every leaf will move",
        "AdamW",
        "Muon + AdamW",
        "validation",
    ):
        assert expected in shown
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint.pt",
        "checkpoint.pt.previous",
        "loss.png",
        "results.json",
    ]
    results = json.loads((out / "results.json").read_text())
    assert [curve["name"] for curve in results["curves"]] == ["normgeo", "AdamW", "Muon + AdamW"]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_run_says_how_to_go_on_and_does(monkeypatch, capsys, tmp_path, text):
    out, calls, advance = tmp_path / "out", iter(range(100)), Training.advance

    def interrupted(self):
        if next(calls) == 3:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(Training, "advance", interrupted)
    code, _, err = command(monkeypatch, capsys, "train", "--text", text, *SIZES, "--out", out)
    assert code == 2
    assert f"stopped; continue with normgeo train --resume --out {out}" in err
    monkeypatch.setattr(Training, "advance", advance)
    (out / "checkpoint.pt").rename(out / "checkpoint.pt.previous")  # as after a crash between two renames
    assert command(monkeypatch, capsys, "train", "--resume", "--out", out)[0] == 0
    assert (out / "results.json").exists()


def test_runs_of_one_second_get_folders_of_their_own(monkeypatch, capsys, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "now")
    for _ in range(2):
        assert command(monkeypatch, capsys, "train", "--text", text, *SIZES, "--compare", "none")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["now", "now-2"]


def test_dry_run_writes_nothing(monkeypatch, capsys, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    code, shown, _ = command(monkeypatch, capsys, "train", "--text", text, *SIZES, "--dry-run")
    assert code == 0
    assert "would train AdamW: lr 0.003" in shown
    assert [p.name for p in tmp_path.iterdir()] == ["fox.txt"]


def test_a_killed_run_resumes_to_the_same_results(monkeypatch, capsys, tmp_path, text):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert command(monkeypatch, capsys, "train", "--text", text, *SIZES, "--out", whole)[0] == 0

    class Killed(BaseException):
        pass

    steps, advance = iter(range(1000)), Training.advance

    def until_killed(self):
        if next(steps) == 27:  # inside the second contender
            raise Killed
        advance(self)

    monkeypatch.setattr(train_module, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr(Training, "advance", until_killed)
    monkeypatch.setattr("sys.argv", ["normgeo", "train", "--text", str(text), *map(str, SIZES), "--out", str(broken)])
    with pytest.raises(Killed):
        main()
    assert not (broken / "results.json").exists()
    monkeypatch.setattr(Training, "advance", advance)
    code, _, err = command(monkeypatch, capsys, "train", "--resume", "--out", broken, "--width", 16)
    assert (code, err.count("\n")) == (2, 1)
    assert "--width: the run in" in err
    assert command(monkeypatch, capsys, "train", "--resume", "--out", broken)[0] == 0
    curves = [json.loads((folder / "results.json").read_text())["curves"] for folder in (whole, broken)]
    for a, b in zip(*curves, strict=True):
        assert (a["train"], a["validation"]) == (b["train"], b["validation"])


MISTAKES = {
    "missing text": (
        ["--text", "nowhere.txt"],
        "--text: cannot read nowhere.txt: No such file or directory; give the path",
    ),
    "a folder": (["--text", "."], "--text: cannot read .: Is a directory"),
    "empty text": (["--text", "empty"], "--text: empty is empty"),
    "short text": (["--text", "short"], "give a text of at least 90 bytes or a smaller --context"),
    "binary": (["--text", "binary"], "--text: binary is not UTF-8 text (byte 0)"),
    "heads": (["--heads", 3], "--heads: 3 heads do not divide --width 8; choose heads that divide it"),
    "negative": (["--depth", -1], "--depth: must be a whole number ≥ 1, got -1"),
    "not a number": (["--width", "wide"], "'wide' is not a valid integer"),
    "nan": (["--lr", "nan"], "--lr: must be a finite number > 0, got nan"),
    "infinite": (["--lr", "inf"], "--lr: must be a finite number > 0"),
    "warm-up": (["--warmup", 20], "--warmup: must be at least 0 and less than --steps 20"),
    "unknown optimizer": (
        ["--compare", "adam"],
        "--compare: unknown optimizer 'adam'; choose from adamw, muon, grid, none",
    ),
    "unknown option": (["--widht", 8], "No such option"),
    "unknown device": (["--device", "tpu"], "'tpu' is not one of"),
    "existing folder": (
        ["--out", "there"],
        "--out: there exists already; choose a new folder, or continue it with --resume",
    ),
    "impossible folder": (["--out", "empty/inside"], "--out: cannot make empty/inside"),
    "nothing to resume": (["--resume", "--out", "there"], "--resume: no readable checkpoint in there"),
    "odd heads": (["--width", 6], "heads of 3 features cannot be turned in pairs"),
    "seed": (["--seed", 2**64], "--seed: must be at least 0 and less than 2^63"),
    "divergence": (["--lr", 1e20, "--compare", "none"], "try a smaller --lr"),
    "too large": (["--batch", 10**12, "--compare", "none"], "not enough memory"),
    "a very long folder": (["--out", "x" * 300], "--out: cannot look into"),
    "foreign checkpoint": (["--resume", "--out", "foreign"], "is not a checkpoint of normgeo train"),
    "resume without folder": (["--resume"], "--resume: say which run to continue"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_status_2(name, monkeypatch, capsys, tmp_path, text):
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("short").write_text("x" * 30)
    Path("binary").write_bytes(b"\xff\xfe" * 100)
    Path("there").mkdir()
    (Path("there") / "file").touch()
    Path("foreign").mkdir()
    torch.save({"hello": 1}, Path("foreign") / "checkpoint.pt")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    wrong, message = MISTAKES[name]
    code, _, err = command(monkeypatch, capsys, "train", "--text", text, *SIZES, *wrong)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("normgeo: ")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_device_is_a_mistake(monkeypatch, capsys, text):
    code, _, err = command(monkeypatch, capsys, "train", "--text", text, *SIZES, "--device", "cuda")
    assert code == 2
    assert "--device: this torch sees no CUDA device" in err


def test_help_and_version(monkeypatch, capsys):
    assert command(monkeypatch, capsys, "--version")[:2] == (0, "normgeo, version 0.1.0\n")
    code, shown, _ = command(monkeypatch, capsys, "train", "--help")
    assert code == 0
    assert "--compare" in shown
    assert command(monkeypatch, capsys)[0] == 2
    assert command(monkeypatch, capsys, "trian")[0] == 2
