"""What the ranks of test_sharding.py do: the same network on one rank and sharded, step by step."""

from __future__ import annotations

import copy
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import normgeo as ng
from normgeo.optim.layout import box_here

STEPS = 50
FULL = 12
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
    shares = range(world) if rank < 0 else [rank]
    for step in steps:

        def run(step: int = step) -> Tensor:
            opt.zero_grad()
            losses = [loss_of(model, step, r, world) / len(shares) for r in shares]
            for loss in losses:
                loss.backward()
            return sum(losses)

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
        alone.zero_grad()
        loss = loss_of(twin, step)
        loss.backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = _like(q.grad, p)
        if spoil is not None:
            spoil(step, model, twin)
        with mock.patch("torch.distributed.is_initialized", return_value=False):
            alone.step(loss.detach)
        opt.step(loss.detach)


def _like(grad: Tensor, p: Tensor) -> Tensor:
    if not hasattr(p, "placements"):
        return grad.clone()
    if not any(hasattr(each, "split_factor") for each in p.placements):
        return distribute_tensor(grad, p.device_mesh, p.placements)
    mine = box_here(p).of(grad).clone()  # distribute_tensor does not make strided shards
    return DTensor.from_local(mine, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())


def pair(
    mesh: Any, seed: int, choose: Any = None, model: Any = None, norms: Any = None, **options: Any
) -> tuple[Any, ...]:
    model = model or network()
    twin = copy.deepcopy(model)
    plan = ng.compile(twin, (batch(0)[0],), norms=norms)
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
    model, opt, twin, alone = pair(
        mesh, 2, norms={name: ng.norms.Frobenius() for name in ("up.weight", "middle.*.weight")}
    )
    follow(model, opt, twin, alone, range(4))
    assert apart(model, twin) <= 1e-6
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
    with pytest.raises(ValueError, match=why):
        act()


def same_everywhere(model: nn.Module) -> None:
    for name, w in weights(model).items():
        others = [torch.empty_like(w) for _ in range(distributed.get_world_size())]
        distributed.all_gather(others, w)
        assert all(torch.equal(w, other) for other in others), name


def half_sharded(model: nn.Module, mesh: Any) -> nn.Module:
    """Shards and plain parameters side by side."""
    return fully_shard(model, mesh=mesh, ignored_params={model.up.weight, model.norm.weight})


def trajectories(rank: int) -> None:
    world = distributed.get_world_size()
    warnings.simplefilter("ignore", UserWarning)
    everyone = distributed.group.WORLD
    same = {"split": world == 2}  # two halves of a batch add up in one way only
    assert beside(ddp, rank, world, steps=10, **same) == 0
    assert beside(ddp, rank, world, ranks=everyone, **same) == 0
    assert beside(ddp, rank, world, ranks=everyone, constraint=ng.constraints.Sphere(1.0), steps=10, **same) == 0
    assert beside(fsdp, rank, world, constraint=ng.constraints.Decay(0.1), **same) == 0
    assert beside(lambda m: fsdp(m, reshard_after_forward=False), rank, world, precision="fast", steps=10, **same) == 0
    polyak = {"step": ng.steps.Polyak(most=0.5), "closure": True, "steps": 10}
    assert beside(fsdp, rank, world, **polyak, **same) <= 1e-6
    assert beside(ddp, rank, world, ranks=everyone, **polyak, **same) <= 1e-6
    assert beside(fsdp, rank, world, step=ng.steps.Armijo(), closure=True, steps=8, **same) <= 1e-6
    if world == 4:  # replicas of shards
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        assert beside(lambda m: fsdp(m, mesh), rank, world, split=False, steps=10) == 0
        assert beside(lambda m: half_sharded(m, mesh["shard"]), rank, world, split=False, steps=10) == 0


def parts_and_placements(rank: int) -> None:
    world = distributed.get_world_size()
    meshes = [init_device_mesh("cpu", (world,))]
    if world == 4:
        meshes.append(init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b")))
    c, r, s, b = ng.constraints, ng.rules, ng.steps, ng.budgets
    choices: list[dict[str, Any]] = [
        {},
        {"rule": r.HeavyBall(0.8, nesterov=True), "constraint": c.L2Penalty(0.1)},
        {"rule": r.TunedMomentum(every=2)},
        {"constraint": c.CorrectedDecay(0.1), "iterate": ng.optim.EMA()},
        {"constraint": c.ScheduledDecay(0.1), "iterate": ng.optim.BEMA()},
        {"constraint": c.FrankWolfe(2.0), "iterate": ng.optim.ScheduleFree(), "rule": r.Plain()},
        {"constraint": c.Ball(1.0)},
        {"constraint": c.HardCap(1.0)},
        {"constraint": c.Stiefel()},
        {"constraint": c.RowCap(0.5)},
        {"step": s.Linear(9)},
        {"step": s.Warmup(3) * s.Polyak(most=0.5)},
        {"step": s.Escape()},
        {"step": s.Prodigy()},
        {"step": s.MetaOptimize()},
        {"direction": ng.optim.Operate(b.DataMetric(power=1.5))},
        {"direction": ng.optim.Filter(b.OnePole(b.DynamicDiagonal()), lags=4), "rule": r.Plain()},
        {"nonfinite": "zero"},
    ]
    for seed, options in enumerate(choices):
        for mesh in meshes:
            model, opt, twin, alone = pair(mesh, seed, **options)
            follow(model, opt, twin, alone, range(6))
            found = apart(model, twin)
            if rank == 0:
                print(f"{options}: {found:.1e}", flush=True)
            assert found <= 1e-6, (options, mesh, found)
            with opt.averaged(), alone.averaged():
                assert apart(model, twin) <= 1e-6, options
    views(meshes)


def views(meshes: Sequence[Any]) -> None:
    """Leaves that are not their parameter: transposed, in blocks, kernels."""

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, 12)
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.kernel = nn.Conv1d(12, 6, 3, padding=1)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            x = x + self.attention(x, x, x, need_weights=False)[0]
            return self.head(self.kernel(x.mT).mT)

    for seed, mesh in enumerate(meshes * 2):
        torch.manual_seed(0)
        model, opt, twin, alone = pair(mesh, seed, model=Fused())
        follow(model, opt, twin, alone, range(4))
        assert apart(model, twin) == 0


def tensor_parallel(rank: int) -> None:
    """Real column- and row-parallel layers; gradients follow the twin's, since sums over ranks round in another order."""
    warnings.simplefilter("ignore", UserWarning)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    how = {
        "embed": RowwiseParallel(input_layouts=Replicate()),
        "middle.0": ColwiseParallel(),
        "middle.2": RowwiseParallel(),
        "down": ColwiseParallel(output_layouts=Replicate()),
    }
    for both in (False, True):
        for trained in (False, True):
            model = network()
            twin = copy.deepcopy(model).double() if trained else copy.deepcopy(model)
            model = model.double() if trained else model
            plan = ng.compile(twin, (batch(0)[0],))
            alone = plan.optimizer(twin, lr=0.1)
            parallelize_module(model, mesh["tensor"], how)
            if both:
                fsdp(model, mesh["data"])
            opt = plan.optimizer(model, lr=0.1)
            if trained:  # in float64, the network's own gradients
                train(model, opt, range(STEPS))
                train(twin, alone, range(STEPS))
            else:
                follow(model, opt, twin, alone, range(STEPS))
            found = apart(model, twin)
            if rank == 0:
                print(f"2-D {both}, own gradients {trained}: {found:.1e}", flush=True)
            assert found <= (1e-9 if trained else 0)


SETTINGS: list[dict[str, Any]] = [
    {"constraint": ng.constraints.Decay(0.1), "iterate": ng.optim.EMA()},
    {"constraint": ng.constraints.ScheduledDecay(0.1), "rule": ng.rules.TunedMomentum(every=2)},  # seen whole
]


def resume(rank: int, folder: str, first: int, last: int, load: bool = True) -> None:
    """Steps first to last - 1 from a checkpoint of any number of ranks; then a checkpoint, and a look at the twin."""
    world = distributed.get_world_size()
    warnings.simplefilter("ignore", UserWarning)
    warnings.simplefilter("ignore", FutureWarning)
    for number, options in enumerate(SETTINGS):
        model = network()
        twin = copy.deepcopy(model)
        plan = ng.compile(twin, (batch(0)[0],))
        alone = plan.optimizer(twin, lr=0.1, **options)
        fsdp(model)
        opt = plan.optimizer(model, lr=0.1, **options)
        where = f"{folder}/{number}"
        if load:
            model_state, optim_state = get_state_dict(model, opt)
            checkpoint.load({"model": model_state, "optim": optim_state}, checkpoint_id=f"{where}/{first}")
            set_state_dict(model, opt, model_state_dict=model_state, optim_state_dict=optim_state)
        train(model, opt, range(first, last))
        with mock.patch("torch.distributed.is_initialized", return_value=False):
            train(twin, alone, range(last))
        assert apart(model, twin) == 0, (options, world)
        model_state, optim_state = get_state_dict(model, opt)
        checkpoint.save({"model": model_state, "optim": optim_state}, checkpoint_id=f"{where}/{last}")
        if last == FULL:
            full_state(model, opt, plan, options, rank)


def full_state(model: nn.Module, opt: Any, plan: Any, options: dict[str, Any], rank: int) -> None:
    """All of the state on rank 0, and from there to a network in one process and back to ranks."""
    everything = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model_state, optim_state = copy.deepcopy(get_state_dict(model, opt, options=everything))  # one rank's is alive
    other = fsdp(network(1))
    resumed = plan.optimizer(other, lr=0.1, **options)
    spread = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    both = copy.deepcopy({"model_state_dict": model_state, "optim_state_dict": optim_state})  # torch puts shards there
    # Not set_state_dict, which on ranks that have nothing leaves the model out.
    set_model_state_dict(other, both["model_state_dict"], options=spread)
    set_optimizer_state_dict(other, resumed, both["optim_state_dict"], options=spread)
    train(model, opt, range(FULL, FULL + 3))
    train(other, resumed, range(FULL, FULL + 3))
    assert apart(other, model) == 0
    if rank == 0:
        one = network(1)
        one.load_state_dict(model_state)
        alone = plan.optimizer(one, lr=0.1, **options)
        with mock.patch("torch.distributed.is_initialized", return_value=False):
            set_optimizer_state_dict(one, alone, optim_state)
            train(one, alone, range(FULL, FULL + 3))
    trained = weights(model)
    if rank == 0:
        assert all(torch.equal(w, trained[name]) for name, w in weights(one).items())


def killed(rank: int, report: str) -> None:
    """Rank 1 dies between two steps; rank 0 says in `report` what it saw."""
    mesh = init_device_mesh("cpu", (2,))
    model, opt, twin, alone = pair(mesh, 0, choose=lambda name, p: [Shard(0)])
    follow(model, opt, twin, alone, range(2))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        opt.step()
    except RuntimeError as error:
        Path(report).write_text(str(error), encoding="utf-8")
        os._exit(3)


@contextmanager
def fsdp_of_accelerate(rank: int) -> Iterator[None]:
    """accelerate 1.15 offers FSDP to accelerators alone, although fully_shard is at home on the CPU too."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, DistributedType

    world = str(distributed.get_world_size())
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}  # asked for, though the ranks have met already
    made = AcceleratorState.__init__

    def make(self: AcceleratorState, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)

    with mock.patch.object(AcceleratorState, "__init__", make):
        yield


def accelerated(rank: int) -> None:
    """accelerate shards the model after the optimizer is made, and puts shards in the place of its parameters."""
    from accelerate import Accelerator

    world = distributed.get_world_size()
    warnings.simplefilter("ignore")
    model = network()
    twin = copy.deepcopy(model)
    plan = ng.compile(twin, (batch(0)[0],))
    alone = plan.optimizer(twin, lr=0.1)
    with fsdp_of_accelerate(rank):
        accelerator = Accelerator(cpu=True)
        model, opt = accelerator.prepare(model, plan.optimizer(model, lr=0.1))
        for step in range(5):
            opt.zero_grad()
            accelerator.backward(loss_of(model, step, rank, world))
            opt.step()
    with mock.patch("torch.distributed.is_initialized", return_value=False):
        train(twin, alone, range(5), -1, world)
    assert all(hasattr(p, "placements") for p in model.parameters())
    assert apart(model, twin) == 0


def trained_by_transformers(rank: int, folder: str) -> None:
    """transformers.Trainer makes the optimizer, then accelerate shards the model."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=WORDS, num_key_value_heads=1, tie_word_embeddings=False, **sizes)
    model = LlamaForCausalLM(config)
    twin = copy.deepcopy(model)
    ids = torch.randint(WORDS, (2, 12), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids] * 4  # each rank has the same, in any order
    plan = ng.compile(model, example_kwargs={"input_ids": ids})

    settings = TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        max_steps=4,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    with fsdp_of_accelerate(rank):
        trainer = Trainer(model, settings, train_dataset=data, optimizer_cls_and_kwargs=plan.for_trainer(lr=0.1))
        trainer.train()
    trained = weights(trainer.model)
    assert all(hasattr(p, "placements") for p in trainer.model.parameters())
    same_everywhere(trainer.model)
    with mock.patch("torch.distributed.is_initialized", return_value=False):
        alone = plan.optimizer(twin, lr=0.1)
        for _ in range(4):
            alone.zero_grad()
            twin(input_ids=ids, labels=ids).loss.backward()
            alone.step()
    assert trained.keys() == dict(twin.named_parameters()).keys()
    far = max((trained[name] - w).abs().max().item() for name, w in weights(twin).items())
    assert far <= 1e-4, far  # batches of other rows: sums in another order
