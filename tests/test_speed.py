import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from normgeo import lab
from normgeo.cli import main
from normgeo.lab import speed
from normgeo.linalg import FAST, TIGHT

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


@pytest.mark.parametrize("polar", [TIGHT, FAST])
def test_the_floor_is_the_arithmetic_of_the_polar_factors(polar):
    params = speed._matrices(speed._gpt(32, 1, CPU))
    stated = sum(speed._flops(polar, *p.shape) for p in params)
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
