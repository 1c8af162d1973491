"""What happens when a gradient is NaN or infinite: nothing is touched, and somebody is told."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Guard", "NonFiniteError", "Policy", "Verdict"]

Policy = Literal["skip", "zero", "raise"]


class NonFiniteError(FloatingPointError):
    """A gradient with NaN or Inf under nonfinite="raise"; no weight and no state was touched.

    >>> import normgeo as ng
    >>> layer = ng.nn.Linear(2, 2)
    >>> layer.weight.grad = torch.full((2, 2), torch.nan)
    >>> try: ng.optimizer(layer, nonfinite="raise").step()
    ... except NonFiniteError as error: print(error)
    NaN or Inf in the gradient of weight; no weight or state was changed. nonfinite="skip" would drop such steps
    """


@dataclass
class Verdict:
    """Which gradients are finite. On the host the answer is known; on an accelerator it stays there as a tensor."""

    step: bool
    """whether the step goes ahead as far as the host knows"""
    finite: Tensor | None = None
    """(p,) bool per parameter that has a gradient, or None when all are known to be finite"""
    together: bool = True
    """whether one bad gradient stops all leaves"""

    position: Mapping[Tensor, int] = field(default_factory=dict)
    """where in `finite` a parameter is"""

    def good(self, params: Sequence[Tensor]) -> Tensor | None:
        """(n,) which of these parameters may move; None means all."""
        if self.finite is None:
            return None
        if self.together:
            return self.whole.expand(len(params))
        return torch.stack([self.finite[self.position.get(p, 0)] for p in params])

    @cached_property
    def whole(self) -> Tensor:
        """() whether all of them are, asked once for all stacks."""
        assert self.finite is not None
        return self.finite.all()


class Guard:
    """Checks the gradients of a step. "skip" drops the whole step, "zero" leaves out the parameters concerned, "raise"
    stops the program.

    On CUDA "skip" and "zero" decide on the device, without waiting, and the warning comes with the first step that finds
    the flags there; elsewhere, and for "raise", the answer is read at once. `capturable`: no step reads anything; bad
    steps are counted on the device until `report` is asked to wait.
    """

    def __init__(self, policy: Policy, capturable: bool = False) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f'nonfinite must be one of "skip", "zero", "raise", got {policy!r}')
        if capturable and policy == "raise":
            raise ValueError('capturable=True cannot raise in a step; write nonfinite="skip" or "zero"')
        self.policy, self.capturable = policy, capturable
        self.skipped = 0
        self._seen = "the gradient"
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, Callable[[], list[str]]]] = deque()
        self._bad: tuple[Tensor, Tensor, Callable[[], list[str]]] | None = None

    def __call__(
        self,
        names: Callable[[], list[str]],
        grads: list[Tensor],
        loss: Tensor | None = None,
        agree: Callable[[Tensor], Tensor] = lambda flags: flags,
    ) -> Verdict:
        """`agree` makes of the flags of one rank those of all."""
        self.report()
        if not grads:
            return Verdict(step=False)
        self._seen = "the gradient" if loss is None else "the loss or the gradient"
        together = self.policy != "zero"
        if self.policy != "raise" and self.deferred(grads[0]):
            finite = agree(_finite(grads, loss, _largest))
            if self.capturable:
                self._count(finite, names)
            else:
                self._pending.append((*_fetch(finite), names))
            return Verdict(True, finite, together)
        # A finite sum has no NaN or Inf in it, and on CPU takes a thirtieth of the time of max|g|; but it may overflow.
        if bool(agree(_finite(grads, loss, _sums)).all()):
            return Verdict(True)
        if bool((finite := agree(_finite(grads, loss, _largest))).all()):
            return Verdict(True)
        self._tell(finite, names)
        return Verdict(not together, finite, together)

    def deferred(self, grad: Tensor) -> bool:
        """Whether to decide without looking."""
        return self.capturable or grad.is_cuda

    def report(self, wait: bool = False) -> None:
        """Warn about steps that were decided on the device and whose flags have arrived; about all of them after a wait."""
        while self._pending and (wait or (event := self._pending[0][1]) is None or event.query()):
            finite, arrived, names = self._pending.popleft()
            if arrived is not None:
                arrived.synchronize()
            if not bool(finite.all()):
                self._tell(finite, names)
        if wait and self._bad is not None:
            steps, counts, names = self._bad
            new = int(steps)
            if new:
                self.skipped += (new - 1) * (self.policy == "skip")
                self._tell(counts == 0, names)
                steps.zero_()
                counts.zero_()

    def _count(self, finite: Tensor, names: Callable[[], list[str]]) -> None:
        """In tensors that stay, for graphs that are replayed."""
        if self._bad is None or len(self._bad[1]) != len(finite):
            self._bad = torch.zeros((), device=finite.device), torch.zeros(len(finite), device=finite.device), names
        self._bad[0].add_(~finite.all())
        self._bad[1].add_(~finite)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pending": deque(), "_bad": None}

    def _tell(self, finite: Tensor, names: Callable[[], list[str]]) -> None:
        bad = [name for name, ok in zip(names(), finite.tolist(), strict=True) if not ok]
        listed = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        fact = f"NaN or Inf in {self._seen} of {listed}"
        if self.policy == "raise":
            raise NonFiniteError(f'{fact}; no weight or state was changed. nonfinite="skip" would drop such steps')
        self.skipped += self.policy == "skip"
        done = "this step was skipped" if self.policy == "skip" else "these parameters were left out of this step"
        warnings.warn(f"{fact}: {done}, {self.skipped} skipped so far", RuntimeWarning, stacklevel=4)


def _sums(grads: list[Tensor]) -> list[Tensor]:
    return [g.sum() for g in grads]


def _largest(grads: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_norm([g if g.numel() else g.new_zeros(1) for g in grads], ord=float("inf")))


def _finite(
    grads: list[Tensor], loss: Tensor | None, measure: Callable[[list[Tensor]], list[Tensor]]
) -> Tensor:  # -> (p,) bool on the device of the first
    """Whether numbers into which NaN and Inf of gradients propagate are finite, and the loss where a part looks at it: a
    step size would take its NaN to all parameters.
    """
    numbers, device = measure(grads), grads[0].device
    finite = torch.stack([x if x.device == device else x.to(device) for x in numbers]).isfinite()
    return finite if loss is None else finite & torch.as_tensor(loss).detach().isfinite().to(finite.device)


def _fetch(finite: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy for the host that is on its way, and the event that says when it has arrived."""
    if not finite.is_cuda:
        return finite, None
    copy = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived
