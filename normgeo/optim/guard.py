"""What happens when a gradient is NaN or infinite: nothing is touched, and somebody is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
        indices = [self.position.get(p, 0) for p in params]
        picked = self.finite[torch.tensor(indices, device=self.finite.device)]
        return self.finite.all().expand_as(picked) if self.together else picked


class Guard:
    """Checks the gradients of a step. "skip" drops the whole step, "zero" leaves out the parameters concerned, "raise"
    stops the program.

    On CUDA "skip" and "zero" decide on the device, without waiting, and the warning comes one step later; elsewhere, and
    for "raise", the answer is read at once.
    """

    def __init__(self, policy: Policy) -> None:
        if policy not in get_args(Policy):
            raise ValueError(f'nonfinite must be one of "skip", "zero", "raise", got {policy!r}')
        self.policy = policy
        self.skipped = 0
        self._seen = "the gradient"
        self._pending: tuple[Tensor, torch.cuda.Event | None, Callable[[], list[str]]] | None = None

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
            finite = agree(_finite(grads, loss, float("inf")))
            self._pending = (*_fetch(finite), names)
            return Verdict(True, finite, together)
        # A finite ‖g‖₂ has no NaN or Inf in it, and on CPU takes a twentieth of the time of max|g|; but it may overflow.
        if bool(agree(_finite(grads, loss, 2)).all()):
            return Verdict(True)
        if bool((finite := agree(_finite(grads, loss, float("inf")))).all()):
            return Verdict(True)
        self._tell(finite, names)
        return Verdict(not together, finite, together)

    @staticmethod
    def deferred(grad: Tensor) -> bool:
        """Whether to decide without looking."""
        return grad.is_cuda

    def report(self) -> None:
        """Warn about a step that was decided on the device, once its flags have arrived."""
        if self._pending is not None:
            (finite, arrived, names), self._pending = self._pending, None
            if arrived is not None:
                arrived.synchronize()
            if not bool(finite.all()):
                self._tell(finite, names)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pending": None}

    def _tell(self, finite: Tensor, names: Callable[[], list[str]]) -> None:
        bad = [name for name, ok in zip(names(), finite.tolist(), strict=True) if not ok]
        listed = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        fact = f"NaN or Inf in {self._seen} of {listed}"
        if self.policy == "raise":
            raise NonFiniteError(f'{fact}; no weight or state was changed. nonfinite="skip" would drop such steps')
        self.skipped += self.policy == "skip"
        done = "this step was skipped" if self.policy == "skip" else "these parameters were left out of this step"
        warnings.warn(f"{fact}: {done}, {self.skipped} skipped so far", RuntimeWarning, stacklevel=4)


def _finite(
    grads: list[Tensor], loss: Tensor | None, order: float
) -> Tensor:  # -> (p,) bool on the device of the first
    """Whether ‖g‖ is finite, and so all of g (NaN propagates, Inf stays), and the loss where a part looks at it: a step
    size would take its NaN to all parameters.
    """
    sizes = torch._foreach_norm([g if g.numel() else g.new_zeros(1) for g in grads], ord=order)
    finite = torch.stack([size.to(grads[0].device) for size in sizes]).isfinite()
    return finite if loss is None else finite & torch.as_tensor(loss).detach().isfinite().to(finite.device)


def _fetch(finite: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy for the host that is on its way, and the event that says when it has arrived."""
    if not finite.is_cuda:
        return finite, None
    copy = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return copy, arrived
