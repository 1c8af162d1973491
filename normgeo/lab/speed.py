"""How long the step of an optimizer takes on the weights of a GPT, beside others and beside what the machine allows."""

from __future__ import annotations

import copy
import gc
import importlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import normgeo as ng
from normgeo.lab.errors import UserError
from normgeo.lab.speed_clock import Step, left_out, median_seconds, seconds_of
from normgeo.lab.speed_polars import POLARS, REFERENCE, Iteration, flops

__all__ = ["Timing", "by_width", "time_entrywise", "time_steps", "time_whole", "training_share"]

ADAMW = "torch AdamW, fused"
OTHERS = {"heavyball": "Muon", "dion": "Muon", "muon": "SingleDeviceMuon"}
"""packages that are measured where they are installed, and their optimizer for matrices"""
SECONDS_PER_WIDTH, FEWEST, MOST = 12.0, 5, 60


@dataclass(frozen=True)
class Timing:
    """One optimizer on the matrices of one GPT; times in milliseconds, ratios to torch.optim.Muon in the same round."""

    name: str
    width: int
    matrices: int
    milliseconds: tuple[float, float, float]
    """first quartile, median, third quartile"""
    ratio: tuple[float, float, float]
    gflops: float | None
    """arithmetic of the polar factors, 1e9 a second, at the median"""
    gbytes: float
    """what has to be read and written at least, 1e9 bytes a second, at the median"""
    enqueuing: float | None = None
    """median milliseconds after which the host was free again, on a device; of that the step takes all where matrices are
    small"""


def time_steps(
    width: int, depth: int, device: torch.device, seconds: float = SECONDS_PER_WIDTH, only: Sequence[str] = ()
) -> list[Timing]:
    """Steps of all optimizers in turn, in one process, on copies of the same matrices and gradients. only: torch Muon, and
    those with one of these words in their names."""
    model = _gpt(width, depth, device)
    shapes = [tuple(p.shape) for p in _matrices(model)]
    steps = {}
    for name, make in _contenders(model).items():
        if not only or name == REFERENCE or any(word in name for word in only):
            with left_out(name, REFERENCE):
                steps[name] = make()
    return _in_turn(steps, REFERENCE, shapes, width, device, seconds)


def time_whole(
    width: int, depth: int, device: torch.device, vocabulary: int, seconds: float = SECONDS_PER_WIDTH
) -> tuple[list[Timing], int]:
    """The default optimizer on every leaf of a GPT, tables included, on CUDA also replayed from a graph; and how many
    stacks these are."""
    model = _gpt(width, depth, device, vocabulary)
    plan = ng.compile(model)
    opt = plan.optimizer(model, decay=0.1)
    shapes = [tuple(p.shape) for p in model.parameters()]
    name = f"every leaf, {sum(map(math.prod, shapes)) / 1e6:.0f} M"
    steps: dict[str, Step] = {name: opt.step}
    if device.type == "cuda":
        with left_out(f"{name}, from a graph"):
            twin = plan.optimizer(_twin(model), decay=0.1, capturable=True)
            steps[f"{name}, from a graph"] = _recorded(twin.step)
    timings = _in_turn(steps, name, shapes, width, device, seconds)
    return timings, sum(len(group.stacks) for group in opt._ready())


def time_entrywise(
    width: int, depth: int, device: torch.device, seconds: float = SECONDS_PER_WIDTH, compile: bool = False
) -> list[Timing]:
    """The same matrices in norms that need no products, rows and signs, beside torch's fused AdamW; with `compile`, also
    with compiled steps, for which the first one takes a while."""
    model = _gpt(width, depth, device)
    shapes = [tuple(p.shape) for p in _matrices(model)]

    def ours(norm: ng.norms.Norm, **options: Any) -> Step:
        params = _fresh(model)
        leaves = [(ng.geometry.Leaf(f"{i}", f"{i}", tuple(p.shape), "linear", norm),) for i, p in enumerate(params)]
        rule = ng.rules.Momentum(0.95, nesterov=True)
        return ng.optim.Optimizer([{"params": params, "leaves": leaves}], rule=rule, decay=0.1, **options).step

    steps: dict[str, Step] = {
        "normgeo rows": ours(ng.norms.L1ToRMS()),
        "normgeo signs": ours(ng.norms.L1ToLinf()),
        ADAMW: torch.optim.AdamW(_fresh(model), fused=True).step,
    }
    if compile:
        steps["normgeo rows, compiled"] = ours(ng.norms.L1ToRMS(), compile=True)
        steps["normgeo signs, compiled"] = ours(ng.norms.L1ToLinf(), compile=True)
    return _in_turn(steps, ADAMW, shapes, width, device, seconds)


def training_share(
    width: int, depth: int, device: torch.device, tokens: int, milliseconds: float, vocabulary: int = 65
) -> float:
    """What share of a training step with batches of so many tokens an optimizer step of that length is: forward and
    backward are timed on 1024 tokens, on a device on 8192 in bfloat16 by autocast, of which the batch accumulates as many
    as it needs."""
    model = _gpt(width, depth, device, vocabulary)
    at_once = 1024 if device.type == "cpu" else 8192
    ids = torch.randint(vocabulary, (at_once // 64, 65), device=device)

    def train() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            logits = model(ids[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()

    seconds = median_seconds(train, device, rounds=5) * tokens / at_once
    return milliseconds / (1e3 * seconds + milliseconds)


def _in_turn(
    steps: Mapping[str, Step],
    reference: str,
    shapes: Sequence[tuple[int, ...]],
    width: int,
    device: torch.device,
    seconds: float,
) -> list[Timing]:
    entries = sum(map(math.prod, shapes))
    # Training frees blocks of this size all the time, after which glibc recycles smaller ones. In a process that never did,
    # every temporary is mapped anew, which costs our step and AdamW's foreach 15 to 40 % at width 256.
    torch.empty(2**22).fill_(0)
    working, once = {}, 0.0
    for name, step in steps.items():  # state is made, and packages compile, in the first steps
        with left_out(name, REFERENCE):
            step()
            step()
            once += seconds_of(step, device)[1]
            working[name] = step
    rounds = [
        {name: tuple(1e3 * each for each in seconds_of(step, device)) for name, step in working.items()}
        for _ in range(max(FEWEST, min(MOST, int(seconds / once))))
    ]
    out = []
    for name in working:
        times = [each[name][1] for each in rounds]
        enqueuing = None if device.type == "cpu" else statistics.median(each[name][0] for each in rounds)
        polar = POLARS.get(name.removeprefix("floor of "))
        work = None if polar is None else sum(flops(polar, *shape) for shape in shapes)
        median = statistics.median(times)
        moved = entries * (28 if "AdamW" in name else 20)  # float32: weights, gradients, one or two moments
        ratio = _quartiles([each[name][1] / each[reference][1] for each in rounds])
        gflops = None if work is None else work / median / 1e6
        out.append(Timing(name, width, len(shapes), _quartiles(times), ratio, gflops, moved / median / 1e6, enqueuing))
    return out


def _contenders(model: torch.nn.Module) -> dict[str, Callable[[], Step]]:
    def ours(precision: Any) -> Step:
        twin = _twin(model)
        plan = ng.compile(twin)
        names = [leaf.parameter for leaf in plan.leaves if leaf.role == "linear"]
        rule = ng.rules.Momentum(0.95, nesterov=True)
        return plan.optimizer(plan.groups(only=names, model=twin), precision=precision, rule=rule, decay=0.1).step

    steps: dict[str, Callable[[], Step]] = {
        "normgeo tight": lambda: ours("tight"),
        "normgeo fast": lambda: ours("fast"),
        REFERENCE: lambda: torch.optim.Muon(_fresh(model), lr=1e-3).step,
        "torch AdamW, foreach": lambda: torch.optim.AdamW(_fresh(model), foreach=True).step,
        ADAMW: lambda: torch.optim.AdamW(_fresh(model), fused=True).step,
    }
    for package, name in OTHERS.items():
        try:
            found = getattr(importlib.import_module(package), name)
        except (ImportError, AttributeError):
            continue
        steps[f"{package} {name}"] = lambda found=found: _again(found, _fresh(model))  # type: ignore[misc]
    for name in ("normgeo tight", "normgeo fast"):
        steps[f"floor of {name}"] = lambda name=name: _floor(_matrices(model), POLARS[name])  # type: ignore[misc]
    return steps


def _recorded(step: Step) -> Step:
    """The step as a CUDA graph, which the host starts by one call."""
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _again(make: Callable[..., Any], params: Sequence[Parameter]) -> Step:
    """The step of an optimizer that may take the gradients away, as HeavyBall's do, with the same gradients each time."""
    grads, opt = [p.grad for p in params], make(params, lr=1e-3)

    def run() -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        opt.step()

    return run


def _gpt(width: int, depth: int, device: torch.device, vocabulary: int = 65) -> torch.nn.Module:
    """A GPT with the gradients of a batch of random tokens."""
    if width < 32 or width % 32 or depth < 1:
        raise UserError(f"--width, --depth: need a multiple of 32 and at least one block, got {width} and {depth}")
    gc.collect()  # what optimizers of the last width left in cycles
    torch.manual_seed(0)
    with device:  # orthogonal weights of width 4096 take a CPU minutes
        model = ng.nn.GPT(vocab_size=vocabulary, context=64, width=width, heads=width // 32, depth=depth)
    with torch.no_grad():
        for p in model.parameters():  # outputs of blocks start at 0, and then nothing behind them has a gradient
            p.add_(torch.randn_like(p), alpha=1e-2)
    ids = torch.randint(vocabulary, (16, 65), device=device)
    torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    return model


def _twin(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with its gradients, which copies of torch leave out."""
    twin = copy.deepcopy(model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    return twin


def _fresh(model: torch.nn.Module) -> list[Parameter]:
    """Copies of its matrices, with gradients."""
    return _matrices(_twin(model))


def _matrices(model: torch.nn.Module) -> list[Parameter]:
    roles = {leaf.parameter: leaf.role for leaf in ng.compile(model).leaves}
    return [p for name, p in model.named_parameters() if roles[name] == "linear"]


def _floor(params: Sequence[Parameter], polar: Iteration) -> Step:
    """As many products of the same sizes as the polar factors take, batched, in their dtype, and nothing else."""
    shapes: dict[tuple[int, int], int] = {}
    for p in params:
        m, n = sorted(p.shape)
        shapes[m, n] = shapes.get((m, n), 0) + 1
    steps: list[Callable[[], Tensor]] = []
    for (m, n), count in shapes.items():
        most = max(1, 2**18 // (m * n)) if params[0].device.type == "cpu" else count
        for done in range(0, count, most):
            x = torch.randn(min(most, count - done), m, n, device=params[0].device).to(polar.work(params[0])) / n**0.5
            r = torch.bmm(x, x.mT)
            for step in polar.schedule:
                steps += [partial(torch.bmm, x, x.mT), *[partial(torch.bmm, r, r)] * (len(step) // 2)]
                steps.append(partial(torch.bmm, r, x))

    def run() -> None:
        for step in steps:
            step()

    return run


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    first, median, third = statistics.quantiles(values, n=4)
    return first, median, third


def by_width(timings: Sequence[Timing]) -> Mapping[int, list[Timing]]:
    """The timings of each width, in order."""
    out: dict[int, list[Timing]] = {}
    for timing in timings:
        out.setdefault(timing.width, []).append(timing)
    return out
