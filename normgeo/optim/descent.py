"""W ← W - η·D - d·W for numbers that the host knows: one pass over memory, by torch's kernel of SGD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["InPlace", "Step", "descend"]

Step = tuple[float, float] | None
"""(η, d) of one leaf with η > 0, or None where it stays"""

SAMPLED = 64


def descend(W: Sequence[Tensor], D: Sequence[Tensor], steps: Sequence[Step]) -> None:
    """All W (and D) contiguous and of one size."""
    for step in dict.fromkeys(steps):
        if step is not None:
            these = [i for i, its in enumerate(steps) if its == step]
            _descend([W[i] for i in these], [D[i] for i in these], *step)


class InPlace:
    """`descend` for parameters where they are, and which of them have another entry afterwards.

    That is seen in some entries from all over each, through views that are good while parameters stay where they are.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = params
        self._at: list[int] = []
        self._some: list[Tensor] = []

    def __call__(self, D: Sequence[Tensor], steps: Sequence[Step]) -> list[bool]:
        before = self._samples()
        descend(self.params, D, steps)
        moved: list[bool] = (before != self._samples()).any(1).tolist()
        torch.autograd.graph.increment_version(
            [p for p, step in zip(self.params, steps, strict=True) if step is not None]
        )
        # Where these have stayed, the others are asked whether the same step would move them again, which differs only for
        # steps of half a last digit.
        return [
            step is not None and (yes or (p.numel() > before.shape[1] and _would_move(p, d, *step)))
            for yes, p, d, step in zip(moved, self.params, D, steps, strict=True)
        ]

    def _samples(self) -> Tensor:  # (n, k)
        at = [p.data_ptr() for p in self.params]
        if at != self._at:
            self._at = at
            self._some = [p.detach().view(-1)[:: max(1, p.numel() // SAMPLED)] for p in self.params]
        return torch.stack(self._some)


def _descend(W: list[Tensor], D: list[Tensor], eta: float, d: float) -> None:
    decay = d / eta
    if abs(decay) > 2.0**100:  # of a leaf of next to no mass: a quotient that float32 may not have
        torch._foreach_mul_(W, 1 - d)
        decay = 0.0
    torch._fused_sgd_(
        W,
        D,
        [],
        weight_decay=decay,
        momentum=0.0,
        lr=eta,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _would_move(W: Tensor, D: Tensor, eta: float, d: float) -> bool:
    """Whether W + η·D + d·W differs from W anywhere."""
    return not torch.equal(W, torch.add(torch.add(W, W, alpha=d), D, alpha=eta))
