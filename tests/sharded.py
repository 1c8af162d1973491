"""What the ranks of test_sharding.py do: the same network on one rank and sharded, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import normgeo as ng

STEPS = 50
WORDS = 61


class Net(nn.Module):
    """An embedding, biases, a gain, matrices tall and wide, two of one shape; sizes that no number of ranks divides."""

    def __init__(self, width: int = 10, hidden: int = 14, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.up = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.middle = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.down = nn.Linear(hidden, width, bias=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.middle(self.norm(self.up(self.embed(x))))))


def network(seed: int = 0, **sizes: int) -> Net:
    torch.manual_seed(seed)
    return Net(**sizes)


def batch(step: int, size: int = 48, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randint(WORDS, (size, 5), generator=generator)
    return x, torch.randint(classes, (size, 5), generator=generator)


def loss_of(model: nn.Module, step: int, rank: int = 0, world: int = 1) -> Tensor:
    """Of this rank's share of the batch."""
    x, y = (part.chunk(world)[rank] for part in batch(step))
    return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())


def train(model: nn.Module, opt: Any, steps: range, rank: int = 0, world: int = 1, closure: bool = False) -> None:
    """Steps of one of `world` ranks with its share of the batches; rank = -1 does the work of all, one share at a time."""
    for step in steps:

        def run(step: int = step) -> Tensor:
            opt.zero_grad()
            losses = [loss_of(model, step, r, world) / len(shares) for r in shares]
            for loss in losses:
                loss.backward()
            return sum(losses)

        shares = range(world) if rank < 0 else [rank]
        if closure:
            opt.step(run)
        else:
            run()
            opt.step()


def whole(p: Tensor) -> Tensor:
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): whole(p).clone() for name, p in model.named_parameters()}


def apart(model: nn.Module, twin: nn.Module) -> float:
    """The largest difference of two networks."""
    here, there = weights(model), weights(twin)
    assert here.keys() == there.keys()
    return max((here[name] - there[name]).abs().max().item() for name in here)


def beside(
    shard: Callable[[nn.Module], nn.Module],
    rank: int,
    world: int,
    *,
    steps: int = STEPS,
    split: bool = True,
    closure: bool = False,
    ranks: Any = None,
    **options: Any,
) -> float:
    """How far a sharded network is from one that a single process trains on the same batches. split: every rank has its
    share of a batch, else all of it."""
    model = network()
    twin = copy.deepcopy(model)
    plan = ng.compile(twin, (batch(0)[0],))
    alone = plan.optimizer(twin, lr=0.1, **options)
    sharded = shard(model)
    opt = plan.optimizer(sharded, lr=0.1, ranks=ranks, **options)
    part = (rank, world) if split else (0, 1)
    train(sharded, opt, range(steps), *part, closure)
    with mock.patch("torch.distributed.is_initialized", return_value=False):
        train(twin, alone, range(steps), -1, part[1], closure)
    return apart(sharded, twin)


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp(model: nn.Module, mesh: Any = None, **options: Any) -> nn.Module:
    mesh = mesh or init_device_mesh("cpu", (distributed.get_world_size(),))
    for part in (model.middle, model.up):
        fully_shard(part, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)
