"""Whole steps on a fake CUDA device (`fake_cuda`): nothing is on the wrong device, and the host never waits, but for what
says so. What a device computes, and how fast, this cannot tell."""

import sys

import pytest
import torch
from fake_cuda import CUDA, HostWaitsError, fake_cuda, fill, for_fake_cuda, to_cuda
from test_norms import INSTANCES
from torch import nn
from wirings import WIRINGS

import normgeo as ng
from normgeo import budgets, norms, optim, rules, steps
from normgeo.geometry import Leaf, View
from normgeo.linalg import TIGHT
from normgeo.optim import place

pytestmark = for_fake_cuda

DECOMPOSES = {
    "Ball",
    "Normalize",
    "Stiefel",
    "Operate(Frobenius)",
    "Operate(Spectral)",
    "Operate(Diagonal)",
    "Operate(DataMetric, every=2)",
    "Filter(one pole)",
    "Filter(entries)",
    'precision="exact"',
}
SEARCHES = {"Armijo", "Wolfe"}
DIFFERENTIATES = {"Cauchy", "Sphere"}
WAITS = DECOMPOSES | SEARCHES
"""what takes the singular values or vectors of weights, or searches along a line: on a device the host waits for it"""


@pytest.fixture
def device(monkeypatch):
    with fake_cuda(monkeypatch) as device:
        yield device


def net():
    return ng.nn.GPT(vocab_size=11, context=8, width=16, heads=2, depth=1)


def loss():
    return torch.empty((), device=CUDA)


def train(device, opt, params, closure=None, steps=2, waits=False):
    params = list(params)
    for step in range(steps):
        fill(params)
        if step == 0 or waits:  # the first makes stacks and state, and what follows from them once
            with device.waiting():
                opt.step(closure)
        else:
            opt.step(closure)


def alone(norm, shape, count=2, dtype=torch.float32, **options):
    params = [nn.Parameter(torch.empty(shape, dtype=dtype, device=CUDA)) for _ in range(count)]
    leaves = [(Leaf(f"{i}", f"{i}", tuple(shape), "linear", norm),) for i in range(count)]
    return params, optim.Optimizer([{"params": params, "leaves": leaves}], **options)


# ---- the device


def test_it_says_where_a_step_waits(device):
    x, y = (torch.empty(3, 3, device=CUDA) for _ in range(2))
    waits = [
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x.tolist(),
        lambda: torch.equal(x, y),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: x.cpu(),
        lambda: torch.tensor([1.0, 2.0], device=CUDA),
        lambda: torch.ones(3).to(x),
        lambda: x.copy_(torch.ones(3)),
        lambda: x + torch.ones(3, 3),
        lambda: x * torch.tensor(2.0),
        lambda: torch.linalg.svdvals(x),
        lambda: torch.linalg.eigh(x),
        lambda: torch.linalg.inv(x),
        lambda: x.__setitem__(x > 0, y[x > 0]),
        lambda: x.index_put_((x > 0,), y[0, 0]),
    ]
    for wait in waits:
        with pytest.raises(HostWaitsError):
            wait()
    for go in (lambda: x[0], lambda: x[:, None] * 2.0, lambda: x.fill_(1.0), lambda: torch.where(x > 0, x, 0)):
        assert go().device == CUDA
    torch.empty(3, pin_memory=True).copy_(x[0], non_blocking=True)
    with pytest.raises(RuntimeError, match="broadcast"):
        x + torch.ones(2, 2, device=CUDA)


# ---- norms


SHAPES = {0: (), 1: (6,), 2: (6, 4), 3: (4, 6, 3)}
CONVOLUTIONS = {
    norms.Conv(2): (8, 4, 3, 3),
    norms.Conv(2, groups=2): (8, 2, 3, 3),
    norms.Conv(1): (8, 4, 3),
    norms.ConvTransposed(2, stride=(2, 2)): (4, 8, 4, 4),
}
GAUGES = (norms.Nuclear, norms.Schatten, norms.KyFan)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("norm", INSTANCES, ids=str)
def test_norms(device, norm, dtype):
    params, opt = alone(norm, SHAPES[norm.ndim], dtype=dtype, decay=0.1)
    train(device, opt, params, waits=isinstance(norm, GAUGES))


@pytest.mark.parametrize("norm", CONVOLUTIONS, ids=str)
def test_convolutions(device, norm):
    params, opt = alone(norm, CONVOLUTIONS[norm])
    train(device, opt, params)


@pytest.mark.parametrize("precision", ["tight", "fast", torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(96, 96), (64, 256), pytest.param((16, 128), marks=pytest.mark.slow)], ids=str)
def test_policies(device, precision, shape):
    model = ng.nn.Linear(shape[1], shape[0])
    plan = ng.compile(model)
    opt = plan.optimizer(to_cuda(model), precision=precision)
    train(device, opt, model.parameters())


# ---- parts


def go(device, name, waits, **options):
    """Two steps of a wiring on a small GPT."""
    wiring, model = WIRINGS[name], net()
    for p in model.parameters():
        p.data.add_(0.1)  # what measures weights wants some that are not 0
    plan = ng.compile(model)
    to_cuda(model)
    with device.waiting():
        opt = plan.optimizer(model, **wiring.options, **options)
    train(device, opt, model.parameters(), loss if wiring.closure == "loss" else None, waits=waits)


def refused(name):
    needs = {need for part in WIRINGS[name].options.values() for need in getattr(part, "needs", ())}
    return bool(needs & {"loss", "closure", "turn"})


TRIED = sorted(set(WIRINGS) - DIFFERENTIATES)
QUICK = ["default", "HeavyBall", "Stored", "Auto", "Prodigy", "Secant", "Armijo", "Ball", "Filter(entries)"]


def check(device, name, capturable):
    if capturable and refused(name):
        with pytest.raises(ValueError, match="capturable=True"):
            go(device, name, False, capturable=True)
    elif name in WAITS:
        go(device, name, True, capturable=capturable)
        with pytest.raises(HostWaitsError):
            go(device, name, False, capturable=capturable)
    else:
        go(device, name, False, capturable=capturable)


@pytest.mark.parametrize("name", QUICK)
def test_parts(device, name):
    check(device, name, False)


@pytest.mark.slow
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("name", TRIED)
def test_all_parts(device, name, capturable):
    check(device, name, capturable)


def test_no_period_of_the_host_is_recorded():
    for options in ({"step": steps.Prodigy(every=10)}, {"direction": optim.Operate(budgets.Diagonal(), every=2)}):
        with pytest.raises(ValueError, match=r"acts every \d+ steps, and a graph would repeat one step; write every=1"):
            ng.optimizer(net(), capturable=True, **options)
    ng.optimizer(net(), capturable=True, step=steps.Prodigy())


def test_a_table_is_copied_once(device):
    params, opt = alone(norms.RMS(), (4,), step=steps.Table((0.5, 0.25, 0.125)))
    train(device, opt, params, steps=3)
    sys.modules["normgeo.steps.refine"]._on.cache_clear()  # the fake one


# ---- paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"ragged": True},
        {"decay": 0.1, "capturable": True, "ragged": True},
        {"nonfinite": "zero", "capturable": True},
        {"precision": torch.float16},
        {"iterate": optim.EMA()},
    ],
    ids=str,
)
def test_paths(device, options, dtype):
    model = net()
    plan = ng.compile(model)
    with device.waiting():  # an lr on the device has to get there
        opt = plan.optimizer(to_cuda(model, dtype), **options)
    params = list(model.parameters())
    train(device, opt, params)
    params[0].grad = None
    opt.step()  # a leaf without a gradient
    params[1].requires_grad_(False)
    train(device, opt, params[2:])  # new stacks
    opt.param_groups[0]["lr"] *= 0.5
    opt.step()


def test_raise_waits_and_says_so_in_its_name(device):
    params, opt = alone(norms.RMS(), (4,), nonfinite="raise")
    fill(params)
    with pytest.raises(HostWaitsError):
        opt.step()


VIEWS = [View("(three d) i -> three d i", (("three", 3),), block=k) for k in range(3)]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_blocks_of_a_fused_weight(device):
    p = nn.Parameter(torch.empty(24, 8, device=CUDA))
    leaves = tuple(Leaf(f"qkv[{i}]", "qkv", (8, 8), "linear", norms.RMSToRMS(), view=v) for i, v in enumerate(VIEWS))
    opt = optim.Optimizer([{"params": [p], "leaves": [leaves]}], decay=0.1)
    train(device, opt, [p])


@pytest.mark.parametrize("norm", [norms.L1ToRMS(), norms.L1ToLinf(), norms.RMSToRMS()], ids=str)
@pytest.mark.parametrize("most", [64, 2**26])
def test_leaves_and_stacks_larger_than_a_chunk(device, norm, most, monkeypatch):
    monkeypatch.setattr(place, "MOST_ELSEWHERE", most)
    params, opt = alone(norm, (40, 8), count=1, nonfinite="zero")
    train(device, opt, params)
    params, opt = alone(norm, (4, 8), count=5)
    train(device, opt, params)


def test_in_backward(device):
    model = net()
    opt = ng.compile(model).optimizer(to_cuda(model), in_backward=True, nonfinite="zero")
    for step in range(2):
        fill(model.parameters())
        for p in model.parameters():
            if step:
                opt._hooks.fire(p)
            else:
                with device.waiting():
                    opt._hooks.fire(p)
        opt.step()


def test_around_steps(device):
    """What is not a step may wait, and has everything where it should be."""
    model = net()
    opt = ng.compile(model).optimizer(to_cuda(model), iterate=optim.ScheduleFree(), rule=rules.Plain())
    train(device, opt, model.parameters())
    with opt.averaged():
        pass
    saved = opt.state_dict()
    with device.waiting(), pytest.warns(UserWarning, match="masses"):  # here they are read as 0
        opt.load_state_dict(saved)
    assert {x.device for s in opt.state.values() for k, x in s.items() if "mass" not in k and "reach" not in k} == {
        CUDA
    }
    train(device, opt, model.parameters())
    with device.waiting():
        assert opt.describe()


def test_validation_gradients(device):
    model = net()
    plan = ng.compile(model)
    with device.waiting():
        opt = plan.optimizer(
            to_cuda(model), direction=optim.Filter(budgets.DynamicDiagonal(), lags=2, source="cross", size="budget")
        )
    for step in range(2):
        with opt.validation():
            fill(model.parameters())
        fill(model.parameters())
        model.head.weight.grad = None
        if step:
            opt.step()
        else:
            with device.waiting():
                opt.step()


# ---- how much the host has to enqueue


@pytest.mark.parametrize("width", [64, 768])
def test_operations_of_a_step(device, width):
    """Of the default optimizer, those of the polar factors apart: where matrices are small, the time that the host takes to
    enqueue them is that of the step."""
    with torch.device("meta"):
        model = ng.nn.GPT(vocab_size=65, context=64, width=width, heads=width // 32, depth=4)
    plan = ng.compile(model)
    opt = plan.optimizer(to_cuda(model), decay=0.1)
    train(device, opt, model.parameters(), steps=1)
    device.launches.clear()
    opt.step()
    step = device.launches.total()
    stacks = [stack for group in opt._ready() for stack in group.stacks]
    assert [len(stack) for stack in stacks] == [1, 16, 4, 4, 1]
    device.launches.clear()
    for stack in stacks:
        if isinstance(stack.norm, norms.RMSToRMS):
            TIGHT(torch.empty(len(stack), *stack.shape, device=CUDA))
    polar = device.launches.total()
    assert polar <= 4 * 32
    assert step - polar <= 114
