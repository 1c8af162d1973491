"""How long the step of an optimizer takes on the weights of a GPT, beside others and beside what the machine allows."""

from __future__ import annotations

import copy
import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import normgeo as ng
from normgeo.lab.errors import UserError
from normgeo.linalg import FAST, TIGHT, NewtonSchulz, PolarExpress, in_dtype
from normgeo.linalg.coefficients import KELLER

__all__ = [
    "Accuracy",
    "Rates",
    "Timing",
    "accuracies",
    "machine_rates",
    "time_entrywise",
    "time_steps",
    "training_share",
]

Iteration = NewtonSchulz | PolarExpress
REFERENCE, ADAMW = "torch Muon", "torch AdamW, fused"
POLARS: dict[str, Iteration] = {
    "normgeo tight": TIGHT,
    "normgeo fast": FAST,
    REFERENCE: NewtonSchulz(KELLER, torch.bfloat16),
}
OTHERS = {"heavyball": "Muon", "dion": "Muon", "muon": "SingleDeviceMuon"}
"""packages that are measured where they are installed, and their optimizer for matrices"""
SECONDS_PER_WIDTH, FEWEST, MOST = 12.0, 5, 60

Step = Callable[[], Any]


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


@dataclass(frozen=True)
class Rates:
    """What the machine does with nothing else in the way, measured now."""

    gflops: float
    """of products of large square matrices in the work dtype of `TIGHT`, 1e9 a second"""
    gbytes: float
    """read and written by a copy of 128 MB, 1e9 a second"""


@dataclass(frozen=True)
class Accuracy:
    """The singular values of a polar factor P of float32 matrices G, for those of G/‖G‖_F in [1e-3, 1]."""

    name: str
    width: int
    least: float
    largest: float
    descent: float
    """the least ⟨G, P⟩/‖G‖* of the spectra tried"""


def time_steps(
    width: int, depth: int, device: torch.device, seconds: float = SECONDS_PER_WIDTH, only: Sequence[str] = ()
) -> list[Timing]:
    """Steps of all optimizers in turn, in one process, on copies of the same matrices and gradients. only: torch Muon, and
    those with one of these words in their names."""
    model = _gpt(width, depth, device)
    shapes = [tuple(p.shape) for p in _matrices(model)]
    steps = {
        name: make()
        for name, make in _contenders(model).items()
        if not only or name == REFERENCE or any(word in name for word in only)
    }
    return _in_turn(steps, REFERENCE, shapes, width, device, seconds)


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


def machine_rates(device: torch.device) -> Rates:
    """Medians of a few runs; on CPU with the threads that torch has."""
    side = 512 if device.type == "cpu" else 8192
    x = torch.randn(side, side, device=device)
    x = x.to(TIGHT.work(x))
    one, other = (torch.ones(2**24, device=device) for _ in range(2))  # 64 MB each, more than caches hold
    product, copied = (
        statistics.median(_seconds(run, device) for _ in range(9))
        for run in (lambda: torch.mm(x, x), lambda: one.copy_(other))
    )
    return Rates(2 * side**3 / product / 1e9, 2 * one.nbytes / copied / 1e9)


def training_share(width: int, depth: int, device: torch.device, tokens: int, milliseconds: float) -> float:
    """What share of a training step with batches of so many tokens an optimizer step of that length is: forward and
    backward are timed on 1024 tokens, of which the batch accumulates as many as it needs."""
    model = _gpt(width, depth, device)
    ids = torch.randint(65, (16, 65), device=device)

    def train() -> None:
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()

    train()
    seconds = statistics.median(_seconds(train, device) for _ in range(5)) * tokens / 1024
    return milliseconds / (1e3 * seconds + milliseconds)


def _in_turn(
    steps: Mapping[str, Step],
    reference: str,
    shapes: Sequence[tuple[int, ...]],
    width: int,
    device: torch.device,
    seconds: float,
) -> list[Timing]:
    entries = sum(m * n for m, n in shapes)
    # Training frees blocks of this size all the time, after which glibc recycles smaller ones. In a process that never did,
    # every temporary is mapped anew, which costs our step and AdamW's foreach 15 to 40 % at width 256.
    torch.empty(2**22).fill_(0)
    for step in steps.values():  # state is made, and packages compile, in the first steps
        step()
        step()
    once = sum(_seconds(step, device) for step in steps.values())
    rounds = [
        {name: 1e3 * _seconds(step, device) for name, step in steps.items()}
        for _ in range(max(FEWEST, min(MOST, int(seconds / once))))
    ]
    out = []
    for name in steps:
        times = [each[name] for each in rounds]
        polar = POLARS.get(name.removeprefix("floor of "))
        flops = None if polar is None else sum(_flops(polar, m, n) for m, n in shapes)
        median = statistics.median(times)
        moved = entries * (28 if "AdamW" in name else 20)  # float32: weights, gradients, one or two moments
        ratio = _quartiles([each[name] / each[reference] for each in rounds])
        gflops = None if flops is None else flops / median / 1e6
        out.append(Timing(name, width, len(shapes), _quartiles(times), ratio, gflops, moved / median / 1e6))
    return out


def accuracies(width: int, device: torch.device, seed: int = 0) -> list[Accuracy]:
    """Each polar method on square matrices: Gaussian, logarithmic down to 1e-3, half of them 1e-3, all but one 1e-3."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(_normal(width, width, generator))[0] for _ in range(2))
    half = torch.ones(width, dtype=torch.float64) / max(width / 2, 1) ** 0.5
    half[width // 2 :] = 1e-3
    spike = torch.full((width,), 1e-3, dtype=torch.float64)
    spike[0] = 1
    spectra = (
        torch.linalg.svdvals(_normal(width, width, generator)),
        torch.logspace(0, -3, width).double(),
        half,
        spike,
    )
    out = []
    for name, polar in {**POLARS, **_policies(device)}.items():
        least, largest, descent = torch.inf, 0.0, torch.inf
        for s in spectra:
            g = (u * s) @ v
            p = polar(g.to(device, torch.float32)).cpu().double()
            sizes = torch.linalg.svdvals(p)[: int((s / s.norm() >= 0.999e-3).sum())]
            least, largest = min(least, float(sizes[-1])), max(largest, float(sizes[0]))
            descent = min(descent, float((g * p).sum() / s.sum()))
        out.append(Accuracy(name, width, least, largest, descent))
    return out


def _policies(device: torch.device) -> dict[str, Iteration]:
    """`precision` as a dtype."""
    dtypes = (torch.bfloat16, torch.float32) if device.type == "cpu" else (torch.bfloat16, torch.float16, torch.float32)
    return {f"precision={dtype}": in_dtype(dtype) for dtype in dtypes}


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


def _again(make: Callable[..., Any], params: Sequence[Parameter]) -> Step:
    """The step of an optimizer that may take the gradients away, as HeavyBall's do, with the same gradients each time."""
    grads, opt = [p.grad for p in params], make(params, lr=1e-3)

    def run() -> None:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        opt.step()

    return run


def _gpt(width: int, depth: int, device: torch.device) -> torch.nn.Module:
    """A GPT with the gradients of a batch of random tokens."""
    if width < 32 or width % 32 or depth < 1:
        raise UserError(f"--width, --depth: need a multiple of 32 and at least one block, got {width} and {depth}")
    torch.manual_seed(0)
    model = ng.nn.GPT(vocab_size=65, context=64, width=width, heads=width // 32, depth=depth).to(device)
    with torch.no_grad():
        for p in model.parameters():  # outputs of blocks start at 0, and then nothing behind them has a gradient
            p.add_(torch.randn_like(p), alpha=1e-2)
    ids = torch.randint(65, (16, 65), device=device)
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
    products: list[Callable[[], Tensor]] = []
    for (m, n), count in shapes.items():
        most = max(1, 2**18 // (m * n)) if params[0].device.type == "cpu" else count
        for done in range(0, count, most):
            x = torch.randn(min(most, count - done), m, n, device=params[0].device).to(polar.work(params[0])) / n**0.5
            r = torch.bmm(x, x.mT)
            for step in polar.schedule:
                products += [partial(torch.bmm, x, x.mT), *[partial(torch.bmm, r, r)] * (len(step) // 2)]
                products.append(partial(torch.bmm, r, x))

    def run() -> None:
        for product in products:
            product()

    return run


def _flops(polar: Iteration, m: int, n: int) -> int:
    m, n = sorted((m, n))
    return sum(4 * m * m * n + 2 * m**3 * (len(step) // 2) for step in polar.schedule)


def _seconds(step: Step, device: torch.device) -> float:
    """Of the one thread that works, where it is one: what others do on the machine then counts less."""
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    first, median, third = statistics.quantiles(values, n=4)
    return first, median, third


def _normal(m: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(m, n, generator=generator, dtype=torch.float64)


def by_width(timings: Sequence[Timing]) -> Mapping[int, list[Timing]]:
    """The timings of each width, in order."""
    out: dict[int, list[Timing]] = {}
    for timing in timings:
        out.setdefault(timing.width, []).append(timing)
    return out
