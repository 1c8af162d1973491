"""Updating each parameter inside backward(), as soon as its gradient is complete."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch.nn import Parameter

from normgeo.optim.ranks import Ranks, as_dtensor
from normgeo.optim.stack import Parts

if TYPE_CHECKING:
    from normgeo.optim.optimizer import Optimizer

__all__ = ["Hooks", "check_in_backward"]


class Hooks:
    """Calls `move(p)` once the gradient of p has been accumulated, and lets the gradient go.

    Two gradients of one parameter between two steps are refused: the first one has moved the weights already.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._hooked: set[Parameter] = set()
        self.arrived: set[Parameter] = set()
        """those that have moved since the last step"""

    def watch(self, params: Iterable[Parameter]) -> None:
        for p in params:
            if p.requires_grad and p not in self._hooked:
                p.register_post_accumulate_grad_hook(_Hook(weakref.ref(self)))
                self._hooked.add(p)

    def fire(self, p: Parameter) -> None:
        if (optimizer := self._optimizer()) is None or p.grad is None:
            return
        if p in self.arrived:
            raise RuntimeError(
                "a second backward() before opt.step(): with in_backward=True the first one has moved the weights; "
                "to accumulate gradients write in_backward=False"
            )
        with torch.no_grad():
            optimizer._move(p, first=not self.arrived)
        self.arrived.add(p)
        p.grad = None


class _Hook:
    """Does not keep the optimizer alive."""

    def __init__(self, hooks: Callable[[], Hooks | None]) -> None:
        self.hooks = hooks

    def __call__(self, p: torch.Tensor) -> None:
        if (hooks := self.hooks()) is not None and isinstance(p, Parameter):
            hooks.fire(p)

    def __deepcopy__(self, memo: object) -> _Hook:
        return _Hook(lambda: None)  # a copied parameter is nobody's


def check_in_backward(
    parts: Parts, nonfinite: str, capturable: bool, params: Iterable[torch.Tensor], ranks: Ranks | None
) -> None:
    """What has to see all gradients before the first weight moves."""
    if nonfinite != "zero":
        raise ValueError(
            f"in_backward=True moves some weights before the last gradient is known, so nonfinite={nonfinite!r}, which is "
            'about all of them, cannot be kept; write nonfinite="zero"'
        )
    if capturable:
        raise ValueError("in_backward=True and capturable=True cannot be had together; leave one of them out")
    if ranks is not None or any(as_dtensor(p) is not None for p in params):
        raise ValueError("in_backward=True does not wait for other ranks; write in_backward=False")
    for part in parts:
        if set(part.needs) - {"move", "turn"} or (part is parts.step and parts.step.init_shared()):
            raise ValueError(
                f"in_backward=True: {type(part).__name__} has to see the gradients of the whole group; "
                "write in_backward=False"
            )
