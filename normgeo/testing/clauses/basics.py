"""Steps, closures, hooks and gradients."""

from __future__ import annotations

import copy
from typing import Any

import torch

from normgeo.testing.clauses.clause import clause
from normgeo.testing.probe import SHAPES
from normgeo.testing.report import NotAsked
from normgeo.testing.subject import Subject, moved, quietly, refusable, same, same_state, state_of, weights


@clause("is a torch.optim.Optimizer")
def _(s: Subject) -> None:
    _, opt = s.fresh()
    assert isinstance(opt, torch.optim.Optimizer), "it is not a torch.optim.Optimizer"
    assert "lr" in opt.defaults, "its defaults have no lr"


@clause("training moves every weight", "quick")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    before, seen = weights(model), set()
    for _ in range(s.steps):
        s.train(opt, model)
        seen |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    still = seen - set(moved(before, weights(model)))
    assert seen, "no weight has a gradient"
    assert not still, f"{sorted(still)} has a gradient and does not move"


def _refuses(lr: float) -> None:
    @clause(f"lr={lr} is refused")
    def _(s: Subject) -> None:
        s.takes_options()
        try:
            s.fresh(lr=lr)
        except ValueError:
            return
        raise AssertionError("it is accepted")


for bad in (-1.0, float("nan")):
    _refuses(bad)


@clause("lr = 0 moves nothing", "quick")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    s.train(opt, model)
    for group in opt.param_groups:
        group["lr"] = 0.0
    before = weights(model)
    s.train(opt, model)
    assert same(before, weights(model)), f"{moved(before, weights(model))[0]} moves"


@clause("zero gradients move nothing", "quick")
def _(s: Subject) -> None:
    if s.decays:
        raise NotAsked("it decays")
    model, opt = s.fresh()
    before = weights(model)
    if s.closure == "none":
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
    else:
        opt.step(s.closing(opt, model, scale=0.0))
    assert same(before, weights(model)), f"{moved(before, weights(model))[0]} moves"


@clause("a step without gradients moves nothing")
def _(s: Subject) -> None:
    s.plainly()
    model, opt = s.fresh()
    before = weights(model)
    opt.step()
    s.train(opt, model)
    opt.zero_grad()
    middle = weights(model)
    opt.step()
    assert same(middle, weights(model)), "weights move without gradients"
    assert moved(before, middle), "a step after one without gradients moves nothing"


@clause("a weight without gradient stands still, with its state")
def _(s: Subject) -> None:
    s.plainly()
    model, opt = s.fresh()
    s.train(opt, model, 2)
    name, p = next(iter(model.named_parameters()))
    before, state = weights(model), copy.deepcopy(opt.state.get(p, {}))
    s.backward(opt, model)
    p.grad = None
    opt.step()
    after = weights(model)
    assert torch.equal(before[name], after[name]), f"{name} moves"
    for key, value in state.items():
        if torch.is_tensor(value) and value.ndim:  # numbers may be the group's
            assert same_state(value, opt.state[p][key]), f"{key} of {name} changes"
    assert len(after) == 1 or moved(before, after), "nothing else moves either"


@clause("frozen later stands still, unfrozen later moves again", "quick")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    s.train(opt, model, 2)
    name, p = next(iter(model.named_parameters()))
    others = [q for q in model.parameters() if q is not p]
    if not others:
        raise NotAsked("it takes two weights")
    p.requires_grad_(False)
    p.grad = None
    before = weights(model)
    s.train(opt, model, 2)
    after = weights(model)
    assert torch.equal(before[name], after[name]), f"{name} is frozen and moves"
    assert moved(before, after), "nothing moves while one weight is frozen"
    p.requires_grad_(True)
    s.train(opt, model, 2)
    assert not torch.equal(p.detach(), after[name]), f"{name} does not move when it is unfrozen"


@clause("gradients are left as they were", "quick")
def _(s: Subject) -> None:
    s.plainly()
    model, opt = s.fresh()
    for _ in range(2):
        s.backward(opt, model)
        before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        opt.step()
        for name, p in model.named_parameters():
            if name in before:
                assert p.grad is not None, f"the gradient of {name} is gone"
                assert torch.equal(p.grad, before[name]), f"the gradient of {name} is changed"


@clause("autograd notices that weights changed")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    versions = {name: p._version for name, p in model.named_parameters()}
    before = weights(model)
    s.train(opt, model)
    for name, p in model.named_parameters():
        unseen = p._version == versions[name] and not torch.equal(before[name], p.detach())
        assert not unseen, f"{name} moves and its version stays: backward through old values would be silently wrong"


@clause("step(closure) returns its loss, with gradients on", "quick")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    enabled = []
    inner = s.closing(opt, model, kind="loss" if s.closure == "none" else s.closure)

    def closure() -> Any:
        enabled.append(torch.is_grad_enabled())
        return inner()

    before, expected = weights(model), float(s.loss(model).detach())
    with torch.no_grad():
        value = opt.step(closure)
    assert value is not None, "the loss is not returned"
    assert float(value.detach() if torch.is_tensor(value) else value) == expected, f"{value} is not the loss {expected}"
    assert enabled, "the closure does not run"
    assert all(enabled), "the closure runs without gradients"
    assert moved(before, weights(model)), "nothing moves"


@clause("step hooks run once a step")
def _(s: Subject) -> None:
    model, opt = s.fresh()
    calls: list[str] = []
    handles = [
        opt.register_step_pre_hook(lambda *_: calls.append("before")),
        opt.register_step_post_hook(lambda *_: calls.append("after")),
    ]
    s.train(opt, model)
    assert calls == ["before", "after"], f"hooks ran as {calls}"
    for handle in handles:
        handle.remove()
    s.train(opt, model)
    assert calls == ["before", "after"], "a removed hook runs"


@clause("zero_grad, both ways")
def _(s: Subject) -> None:
    s.plainly()
    model, opt = s.fresh()
    s.loss(model).backward()
    opt.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)
    opt.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in model.parameters())


def _has_axes(name: str) -> None:
    @clause(f"{name} weights")
    def _(s: Subject) -> None:
        s = s.probe({name: SHAPES[name]})
        model, opt = s.fresh()
        before = weights(model)
        s.train(opt, model, 2)
        after = weights(model)
        assert moved(before, after), "it does not move"
        assert all(w.isfinite().all() for w in after.values()), "it is not finite"


for axes in SHAPES:
    _has_axes(axes)


@clause("weights of 0 to 5 axes together resume")
def _(s: Subject) -> None:
    s = s.probe(SHAPES)
    model, opt = s.fresh()
    s.train(opt, model, 2)
    twin, other = s.fresh(model)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    s.train(opt, model, 2)
    s.train(other, twin, 2)
    assert same(weights(model), weights(twin)), "training goes on differently"


@clause("a NaN or Inf leaves weights and state as they were", "quick")
def _(s: Subject) -> None:
    for value in (float("nan"), float("inf")):
        model, opt = s.fresh()
        s.train(opt, model, 2)
        before, state = weights(model), state_of(opt)
        with quietly():
            _poison(s, opt, model, value)
        assert same(before, weights(model)), f"{value} in one gradient moves {moved(before, weights(model))[0]}"
        assert same_state(state, state_of(opt)), f"{value} in one gradient changes the state"
        s.train(opt, model)
        after = weights(model)
        assert all(w.isfinite().all() for w in after.values()), "later weights are not finite"
        assert moved(before, after), "nothing moves any more"


@clause("a NaN is reported with the weight's name")
def _(s: Subject) -> None:
    import warnings

    model, opt = s.fresh()
    s.train(opt, model, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _poison(s, opt, model, float("nan"))
        s.train(opt, model)
    name = next(iter(weights(model)))
    assert any(name in str(w.message) for w in caught), f"no warning says {name}"


def _poison(s: Subject, opt: torch.optim.Optimizer, model: torch.nn.Module, value: float) -> None:
    """A step with one bad entry in the first gradient, or a bad loss where the optimizer asks for it."""
    if s.closure == "none":
        s.backward(opt, model)
        grad = next(p for p in model.parameters()).grad
        assert grad is not None
        grad.view(-1)[0] = value
        opt.step()
    else:
        opt.step(s.closing(opt, model, scale=value))


@clause("sparse gradients, or a refusal that says so")
def _(s: Subject) -> None:
    s = s.probe({"2-D": SHAPES["2-D"]})
    s.plainly()
    model, opt = s.fresh()
    p, before = next(model.parameters()), weights(model)
    p.grad = torch.eye(*p.shape).to_sparse()
    with refusable("sparse"):
        opt.step()
    assert moved(before, weights(model)), "a sparse gradient is silently dropped"


@clause("complex weights, or a refusal that says so")
def _(s: Subject) -> None:
    s = s.probe({"2-D": SHAPES["2-D"]}, torch.complex64)
    with refusable("complex"):
        model, opt = s.fresh()
        before = weights(model)
        s.train(opt, model, 2)
    assert moved(before, weights(model)), "nothing moves"
    assert all(w.isfinite().all() for w in weights(model).values())
