"""Dtypes, layouts, devices, and what torch does around a step: scaling, clipping, compiling, other processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from multiprocessing.connection import Connection

import torch
from torch import nn

from normgeo.testing.clauses.clause import clause
from normgeo.testing.probe import SHAPES, Probe, probe_loss
from normgeo.testing.subject import Subject, moved, quietly, refusable, same, same_state, state_of, weights

MATRICES = {"a": (4, 3), "b": (3, 3)}


@clause("channels_last weights stay so and move as others do")
def _(s: Subject) -> None:
    s = s.probe({"4-D": SHAPES["4-D"]})
    model, opt = s.fresh()
    twin = copy.deepcopy(s.model)
    for weight in twin.parameters():
        weight.data = weight.data.to(memory_format=torch.channels_last)
    other = s.make(twin)
    s.train(opt, model, s.steps)
    s.train(other, twin, s.steps)
    (p,), (q,) = model.parameters(), twin.parameters()
    assert q.is_contiguous(memory_format=torch.channels_last), "the weight is not channels_last any more"
    torch.testing.assert_close(p.detach().contiguous(), q.detach().contiguous())


@clause("weights that are not contiguous move as others do")
def _(s: Subject) -> None:
    s = s.probe({"2-D": SHAPES["2-D"]})
    model, opt = s.fresh()
    twin = copy.deepcopy(s.model)
    (p,) = twin.parameters()
    p.data = p.data.T.contiguous().T
    other = s.make(twin)
    s.train(opt, model, s.steps)
    s.train(other, twin, s.steps)
    torch.testing.assert_close(weights(model), weights(twin))


def _in(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")

    @clause(f"{name} weights move, stay finite and resume to the bit")
    def _(s: Subject) -> None:
        s = s.probe(MATRICES, dtype)
        model, opt = s.fresh()
        before = weights(model)
        s.train(opt, model, s.steps)
        assert moved(before, weights(model)), "nothing moves"
        twin, other = s.fresh(model)
        other.load_state_dict(copy.deepcopy(opt.state_dict()))
        s.train(opt, model, s.steps)
        s.train(other, twin, s.steps)
        assert all(w.dtype == dtype for w in weights(model).values()), "the dtype has changed"
        assert all(w.isfinite().all() for w in weights(model).values()), "weights are NaN or infinite"
        assert same(weights(model), weights(twin)), "training continues differently"


for each in (torch.float64, torch.bfloat16, torch.float16):
    _in(each)


@clause("the state of bfloat16 weights is float32")
def _(s: Subject) -> None:
    s = s.probe(MATRICES, torch.bfloat16)
    model, opt = s.fresh()
    s.train(opt, model, 2)
    for p in model.parameters():
        for key, value in opt.state.get(p, {}).items():
            low = torch.is_tensor(value) and value.dtype in (torch.bfloat16, torch.float16)
            assert not low, f"{key} is {value.dtype}: a momentum of .999 cannot grow there"


@clause("weights of several dtypes in one optimizer")
def _(s: Subject) -> None:
    s = s.probe(MATRICES)
    model = copy.deepcopy(s.model)
    assert isinstance(model, Probe)
    model.weights["a"].data = model.weights["a"].data.double()
    opt = s.make(model)
    before = weights(model)
    s.on(model, _by_weight).train(opt, model, s.steps)
    after = weights(model)
    assert sorted(moved(before, after)) == sorted(before), "not all of them move"
    assert {str(w.dtype) for w in after.values()} == {"torch.float64", "torch.float32"}, "a dtype has changed"


def _by_weight(model: nn.Module) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for p in model.parameters():
        total = total + (p.double() - torch.eye(*p.shape, dtype=torch.float64)).square().sum()
    return total


@clause("GradScaler: an overflow skips the step, the next one counts")
def _(s: Subject) -> None:
    s.plainly()
    model, opt = s.fresh()
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    before = weights(model)
    for _ in range(s.steps):
        opt.zero_grad()
        scaler.scale(s.loss(model)).backward()
        scaler.step(opt)
        scaler.update()
    twin, other = s.fresh()
    s.train(other, twin, s.steps)
    assert moved(before, weights(model)), "nothing moves"
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)  # gradients are unscaled first
    before, state = weights(model), state_of(opt)
    opt.zero_grad()
    scaler.scale(s.loss(model) * float("inf")).backward()
    with quietly():
        scaler.step(opt)
    scaler.update()
    assert scaler.get_scale() < 256.0, "the scale does not fall"
    assert same(before, weights(model)), "weights move on overflow"
    assert same_state(state, state_of(opt)), "state changes on overflow"
    s.train(opt, model)
    assert moved(before, weights(model)), "nothing moves after an overflow"


@clause("gradients may be clipped before the step")
def _(s: Subject) -> None:
    s.plainly()
    for clip in (nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_):
        model, opt = s.fresh()
        before = weights(model)
        for _ in range(s.steps):
            s.backward(opt, model)
            clip(model.parameters(), 1e-3)
            opt.step()
        assert moved(before, weights(model)), f"nothing moves after {clip.__name__}"
        assert all(w.isfinite().all() for w in weights(model).values())


@clause("weights made on the meta device and filled later")
def _(s: Subject) -> None:
    s = s.probe(MATRICES)
    model = copy.deepcopy(s.model).to("meta").to_empty(device="cpu")
    model.load_state_dict(s.model.state_dict())
    opt = s.make(model)
    twin, other = s.fresh()
    s.train(opt, model, s.steps)
    s.train(other, twin, s.steps)
    assert same(weights(model), weights(twin)), "they move differently"


@clause("an optimizer of meta weights works there, or says that it cannot")
def _(s: Subject) -> None:
    s = s.probe(MATRICES)
    model = copy.deepcopy(s.model).to("meta")
    with refusable("meta"):
        opt = s.make(model)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
    assert all(p.is_meta for p in model.parameters())


@clause("torch.compile(opt.step) does the same, also when lr changes", "slow")
def _(s: Subject) -> None:
    s.plainly()
    model, opt = s.fresh()
    twin, other = s.fresh()
    step = torch.compile(other.step, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=False):
        for t in range(12):  # more than the 8 times that torch compiles a function anew before it gives up
            for group in (*opt.param_groups, *other.param_groups):
                group["lr"] = 0.01 / (1 + t)
            s.train(opt, model)
            s.backward(other, twin)
            step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@clause("it goes on in another process", "slow")
def _(s: Subject) -> None:
    s = s.probe(MATRICES)
    s.plainly()
    model, opt = s.fresh()
    s.train(opt, model)
    content = pickle.dumps((model, opt))
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_train_there, args=(content, sending))
    process.start()
    sending.close()
    there = {name: torch.tensor(w) for name, w in receiving.recv().items()}
    process.join(60)
    _train_probe(model, opt)
    assert same(weights(model), there), "it trains differently there"


def _train_there(content: bytes, sending: Connection) -> None:
    torch.set_num_threads(1)
    model, opt = pickle.loads(content)
    _train_probe(model, opt)
    sending.send({name: w.tolist() for name, w in weights(model).items()})


def _train_probe(model: nn.Module, opt: torch.optim.Optimizer) -> None:
    for _ in range(3):
        opt.zero_grad()
        probe_loss(model).backward()
        opt.step()
