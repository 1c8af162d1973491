import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fake_cuda import CUDA, fake_cuda, fill, for_fake_cuda, to_cuda
from torch.utils.flop_counter import FlopCounterMode

import normgeo as ng
from normgeo import lab
from normgeo.cli import main
from normgeo.cli.speed import speed as command_line
from normgeo.lab import speed
from normgeo.lab.speed_polars import POLARS, flops
from normgeo.linalg import FAST, TIGHT, symmetric

CPU = torch.device("cpu")


def test_every_optimizer_is_timed_on_the_same_matrices():
    timings = lab.time_steps(32, 1, CPU, seconds=0.01)
    assert [t.name for t in timings][:5] == [
        "normgeo tight",
        "normgeo fast",
        "torch Muon",
        "torch AdamW, foreach",
        "torch AdamW, fused",
    ]
    for t in timings:
        assert t.matrices == 6
        assert 0 < t.milliseconds[0] <= t.milliseconds[1] <= t.milliseconds[2]
        assert t.ratio == (1, 1, 1) or t.name != "torch Muon"
        assert (t.gflops is None) == ("AdamW" in t.name)


def test_a_package_that_does_not_work_costs_its_own_line_only(monkeypatch):
    class Steps(torch.optim.SGD):
        def step(self):
            raise RuntimeError("no such kernel\nand more")

    for name, made in (("made", lambda params, lr: 1 / 0), ("steps", Steps)):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setattr(sys.modules[name], "Muon", made, raising=False)
    monkeypatch.setattr(speed, "OTHERS", {"made": "Muon", "steps": "Muon", "is.not.installed": "Muon"})
    with pytest.warns(RuntimeWarning, match="Muon is left out") as said:
        timings = lab.time_steps(32, 1, CPU, seconds=0.01)
    assert [str(each.message) for each in said] == [
        "made Muon is left out: ZeroDivisionError: division by zero",
        "steps Muon is left out: RuntimeError: no such kernel",
    ]
    assert "torch AdamW, fused" in {t.name for t in timings}
    assert not {t.name for t in timings} & {"made Muon", "steps Muon"}


def test_every_leaf_is_timed_and_stacks_are_counted():
    (timing,), stacks = lab.time_whole(32, 1, CPU, vocabulary=40, seconds=0.01)
    assert (timing.matrices, stacks) == (8, 5)
    assert timing.name == "every leaf, 0 M"
    assert timing.enqueuing is None


def test_polar_factors_alone():
    timings = lab.time_polars(32, 2, CPU, rounds=2)
    assert {(t.count, t.m, t.n) for t in timings} == {(8, 32, 32), (2, 32, 128)}
    for t in timings:
        work = t.count * flops(POLARS[t.name], t.m, t.n)
        assert t.gflops * t.milliseconds == pytest.approx(work / 1e6)


@for_fake_cuda
def test_on_a_device_each_policy_is_timed_with_and_without_the_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    with fake_cuda(monkeypatch):
        seen = {(t.name, t.n) for t in lab.time_polars(symmetric.SMALLEST, 1, CUDA, rounds=2)}
        assert lab.machine_rates(CUDA).gflops > 0
    for name in (*POLARS, "precision=torch.float16"):
        for way in (name, f"{name}, library alone"):
            assert {(way, symmetric.SMALLEST), (way, 4 * symmetric.SMALLEST)} <= seen
    assert symmetric.SMALLEST < 2**20


@for_fake_cuda
@pytest.mark.slow
def test_what_is_timed_on_a_device_runs_there(monkeypatch):
    def made(width, depth, device, vocabulary=65):
        with torch.device("meta"):
            model = ng.nn.GPT(vocab_size=vocabulary, context=64, width=width, heads=width // 32, depth=depth)
        fill(to_cuda(model).parameters())
        return model

    monkeypatch.setattr(speed, "_gpt", made)
    monkeypatch.setattr(speed, "_twin", lambda model: made(2048, 1, CUDA, model.head.weight.shape[0]))
    monkeypatch.setattr(speed, "_recorded", lambda step: step)  # a graph needs a device
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    with fake_cuda(monkeypatch) as device, device.waiting():
        timings = [*lab.time_steps(2048, 1, CUDA, 0.01), *lab.time_entrywise(2048, 1, CUDA, 0.01)]
        (whole, replayed), stacks = lab.time_whole(2048, 1, CUDA, vocabulary=50304, seconds=0.01)
    assert {"normgeo tight", "torch Muon", "floor of normgeo fast", "normgeo signs"} <= {t.name for t in timings}
    assert all(0 < t.enqueuing <= t.milliseconds[2] for t in timings)
    assert (whole.name, whole.matrices, stacks) == ("every leaf, 256 M", 8, 5)
    assert replayed.name == "every leaf, 256 M, from a graph"


@pytest.mark.parametrize("polar", [TIGHT, FAST])
def test_the_floor_is_the_arithmetic_of_the_polar_factors(polar):
    params = speed._matrices(speed._gpt(32, 1, CPU))
    stated = sum(flops(polar, *p.shape) for p in params)
    for run in (speed._floor(params, polar), lambda: [polar(p.detach()) for p in params]):
        with FlopCounterMode(display=False) as count:
            run()
        assert count.get_total_flops() == stated


def test_all_gradients_are_there():
    for p in speed._matrices(speed._gpt(32, 2, CPU)):
        assert p.grad is not None
        assert p.grad.any()


def test_measured_accuracy_is_what_is_promised():
    found = {a.name: a for a in lab.accuracies(64, CPU)}
    assert found["normgeo tight"].least >= 0.99
    assert found["normgeo tight"].largest <= 1
    assert found["normgeo tight"].descent >= 0.99
    assert found["normgeo fast"].descent > found["torch Muon"].descent
    assert found["normgeo fast"].largest < 1.03 < found["torch Muon"].largest


def command(*options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["normgeo", "bench", "speed", *map(str, options)])
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code


def test_the_command_prints_and_saves(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        assert command("--width", "32,64", "--depth", 1, "--seconds", 0.01, "--out", tmp_path / "new") == 0
    finally:
        torch.set_num_threads(threads)
    saved = json.loads((tmp_path / "new" / "results.json").read_text())
    assert {t["width"] for t in saved["timings"]} == {32, 64}
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "normgeo tight" in capsys.readouterr().out


def test_what_was_measured_before_the_end_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "time_polars", lambda *_: 1 / 0)
    threads = torch.get_num_threads()
    try:
        with pytest.raises(ZeroDivisionError):
            command("--width", "32", "--depth", 1, "--seconds", 0.01, "--out", tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert len(json.loads((tmp_path / "results.json").read_text())["timings"]) >= 5


def test_the_script_for_a_device_asks_for_options_that_there_are(tmp_path):
    script = Path(__file__).parents[1] / "docs" / "gpu.sh"
    environment = {**os.environ, "PYTHON": "echo"}
    said = subprocess.run(
        ["bash", script, tmp_path], capture_output=True, text=True, env=environment, check=True
    ).stdout
    runs = [shlex.split(line.split("bench speed")[1]) for line in said.splitlines() if "bench speed" in line]
    assert len(runs) == 5
    for options in runs:
        assert command_line.make_context("speed", options).params["device"] == "cuda"
    assert subprocess.run(["bash", script, tmp_path, "nonsense"], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--width", "many"), "--width: numbers separated by commas"),
        (("--width", "20"), "need a multiple of 32"),
        (("--threads", "0"), "--threads: at least 1"),
    ],
)
def test_mistakes_are_one_line(options, message, capsys):
    assert command(*options) == 2
    assert message in capsys.readouterr().err
