"""What ranks send each other in a step of the optimizer, counted, beside the least that whole matrices need."""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.multiprocessing import start_processes
from torch.utils._python_dispatch import TorchDispatchMode

import normgeo as ng
from normgeo.lab.errors import UserError
from normgeo.optim.layout import Box, boxes
from normgeo.optim.shards import costly

__all__ = ["Traffic", "traffic"]

SECONDS = 600.0

Placement = Callable[[str, Tensor], Sequence[Any]]


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends to others in one step: the mean over ranks, unless it says otherwise."""

    way: str
    """how the weights lie on the ranks"""
    ranks: int
    sent: float
    """counted"""
    most: float
    """of the busiest rank"""
    least: float
    """what a rank has to send at the least if every whole matrix is dualized on one rank"""
    gathered: float
    """what it would send if all ranks gathered all matrices"""
    calls: int
    """collectives in a step"""


def traffic(width: int, depth: int, ranks: int, seconds: float = SECONDS) -> list[Traffic]:
    """Optimizer steps of a GPT on `ranks` processes with gloo, for each way to lay its weights."""
    if ranks < 2:
        raise UserError(f"--ranks: at least 2, got {ranks}")
    with tempfile.TemporaryDirectory() as folder:
        workers = start_processes(_work, (folder, width, depth, ranks, seconds), nprocs=ranks, join=False)
        end = time.monotonic() + seconds
        try:
            while not workers.join(timeout=1):
                if time.monotonic() > end:
                    raise UserError(f"{ranks} processes were not done after {seconds:.0f} s; try fewer --ranks")
        finally:
            for process in workers.processes:
                process.kill()
        return [Traffic(**each) for each in json.loads(Path(folder, "found").read_text(encoding="utf-8"))]


def _work(rank: int, folder: str, width: int, depth: int, ranks: int, seconds: float) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=seconds)
    meet = f"file://{folder}/meet"
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=ranks, timeout=limit)
    found = [asdict(_count(*way, width, depth)) for way in _ways(ranks)]
    if rank == 0:
        Path(folder, "found").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


def _ways(ranks: int) -> Iterator[tuple[str, DeviceMesh, Placement | None]]:
    line = init_device_mesh("cpu", (ranks,))
    yield "copies, ranks=", line, None
    yield "fully_shard", line, lambda name, p: [Shard(0)]
    yield "tensor parallel", line, lambda name, p: [_tensor_parallel(name, p)]
    if ranks % 2 == 0 and ranks > 2:
        grid = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("data", "tensor"))
        yield "both", grid, lambda name, p: [Shard(0), _tensor_parallel(name, p)]
        yield "replicas of shards", grid, lambda name, p: [Replicate(), Shard(0)]


def _tensor_parallel(name: str, p: Tensor) -> Any:
    """Rows of what widens, columns of what comes back to the stream."""
    if p.ndim < 2:
        return Replicate()
    return Shard(1) if name.endswith(("out.weight", "down.weight")) else Shard(0)


def _count(way: str, mesh: DeviceMesh, place: Placement | None, width: int, depth: int) -> Traffic:
    torch.manual_seed(0)
    model = ng.nn.GPT(vocab_size=65, context=64, width=width, heads=max(1, width // 32), depth=depth)
    plan = ng.compile(model)
    ranks = mesh.size()
    least, gathered = _needed(plan, dict(model.named_parameters()), mesh, place)
    if place is not None:
        _lay(model, mesh, place)
    opt = plan.optimizer(model, ranks=distributed.group.WORLD if place is None else None)
    for name, p in model.named_parameters():
        g = torch.randn(p.shape)
        p.grad = g if place is None else distribute_tensor(g, mesh, place(name, g))
    opt.step()
    with _counted() as calls:
        opt.step()
    sent = torch.tensor([sum(calls)], dtype=torch.float64)
    all_sent = [torch.empty_like(sent) for _ in range(ranks)]
    distributed.all_gather(all_sent, sent)
    each = [float(x) for x in all_sent]
    return Traffic(way, ranks, sum(each) / ranks, max(each), least, gathered, len(calls))


def _lay(model: nn.Module, mesh: DeviceMesh, place: Placement) -> None:
    for name, p in list(model.named_parameters()):
        owner, _, last = name.rpartition(".")
        placed = nn.Parameter(distribute_tensor(p.detach(), mesh, place(name, p)))
        setattr(model.get_submodule(owner), last, placed)


def _needed(plan: ng.Plan, params: dict[str, Tensor], mesh: DeviceMesh, place: Placement | None) -> tuple[float, float]:
    """Bytes per rank: an owner lacks all but its largest shard, and all but the owner's shards are wanted elsewhere."""
    least = gathered = 0.0
    for leaf in plan.leaves:
        p = params[leaf.parameter]
        placements: Sequence[Any] = [Replicate()] * mesh.ndim if place is None else place(leaf.parameter, p)
        split = [each.dim for each in placements if each.is_shard()]
        alone = leaf.norm.entrywise or (split and max(split) < leaf.norm.independent)
        if alone or not (split or costly(leaf.norm)):
            continue
        parts = boxes(tuple(p.shape), mesh.mesh.shape, placements)
        distinct: dict[Box, int] = {}
        for box in parts:
            distinct[box] = distinct.get(box, 0) + 1
        biggest = max(box.entries for box in distinct)
        missing = sum(box.entries for box in distinct) - biggest
        wanted = sum(box.entries for box in parts) - biggest
        least += 4 * (missing + wanted) / mesh.size()
        gathered += 4 * sum(p.numel() - box.entries for box in parts) / mesh.size()
    return least, gathered


@contextmanager
def _counted() -> Iterator[list[float]]:
    """The bytes that this rank sends in each collective."""
    calls: list[float] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(t is DTensor for t in types):
                return NotImplemented
            if func.namespace in ("c10d", "_c10d_functional", "_dtensor"):
                calls.append(_bytes(func.__name__.partition(".")[0], args))
            return func(*args, **(kwargs or {}))

    with Counting():
        yield calls


def _bytes(name: str, args: Sequence[Any]) -> float:
    me, ranks = distributed.get_rank(), distributed.get_world_size()
    if name == "alltoall_base_":
        return sum(n for rank, n in enumerate(args[4]) if rank != me) * args[1].element_size()
    if name == "allreduce_":  # around a ring
        return sum(2 * (ranks - 1) / ranks * x.numel() * x.element_size() for x in args[0])
    if name == "all_gather_into_tensor":
        return (args[1] - 1) * args[0].numel() * args[0].element_size()
    raise NotImplementedError(f"a step of the optimizer called {name}, which is not counted")
