"""Products: a schedule times a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from normgeo.steps.base import Move, Stats, StepSize, StepState

__all__ = ["Product"]


@dataclass(frozen=True, repr=False)
class Product(StepSize):
    """value = left.value · right.value; each keeps its own state. `Warmup(20) * rule` writes it.

    >>> import torch
    >>> from normgeo.steps import Cosine, Linear
    >>> (Linear(4) * Cosine(4)).value(Stats(torch.tensor(2.0)), StepState())
    tensor(0.2500)
    """

    left: StepSize
    right: StepSize

    @property
    def needs(self) -> Mapping[str, int]:  # type: ignore[override]
        """What one or the other needs, as often as the one that needs it more."""
        both = (self.left.needs, self.right.needs)
        return {name: min(n[name] for n in both if name in n) for name in {**both[0], **both[1]}}

    def init(self, W: Tensor) -> dict[str, Tensor]:
        return _join(self.left.init(W), self.right.init(W))

    def init_shared(self) -> dict[str, float]:
        return _join(self.left.init_shared(), self.right.init_shared())

    def value(self, stats: Stats, state: StepState) -> Tensor | Sequence[Tensor]:
        values = []
        for side, part in (("left", self.left), ("right", self.right)):
            its = _side(state, side)
            values.append(part.value(stats, its))
            _put_back(state, its, side)
        return _times(*values)

    def follow(self, moves: Sequence[Move], state: StepState) -> None:
        for side, part in (("left", self.left), ("right", self.right)):
            its = _side(state, side)
            part.follow(moves, its)
            _put_back(state, its, side)

    def __repr__(self) -> str:
        return f"{self.left!r} * {self.right!r}"


def _times(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(a, Tensor):
        return a * b if isinstance(b, Tensor) else [a * y for y in b]
    if isinstance(b, Tensor):
        return [x * b for x in a]
    return [_wide(x, y) * _wide(y, x) for x, y in zip(a, b, strict=True)]


def _wide(x: Tensor, other: Tensor) -> Tensor:  # (n,) -> (n, 1, ..., 1) beside a value per row or per weight
    return x.reshape(x.shape + (1,) * (other.ndim - x.ndim))


def _join(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {f"left.{k}": v for k, v in left.items()} | {f"right.{k}": v for k, v in right.items()}


def _side(state: StepState, side: str) -> StepState:
    def mine(d: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k.removeprefix(f"{side}."): v for k, v in d.items() if k.startswith(f"{side}.")}

    return StepState(mine(state.shared), [mine(leaf) for leaf in state.leaves])


def _put_back(state: StepState, its: StepState, side: str) -> None:
    for whole, part in ((state.shared, its.shared), *zip(state.leaves, its.leaves, strict=True)):
        whole.update({f"{side}.{k}": v for k, v in part.items()})
