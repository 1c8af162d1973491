"""How long something takes, on the host or on a device that works behind it."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from normgeo.linalg import TIGHT

__all__ = ["Rates", "Step", "left_out", "machine_rates", "median_seconds", "seconds_of"]

Step = Callable[[], Any]


@dataclass(frozen=True)
class Rates:
    """What the machine does with nothing else in the way, measured now."""

    gflops: float
    """of products of large square matrices in the work dtype of `TIGHT`, 1e9 a second"""
    gbytes: float
    """read and written by a copy of 64 MB, on a device of 1 GB, 1e9 a second"""


def machine_rates(device: torch.device) -> Rates:
    """Medians of a few runs; on CPU with the threads that torch has."""
    side, entries = (512, 2**24) if device.type == "cpu" else (8192, 2**28)  # more than caches hold
    x = torch.randn(side, side, device=device)
    x = x.to(TIGHT.work(x))
    one, other = (torch.randn(entries, device=device) for _ in range(2))
    multiplied, copied = (median_seconds(run, device) for run in (lambda: torch.mm(x, x), lambda: one.copy_(other)))
    return Rates(2 * side**3 / multiplied / 1e9, 2 * one.nbytes / copied / 1e9)


def seconds_of(step: Step, device: torch.device, times: int = 1) -> tuple[float, float]:
    """Until the host is free again, and until all is done. Of the one thread that works, where it is one: what others do on
    the machine then counts less."""
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(times):
        step()
    free = clock() - start
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return free, clock() - start


def median_seconds(run: Step, device: torch.device, rounds: int = 9) -> float:
    """Median seconds of one of many runs in a row: on a device of about 20 ms together, so that neither its clocks nor the
    way to it count."""
    run()
    once = seconds_of(run, device)[1]
    times = 1 if device.type == "cpu" else max(3, min(1000, int(0.02 / once)))
    return statistics.median(seconds_of(run, device, times)[1] / times for _ in range(rounds))


@contextmanager
def left_out(name: str, unless: str = "") -> Iterator[None]:
    """What does not work here costs its own line only."""
    try:
        yield
    except Exception as error:
        if name == unless:
            raise
        line = (str(error).splitlines() or [""])[0]
        warnings.warn(f"{name} is left out: {type(error).__name__}: {line}", RuntimeWarning, stacklevel=2)
