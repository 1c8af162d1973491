"""What anybody may expect of a torch optimizer."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["check_optimizer"]

Closure = Literal["none", "loss", "graph"]
Loss = Callable[[nn.Module], Tensor]
Make = Callable[[nn.Module], torch.optim.Optimizer]


def check_optimizer(
    make: Make,
    model: nn.Module,
    loss: Loss,
    *,
    steps: int = 3,
    decays: bool = False,
    closure: Closure = "none",
) -> None:
    """Training moves weights; state survives state_dict (weights_only), deepcopy and pickle bit by bit; zero gradients
    from the start, lr = 0 and a NaN move nothing; schedulers, closures and add_param_group's errors work.

    `make(model)` builds the optimizer, `loss(model)` is a differentiable 0-D tensor. The model is not changed.
    `decays=True` leaves out zero gradients, for optimizers that shrink weights without being asked by a gradient.
    `closure="loss"` steps with a closure throughout, for parts that need the loss; `"graph"` with one that leaves
    backward to the optimizer, for parts that need Hessian-vector products.

    >>> import normgeo as ng
    >>> data = torch.ones(2, 4)
    >>> check_optimizer(ng.optimizer, ng.nn.MLP(4, 8, 2), lambda model: (model(data) - 1).square().mean())
    """
    start = copy.deepcopy(model)
    _moves(make, copy.deepcopy(start), loss, steps, closure)
    _stands_still(make, copy.deepcopy(start), loss, decays, closure)
    _resumes(make, start, loss, steps, closure)


def _moves(make: Make, model: nn.Module, loss: Loss, steps: int, closure: Closure) -> None:
    opt = make(model)
    assert isinstance(opt, torch.optim.Optimizer), "it is not a torch.optim.Optimizer"
    before = _weights(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + t))
    for _ in range(steps):
        _train(opt, model, loss, 1, closure)
        scheduler.step()
    assert not _same(before, _weights(model)), "training moves nothing"
    opt.zero_grad()
    value = opt.step(_closure(opt, model, loss, "loss" if closure == "none" else closure))
    assert torch.is_tensor(value), "step(closure) does not return the loss"


def _stands_still(make: Make, model: nn.Module, loss: Loss, decays: bool, closure: Closure) -> None:
    opt, before = make(model), _weights(model)
    if closure == "none":
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
    else:
        opt.step(_closure(opt, model, lambda m: 0 * loss(m), closure))
    assert decays or _same(before, _weights(model)), "zero gradients move the weights"
    _train(opt, model, loss, 1, closure)
    before, state = _weights(model), copy.deepcopy(opt.state_dict()["state"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if closure == "none":
            loss(model).backward()
            next(p for p in model.parameters() if p.grad is not None).grad.flatten()[0] = torch.nan  # type: ignore[union-attr]
            opt.step()
        else:
            opt.step(_closure(opt, model, lambda m: torch.nan * loss(m), closure))
    assert _same(before, _weights(model)), "a NaN in a gradient moves the weights"
    assert _same_state(state, opt.state_dict()["state"]), "a NaN in a gradient changes the state"
    for group in opt.param_groups:
        group["lr"] = 0.0
    _train(opt, model, loss, 1, closure)
    assert _same(before, _weights(model)), "lr = 0 moves the weights"


def _resumes(make: Make, start: nn.Module, loss: Loss, steps: int, closure: Closure) -> None:
    model = copy.deepcopy(start)
    opt = make(model)
    _train(opt, model, loss, steps, closure)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = copy.deepcopy(start)
    resumed.load_state_dict(saved["model"])
    opt_resumed = make(resumed)
    opt_resumed.load_state_dict(saved["opt"])
    copied, opt_copied = copy.deepcopy((model, opt))
    pickled, opt_pickled = pickle.loads(pickle.dumps((model, opt)))
    _train(opt, model, loss, steps, closure)
    for name, twin, its in (
        ("state_dict", resumed, opt_resumed),
        ("deepcopy", copied, opt_copied),
        ("pickle", pickled, opt_pickled),
    ):
        _train(its, twin, loss, steps, closure)
        assert _same(_weights(model), _weights(twin)), f"training continues differently after {name}"
        assert _same_state(opt.state_dict()["state"], its.state_dict()["state"]), f"state differs after {name}"


def _train(opt: torch.optim.Optimizer, model: nn.Module, loss: Loss, steps: int, closure: Closure) -> None:
    for _ in range(steps):
        if closure == "none":
            opt.zero_grad()
            loss(model).backward()
            opt.step()
        else:
            opt.step(_closure(opt, model, loss, closure))


def _closure(opt: torch.optim.Optimizer, model: nn.Module, loss: Loss, kind: Closure) -> Callable[[], Any]:
    def closure() -> Tensor:
        opt.zero_grad()
        value = loss(model)
        if kind == "loss":
            value.backward()
        return value

    return closure


def _weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _same_state(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return a.keys() == b.keys() and all(
        a[p].keys() == b[p].keys()
        and all(torch.equal(torch.as_tensor(a[p][k]), torch.as_tensor(b[p][k])) for k in a[p])
        for p in a
    )
