"""MetaOptimize: gradient descent on the logarithm of the step size, through all that it has done to the weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from normgeo.geometry import Leaf
from normgeo.steps.base import Move, Stats, StepSize, StepState, total
from normgeo.steps.metas import Meta, MetaAdam

__all__ = ["MetaOptimize"]

Blocks = Literal["group", "role", "leaf", "row", "weight"]


@dataclass(frozen=True)
class MetaOptimize(StepSize):
    """value = exp β_t,  z = Σ_block h·g,  β ← meta(z),  h ← γ·(1 - decay·η)·h + Δw, from β = 0 and h = 0: Algorithm 3 of
    MetaOptimize, for whatever the base update Δw is.

    h follows ∂w/∂β without second derivatives, so z is the derivative of the loss in a change of β that began in the past;
    γ = 1 is the trace without normalisation (with it the definition that is printed, which has a factor 1 - γ, is
    identically 0: erratum X4-1). `blocks` share a β: the parameter group, leaves of one role, each leaf, each row of a leaf
    (first axis), each weight, or leaves with the same value of a function of `Leaf`. A leaf that was frozen goes on from
    the β it had. `decay` repeats the strength of a `Decay` constraint. The lr is where all β start: one or two decades
    too small is fine, β gains at most `meta.rate` per step. Source: Sharifnassab et al., arXiv 2402.02342.

    >>> import normgeo as ng
    >>> step = MetaOptimize(ng.steps.MetaLion(rate=0.01), blocks="role")
    >>> opt = ng.optimizer(ng.nn.MLP(4, 8, 2), step=step, lr=1e-3)
    """

    meta: Meta = field(default_factory=MetaAdam)
    blocks: Blocks | Callable[[Leaf], str] = "group"
    gamma: float = 1.0
    decay: float = 0.0
    needs = {"moves": 1, "updates": 1}  # noqa: RUF012

    def __post_init__(self) -> None:
        if not (callable(self.blocks) or self.blocks in get_args(Blocks)):
            raise ValueError(
                f"MetaOptimize: blocks must be one of {get_args(Blocks)} or a function, got {self.blocks!r}"
            )
        if not (0 <= self.gamma <= 1 and self.decay >= 0):
            raise ValueError(
                f"MetaOptimize needs gamma in [0, 1] and decay ≥ 0, got gamma={self.gamma}, decay={self.decay}"
            )

    def init(self, W: Tensor) -> dict[str, Tensor]:
        own = {} if self.blocks == "group" else {name: self._sum(0 * W) for name in ("beta", *self.meta.names)}
        return {"h": torch.zeros_like(W), **own}

    def init_shared(self) -> dict[str, float]:
        return dict.fromkeys(("beta", *self.meta.names), 0.0) if self.blocks == "group" else {}

    def value(self, stats: Stats, state: StepState) -> Tensor | list[Tensor]:
        products = [leaf["h"] * move.G for move, leaf in zip(stats.moves, state.leaves, strict=True)]
        if self.blocks == "group":
            return self._follow(total(hg.sum() for hg in products), state.shared, stats.count)
        z = [self._sum(hg) for hg in products]
        if self.blocks not in ("leaf", "row", "weight"):
            z = self._pool(z, stats.moves)
        return [self._follow(each, leaf, stats.count) for each, leaf in zip(z, state.leaves, strict=True)]

    def follow(self, moves: Sequence[Move], state: StepState) -> None:
        for move, leaf in zip(moves, state.leaves, strict=True):
            assert move.update is not None
            assert move.eta is not None
            leaf["h"] = self.gamma * (1 - self.decay * move.eta) * leaf["h"] + move.update

    def _follow(self, z: Tensor, memory: dict[str, Tensor], count: Tensor) -> Tensor:
        """exp β of now; β moves for the next step."""
        beta = memory["beta"]
        memory["beta"] = beta + self.meta.change(z, memory, count.to(beta) + 1)
        return beta.exp()

    def _sum(self, x: Tensor) -> Tensor:  # (n, *shape) -> the shape of the blocks
        if self.blocks == "weight" or x.ndim == 1:
            return x
        if self.blocks == "row":
            return x.reshape(*x.shape[:2], -1).sum(-1).reshape(x.shape[:2] + (1,) * (x.ndim - 2))
        return x.reshape(len(x), -1).sum(1)

    def _pool(self, z: Sequence[Tensor], moves: Sequence[Move]) -> list[Tensor]:
        """Each leaf gets the sum of its block."""
        label = self.blocks if callable(self.blocks) else (lambda leaf: leaf.role)
        sums: dict[str, Tensor] = {}
        for each, move in zip(z, moves, strict=True):
            for part, leaf in zip(each.unbind(), move.leaves, strict=True):
                name = label(leaf)
                sums[name] = sums[name] + part.to(sums[name]) if name in sums else part
        return [
            torch.stack([sums[label(leaf)].to(each) for leaf in move.leaves])
            for each, move in zip(z, moves, strict=True)
        ]
