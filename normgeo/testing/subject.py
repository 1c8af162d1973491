"""The optimizer under examination, and what all clauses do with it: make, train, compare."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from normgeo.testing.probe import Probe, probe_loss
from normgeo.testing.report import NotAsked, Refused

__all__ = ["Closure", "Group", "Loss", "Make", "Subject", "same", "same_state", "weights"]

Closure = Literal["none", "loss", "graph"]
Loss = Callable[[nn.Module], Tensor]
Make = Callable[..., torch.optim.Optimizer]
Group = Callable[[nn.Module, Sequence[str]], dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    make: Make
    model: nn.Module
    loss: Loss
    group: Group
    steps: int = 3
    decays: bool = False
    closure: Closure = "none"
    probing: bool = True
    """whether `make` takes any model, so that probes may be given to it"""

    def fresh(self, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A copy of the model and its optimizer."""
        model = copy.deepcopy(self.model if model is None else model)
        return model, self.make(model, **options)

    def takes_options(self) -> None:
        """Options are asked for only where `make` hands them on."""
        kinds = {parameter.kind for parameter in inspect.signature(self.make).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            raise NotAsked("make takes no options")

    def probe(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Subject:
        """The same optimizer on a probe of these shapes."""
        if not self.probing:
            raise NotAsked("make is for one model")
        return self.on(Probe(shapes, dtype), probe_loss)

    def on(self, model: nn.Module, loss: Loss) -> Subject:
        return Subject(self.make, model, loss, self.group, self.steps, self.decays, self.closure, self.probing)

    def train(self, opt: torch.optim.Optimizer, model: nn.Module, steps: int = 1) -> None:
        for _ in range(steps):
            if self.closure == "none":
                self.backward(opt, model)
                opt.step()
            else:
                opt.step(self.closing(opt, model))

    def backward(self, opt: torch.optim.Optimizer, model: nn.Module) -> None:
        opt.zero_grad()
        self.loss(model).backward()

    def closing(
        self, opt: torch.optim.Optimizer, model: nn.Module, scale: float = 1.0, kind: Closure | None = None
    ) -> Callable[[], Any]:
        def closure() -> Tensor:
            opt.zero_grad()
            value = scale * self.loss(model)
            if (kind or self.closure) == "loss":
                value.backward()
            return value

        return closure

    def plainly(self) -> None:
        """For clauses about gradients that are there before the step."""
        if self.closure != "none":
            raise NotAsked("its steps take a closure")


@contextmanager
def refusable(*words: str) -> Iterator[None]:
    """Inside, an error is a refusal if it says one of these words."""
    try:
        yield
    except Exception as error:
        if any(word in str(error).lower() for word in words):
            raise Refused(first_sentence(error)) from error
        raise


def first_sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ").removeprefix("AssertionError: ")


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, warnings about what the suite does on purpose are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def moved(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


def same_state(a: Any, b: Any) -> bool:
    """Equal to the bit, in whatever an optimizer keeps."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same_state, a, b))
    return bool(a == b)


def state_of(opt: torch.optim.Optimizer) -> Any:
    return copy.deepcopy(opt.state_dict()["state"])
