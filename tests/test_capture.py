"""capturable=True: a step asks no tensor for its value, so CUDA can record it. Shown without CUDA in two ways: every
operation that reads a tensor on the host is refused as it is dispatched, and the whole step runs on `meta` tensors, which
have no values to read."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import normgeo as ng
from normgeo import constraints, rules, steps

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense,
    aten.item,
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.lift_fresh,  # torch.tensor(...): a copy from the host, for which a device would be waited on
}


class NoReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indexed_by_mask = func.overloadpacket in (aten.index, aten.index_put_) and any(
            i is not None and i.dtype is torch.bool for i in args[1]
        )
        if func.overloadpacket in READS or indexed_by_mask:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def gpt(**options):
    torch.manual_seed(0)
    model = ng.nn.GPT(vocab_size=11, context=8, width=16, heads=2, depth=2)
    return model, ng.optimizer(model, lr=0.1, **options)


def backward(model, seed=0):
    ids = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()


OPTIONS = [
    {},
    {"decay": 0.1, "precision": "fast"},
    {"nonfinite": "zero"},
    {"rule": rules.HeavyBall(0.9), "step": steps.Linear(50, warmup=5), "constraint": constraints.DecoupledDecay(0.01)},
    {"step": steps.WSD(50), "constraint": constraints.CorrectedDecay(0.01)},
    {"step": steps.Prodigy(), "iterate": ng.optim.EMA()},
    {"step": steps.MetaOptimize()},
    {"iterate": ng.optim.ScheduleFree()},
    {"rule": rules.TunedMomentum()},
    {"constraint": constraints.ScheduledDecay(0.1)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_step_reads_a_tensor(options):
    model, opt = gpt(capturable=True, **options)
    backward(model)
    opt.step()  # makes the stacks and the state; CUDA graphs want such steps before recording, too
    for seed in range(3):
        backward(model, seed)
        if seed == 1:
            model.head.weight.grad = None
        with NoReads():
            opt.step()
    assert opt.skipped == 0


def test_the_detector_detects():
    model, opt = gpt()
    backward(model)
    with pytest.raises(AssertionError, match="waits"), NoReads():
        opt.step()


@pytest.mark.parametrize("options", OPTIONS[:5], ids=str)
def test_steps_run_where_tensors_have_no_values(options, monkeypatch):
    monkeypatch.setattr("normgeo.optim.optimizer.check_devices", lambda params: None)  # there is nothing to move
    torch.manual_seed(0)
    model = ng.nn.GPT(vocab_size=11, context=8, width=16, heads=2, depth=2)
    plan = ng.compile(model)
    model.to("meta")
    opt = plan.optimizer(model, lr=0.1, capturable=True, **options)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        opt.step()


def test_a_schedule_changes_the_lr_in_place():
    model, opt = gpt(capturable=True)
    lr = opt.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.0, total_iters=4)
    twin, other = gpt()
    follows = torch.optim.lr_scheduler.LinearLR(other, 1.0, 0.0, total_iters=4)
    for seed in range(3):
        for each, its, schedules in ((model, opt, schedule), (twin, other, follows)):
            backward(each, seed)
            its.step()
            schedules.step()
    assert opt.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.1 / 4)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=5e-6)


def test_bad_gradients_are_skipped_without_a_look_and_counted():
    model, opt = gpt(capturable=True)
    backward(model)
    opt.step()
    before = [p.detach().clone() for p in model.parameters()]
    state = [v.clone() for s in opt.state.values() for v in s.values()]
    for _ in range(2):
        model.head.weight.grad[0, 0] = torch.nan
        with NoReads():
            opt.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(
        torch.equal(v, w) for v, w in zip((v for s in opt.state.values() for v in s.values()), state, strict=True)
    )
    with pytest.warns(RuntimeWarning, match=r"head\.weight.*2 skipped"):
        assert opt.skipped == 2
    assert opt.skipped == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nonfinite": "raise"}, 'write nonfinite="skip"'),
        ({"step": steps.Polyak()}, "which a graph does not record"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        gpt(capturable=True, **options)


def test_a_checkpoint_of_a_plain_optimizer_is_taken():
    model, plain = gpt()
    backward(model)
    plain.step()
    _, opt = gpt(capturable=True)
    opt.load_state_dict(plain.state_dict())
    assert isinstance(opt.param_groups[0]["lr"], torch.Tensor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_graph_replays_what_steps_do():
    runs = []
    for graphed in (False, True):
        torch.manual_seed(0)
        model = ng.nn.GPT(vocab_size=11, context=8, width=16, heads=2, depth=2)
        plan = ng.compile(model)
        model.cuda()
        opt = plan.optimizer(model, lr=0.1, capturable=True)
        lr = opt.param_groups[0]["lr"]
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).cuda()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                opt.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        if graphed:
            with torch.cuda.graph(graph):
                opt.step()
        for k in range(5):
            lr.fill_(0.1 / (k + 1))
            graph.replay() if graphed else opt.step()
        runs.append([p.detach().cpu() for p in model.parameters()])
    for p, q in zip(*runs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", [{}, {"ragged": True}, {"decay": 0.1, "rule": rules.HeavyBall(0.9)}], ids=str)
def test_steps_on_the_device_are_those_on_the_cpu(options):
    runs = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = ng.nn.GPT(vocab_size=11, context=8, width=64, heads=2, depth=2)
        plan = ng.compile(model)
        model.to(device)
        opt = plan.optimizer(model, lr=0.05, precision=torch.float32, **options)
        for step in range(20):
            for i, p in enumerate(model.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i)).to(device)
            opt.step()
        runs.append([p.detach().cpu() for p in model.parameters()])
    for p, q in zip(*runs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)
