"""Several processes on one machine: gloo, one thread each, a file to meet at, and a hard limit of time."""

from __future__ import annotations

import datetime
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing import start_processes

PRELOAD = ["normgeo", "torch.distributed.tensor", "torch.distributed.fsdp"]


def on_ranks(world: int, job: Callable[..., None], *args: Any, timeout: float = 240) -> None:
    """job(rank, *args) on each of `world` ranks; an exception in one of them, or the end of the time, ends all."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder, "meet")
        workers = start_processes(
            _work, (world, str(where), job, args, timeout), nprocs=world, join=False, start_method="forkserver"
        )
        end = time.monotonic() + timeout
        try:
            while not workers.join(timeout=1):
                assert time.monotonic() < end, f"{job.__name__} on {world} ranks took more than {timeout} s"
        finally:
            for process in workers.processes:
                process.kill()


def until_all_end(world: int, job: Callable[..., None], *args: Any, timeout: float = 240) -> list[int | None]:
    """The exit codes of job(rank, *args), when one rank's end must not end the others."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        common = (world, str(Path(folder, "meet")), job, args, timeout)
        workers = [context.Process(target=_work, args=(rank, *common)) for rank in range(world)]
        end = time.monotonic() + timeout
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(max(0, end - time.monotonic()))
            return [worker.exitcode for worker in workers]
        finally:
            for worker in workers:
                worker.kill()


def _work(rank: int, world: int, where: str, job: Callable[..., None], args: tuple[Any, ...], timeout: float) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=timeout)
    distributed.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=world, timeout=limit)
    try:
        job(rank, *args)
    finally:
        distributed.destroy_process_group()
