"""Runs that are killed, files that are torn, disks that are full: what was saved last is whole, and goes on to the bit."""

import errno
import json
import os
import random
import resource
import signal
import sys
import time
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest
import torch

from normgeo import lab
from normgeo.cli import main
from normgeo.cli import train as train_module

TEXT = ("the quick brown fox jumps over the lazy dog; " * 60).encode()
CPU = torch.device("cpu")
SIZES = ["--width", 8, "--depth", 1, "--heads", 2, "--context", 8, "--batch", 4]


def content(step):
    """A checkpoint whose parts belong together."""
    return {"step": step, "weights": torch.full((1000,), float(step)), "more": [torch.full((300,), float(step))]}


def whole(data):
    step = float(data["step"])
    return bool((data["weights"] == step).all() and (data["more"][0] == step).all())


class Killed(BaseException):
    """As kill -9: nothing that was written for other errors runs."""


class Dying:
    """Calls to the system, of which one is the last, and a write that stops halfway."""

    CALLS = (("link", os), ("replace", Path), ("unlink", Path), ("fsync", os))

    def __init__(self, monkeypatch, last):
        self.left = last
        for name, place in self.CALLS:
            monkeypatch.setattr(place, name, self.counted(getattr(place, name)))
        opened = Path.open
        monkeypatch.setattr(Path, "open", lambda path, *args, **kwargs: Torn(self, opened(path, *args, **kwargs)))

    def counted(self, call):
        def counting(*args, **kwargs):
            self.tick()
            return call(*args, **kwargs)

        return counting

    def tick(self):
        self.left -= 1
        if self.left < 0:
            raise Killed


class Torn:
    def __init__(self, dying, file):
        self.dying, self.file = dying, file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.dying.tick()
        self.file.write(data[len(data) // 2 :])


def test_a_crash_between_any_two_calls_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    path, found, last = tmp_path / "c.pt", [], 0
    for last in range(100):
        for step in (1, 2):
            lab.save_checkpoint(path, content(step))
        with monkeypatch.context() as patch:
            dying = Dying(patch, last)
            with suppress(Killed):
                lab.save_checkpoint(path, content(3))
        data = lab.load_checkpoint(path, CPU)
        assert whole(data)
        found.append(data["step"])
        if dying.left >= 0:
            break
    assert last >= 5  # unlink, link, half a write, fsync, replace
    assert found == [2] * (last) + [3]


def test_a_torn_or_damaged_file_is_never_loaded(tmp_path):
    """Cut anywhere, or with one byte or one page of its content lost: the one before it is read."""
    path, random_bytes = tmp_path / "c.pt", random.Random(0)
    lab.save_checkpoint(path, content(1))
    lab.save_checkpoint(path, content(2))
    good = path.read_bytes()
    numbers = good.index(torch.full((300,), 2.0).numpy().tobytes())
    damaged = [good[: random_bytes.randrange(len(good))] for _ in range(20)]
    damaged += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(numbers, numbers + 1200, 100)]
    damaged.append(good[:numbers] + bytes(1200) + good[numbers + 1200 :])
    for bad in damaged:
        path.write_bytes(bad)
        data = lab.load_checkpoint(path, CPU)
        assert data["step"] == 1
        assert whole(data)


@contextmanager
def smaller_files(limit):
    """Files cannot grow beyond `limit` bytes, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_said_and_the_old_checkpoint_stays(tmp_path):
    path = tmp_path / "c.pt"
    lab.save_checkpoint(path, content(1))
    path.with_name("c.pt.partial").symlink_to("/dev/full")
    with pytest.raises(lab.UserError, match=r"cannot write .*c\.pt: the disk is full; what was there is intact"):
        lab.save_checkpoint(path, content(2))
    assert lab.load_checkpoint(path, CPU)["step"] == 1
    assert not list(tmp_path.glob("*.partial"))
    lab.save_checkpoint(path, content(3))
    assert lab.load_checkpoint(path, CPU)["step"] == 3


def test_a_file_that_may_not_grow_is_said_and_the_old_checkpoint_stays(tmp_path):
    path = tmp_path / "c.pt"
    lab.save_checkpoint(path, content(1))
    with smaller_files(2000), pytest.raises(lab.UserError, match="File too large; what was there is intact") as error:
        lab.save_checkpoint(path, content(2))
    assert error.value.__cause__.errno == errno.EFBIG
    assert lab.load_checkpoint(path, CPU)["step"] == 1
    assert not list(tmp_path.glob("*.partial"))


# ---- the command


def command(*arguments):
    """Exit status of `normgeo ARGUMENTS`, saved after every step, in this process."""
    with (
        mock.patch.object(train_module, "SECONDS_BETWEEN_SAVES", 0.0),
        mock.patch.object(sys, "argv", ["normgeo", *map(str, arguments)]),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    return stop.value.code


def in_a_child(*arguments, log):
    """The same in a process of its own, which can be killed."""

    def run():
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        torch.set_num_threads(1)
        os._exit(command(*arguments))

    process = get_context("fork").Process(target=run)
    process.start()
    return process


def curves(folder):
    return [(c["train"], c["validation"]) for c in json.loads((folder / "results.json").read_text())["curves"]]


def saved_at(folder):
    path = folder / "checkpoint.pt"
    return path.stat().st_mtime_ns if path.exists() else None


def killed(tmp_path, steps, compare, times, longest):
    """A run that is killed so many times, each time at a random moment: at which step each new run began."""
    text, chance = tmp_path / "fox.txt", random.Random(0)
    text.write_bytes(TEXT)
    straight, broken, log = tmp_path / "straight", tmp_path / "broken", tmp_path / "log"
    run = ["train", "--text", text, *SIZES, "--steps", steps, "--compare", compare]
    uninterrupted = in_a_child(*run, "--out", straight, log=log)
    uninterrupted.join()
    assert uninterrupted.exitcode == 0, log.read_text()
    seen = [(0, 0)]
    for kill in range(times + 1):
        before = saved_at(broken)
        if broken.exists() and before is None:
            broken.rename(tmp_path / f"killed before it saved, {kill}")
        going_on = ["train", "--resume", "--out", broken]
        process = in_a_child(*([*run, "--out", broken] if before is None else going_on), log=log)
        if kill < times:
            if chance.random() < 0.8:  # else in the first moments, before there is anything new
                while process.is_alive() and saved_at(broken) == before:
                    time.sleep(0.001)
            process.join(chance.uniform(0, longest))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        if saved_at(broken):
            data = lab.load_checkpoint(broken / "checkpoint.pt", CPU)
            seen.append((len(data["curves"]), data["running"]["step"] if data["running"] else 0))
            assert seen[-1] >= seen[-2], "a run went back"
    assert curves(broken) == curves(straight)
    return seen


def test_a_run_that_is_killed_goes_on_to_the_bit(tmp_path):
    assert len(killed(tmp_path, steps=12, compare="none", times=3, longest=0.1)) > 1


@pytest.mark.slow
def test_a_run_that_is_killed_a_hundred_times_goes_on_to_the_bit(tmp_path):
    seen = killed(tmp_path, steps=1000, compare="adamw", times=100, longest=0.2)
    print(f"{len(seen) - 1} kills, {len(set(seen)) - 1} different steps to go on from")
    assert len(set(seen)) > 20


def test_a_run_whose_disk_fills_up_says_so_and_goes_on_later(tmp_path, capsys, monkeypatch):
    text = tmp_path / "fox.txt"
    text.write_bytes(TEXT)
    run = ["train", "--text", text, *SIZES, "--steps", 20, "--compare", "none"]
    assert command(*run, "--out", tmp_path / "straight") == 0
    save, saves = lab.save_checkpoint, iter(range(1000))

    def until_full(path, data):
        if next(saves) < 7:
            save(path, data)
        else:
            with smaller_files(3000):
                save(path, data)

    capsys.readouterr()
    monkeypatch.setattr(lab, "save_checkpoint", until_full)
    assert command(*run, "--out", tmp_path / "broken") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "what was there is intact. Free space or choose another --out" in error
    monkeypatch.setattr(lab, "save_checkpoint", save)
    assert lab.load_checkpoint(tmp_path / "broken" / "checkpoint.pt", CPU)["running"]["step"] == 7
    assert command("train", "--resume", "--out", tmp_path / "broken") == 0
    assert curves(tmp_path / "broken") == curves(tmp_path / "straight")
