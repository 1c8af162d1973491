"""What the ranks of test_sharding.py do: the same network on one rank and sharded, step by step."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
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


def placed(model: nn.Module, mesh: Any, choose: Callable[[str, Tensor], Sequence[Any]]) -> nn.Module:
    """The model with DTensors for parameters."""
    for name, p in list(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        sharded = distribute_tensor(p.detach(), mesh, choose(name, p))
        setattr(module, name.rpartition(".")[2], nn.Parameter(sharded))
    return model


def any_placement(seed: int, mesh: Any) -> Callable[[str, Tensor], list[Any]]:
    """Each parameter cut along some axes, or none."""
    draw = random.Random(seed)

    def choose(name: str, p: Tensor) -> list[Any]:
        return [draw.choice([Replicate(), *map(Shard, range(p.ndim))]) for _ in range(mesh.ndim)]

    return choose


def follow(
    model: nn.Module, opt: Any, twin: nn.Module, alone: Any, steps: range, spoil: Callable[..., None] | None = None
) -> None:
    """Steps of both with the gradients of the twin, which every rank computes by itself."""
    for step in steps:

        def run(step: int = step, whose: Any = None) -> Tensor:
            if whose is opt:
                for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                    q.data.copy_(whole(p))
            alone.zero_grad()
            loss = loss_of(twin, step)
            loss.backward()
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                p.grad = None if q.grad is None else _like(q.grad, p)
            return loss.detach()

        run()
        if spoil is not None:
            spoil(step, model, twin)
        with mock.patch("torch.distributed.is_initialized", return_value=False):
            alone.step(lambda: loss_of(twin, step).detach())
        opt.step(lambda: loss_of(twin, step).detach())


def _like(grad: Tensor, p: Tensor) -> Tensor:
    if not hasattr(p, "placements"):
        return grad.clone()
    return distribute_tensor(grad, p.device_mesh, p.placements)


def pair(mesh: Any, seed: int, choose: Any = None, model: Any = None, **options: Any) -> tuple[Any, ...]:
    model = model or network()
    twin = copy.deepcopy(model)
    plan = ng.compile(twin, (batch(0)[0],))
    alone = plan.optimizer(twin, lr=0.1, **options)
    model = placed(model, mesh, choose or any_placement(seed, mesh))
    return model, plan.optimizer(model, lr=0.1, **options), twin, alone


# ---- jobs


def two_ranks(rank: int) -> None:
    world = distributed.get_world_size()
    warnings.simplefilter("ignore", UserWarning)  # torch's own, about views
    # Batches of a rank's own, added up as a single process adds them up: equal to the bit over 50 steps.
    assert beside(fsdp, rank, world) == 0
    assert beside(ddp, rank, world, steps=10, ranks=distributed.group.WORLD) == 0
    mesh = init_device_mesh("cpu", (world,))
    model, opt, twin, alone = pair(mesh, 1, constraint=ng.constraints.Decay(0.1))
    follow(model, opt, twin, alone, range(4))
    assert apart(model, twin) == 0
    one_bad_shard(model, opt, twin, alone, rank)
    losses_and_refusals(rank, world)


def one_bad_shard(model: nn.Module, opt: Any, twin: nn.Module, alone: Any, rank: int) -> None:
    """NaN in a shard that one rank has: no rank moves, all say so, and by the same name."""

    def spoil(step: int, model: nn.Module, twin: nn.Module) -> None:
        twin.up.weight.grad[-1] = torch.nan
        model.up.weight.grad = _like(twin.up.weight.grad, model.up.weight)

    before, state = weights(model), whole(opt.state[model.up.weight]["rule.momentum"]).clone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        follow(model, opt, twin, alone, range(4, 5), spoil)
    assert sum("the gradient of up.weight: this step was skipped" in str(w.message) for w in caught) == 2
    assert all(torch.equal(w, before[name]) for name, w in weights(model).items())
    assert torch.equal(whole(opt.state[model.up.weight]["rule.momentum"]), state)
    assert opt.skipped == 1
    follow(model, opt, twin, alone, range(5, 7))
    assert apart(model, twin) == 0
    moved = {line.split()[0]: line.split()[4] for line in opt.describe().splitlines()[1:]}
    assert set(moved.values()) == {"6"}, moved


def losses_and_refusals(rank: int, world: int) -> None:
    model = ddp(network())
    plan = ng.compile(network(), (batch(0)[0],))
    opt = plan.optimizer(model, step=ng.steps.Polyak(most=0.5), rule=ng.rules.Plain())
    refused(lambda: train(model, opt, range(1), rank, world, True), "Polyak needs the loss, and every rank has its own")
    curvature = plan.optimizer(model, step=ng.steps.Cauchy(), ranks=distributed.group.WORLD)
    refused(lambda: train(model, curvature, range(1), rank, world, True), "needs second derivatives")
    opt = plan.optimizer(model, step=ng.steps.Polyak(most=0.5), rule=ng.rules.Plain(), ranks=distributed.group.WORLD)
    train(model, opt, range(3), rank, world, True)
    same_everywhere(model)


def refused(act: Callable[[], Any], why: str) -> None:
    try:
        act()
    except ValueError as error:
        assert why in str(error), error
    else:
        raise AssertionError(f"not refused: {why}")


def same_everywhere(model: nn.Module) -> None:
    for name, w in weights(model).items():
        others = [torch.empty_like(w) for _ in range(distributed.get_world_size())]
        distributed.all_gather(others, w)
        assert all(torch.equal(w, other) for other in others), name
