"""Budgets as directions: an operator on gradients, chosen by a budget from a moment of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from normgeo.budgets import Budget, DataMetric, DiagonalMoment, FullMoment, KroneckerMoment, Moment, on_values
from normgeo.norms import Norm
from normgeo.optim.direction import Direction, with_axes
from normgeo.rules.base import State
from normgeo.steps import Stats

__all__ = ["Operate"]

Source = Literal["train", "validation", "cross"]
FIRST = 2**62  # a period in which only the first step falls


@dataclass(frozen=True)
class Operate(Direction):
    """D = Q*·M, Q* = the budget's best operator for a moment of the raw gradients, M the smoothed gradient.

    moment: what is kept of the gradients. By default the smallest that the budget can use: Kronecker factors for leaves
    with two axes or more, the diagonal for vectors and for budgets on diagonals, all of it for budgets that are about whole
    matrices. every: the decomposition is renewed every so many steps (one for all leaves of a shape together).
    size="norm": D is brought to norm 1 in the leaf's norm, so that lr keeps its meaning and only the shape of the budget
    matters (for a matrix norm that takes singular values in every step); size="budget": D as it is. A budget on steps
    (`Step`) gives D from M itself.

    source: whose gradients the moment is of. "train": E[g gᵀ]; "cross": sym E[g vᵀ] with gradients v of validation data,
    so that ⟨Q, M⟩ is how fast the VALIDATION loss falls while steps follow training gradients; "validation": E[v vᵀ].
    `with opt.validation():` makes v, before the first step and as often as one likes: steps without leave the moment as
    it is. Of all operators in the budget the one for "cross" has the most power on validation data (Proposition 7 of the
    budget theory); directions in which the two disagree, sᵢ < 0, are not learned at all.

    >>> import normgeo as ng
    >>> model = ng.nn.MLP(8, 16, 4)
    >>> opt = ng.optimizer(model, direction=Operate(ng.budgets.DataMetric(power=1.5), every=10))
    """

    budget: Budget | DataMetric
    moment: Moment | None = None
    every: int = 1
    size: Literal["norm", "budget"] = "norm"
    norm: Norm | None = None
    source: Source = "train"

    def __post_init__(self) -> None:
        if not isinstance(self.budget, Budget | DataMetric):
            raise TypeError(f"Operate takes a normgeo.Budget, got {self.budget!r}")
        if isinstance(self.budget, Budget) and self.budget.kind == "filter":
            raise TypeError(
                f"{self.budget!r} is about filters, which need a memory; write normgeo.optim.Filter(budget)"
            )
        if self.every < 1 or self.size not in ("norm", "budget"):
            raise ValueError(
                f'Operate: every must be at least 1 and size "norm" or "budget", got {self.every} and {self.size!r}'
            )
        if self.source not in get_args(Source):
            raise ValueError(f"Operate: source must be one of {', '.join(get_args(Source))}, got {self.source!r}")
        if self.source != "train" and self._on_steps:
            raise ValueError(f"{self.budget!r} is about steps and has no moment; leave source={self.source!r} out")

    @property
    def needs(self) -> Mapping[str, int]:  # type: ignore[override]
        period = {"turn": self.every} if self.every > 1 else {}
        return period if self.source == "train" else {"validation": FIRST, **period}

    def bind(self, norm: Norm) -> Direction:
        return replace(self, norm=self.norm or norm)

    def init(self, W: Tensor) -> State:
        if self._on_steps:
            return {}
        W = with_axes(W)
        moment = self._moment(W)
        kept = moment.init(W)
        q, basis = self._best(moment, kept, W)
        return {**_named("moment", kept), **_named("basis", basis), "operator": q}

    def observe(self, G: Tensor, state: State, stats: Stats) -> None:
        if self._on_steps:
            return
        other = None
        if self.source != "train":
            if stats.validation is None:
                return
            G, other = (G, stats.validation) if self.source == "cross" else (stats.validation, None)
        G, other = with_axes(G), other if other is None else with_axes(other)
        moment, kept = self._moment(G), _part("moment", state)
        moment.observe(G, kept, other)
        state.update(_named("moment", kept))
        # Only with a period is the device asked where it is.
        if self.every == 1 or (int(kept["seen"].max()) - 1) % self.every == 0:
            q, basis = self._best(moment, kept, G)
            state.update({**_named("basis", basis), "operator": q})

    def __call__(self, M: Tensor, state: State, W: Tensor) -> Tensor:
        given, M = M.shape, with_axes(M)
        if isinstance(self.budget, Budget) and self.budget.kind == "step":
            D = self.budget.maximizer(M)
        elif state["operator"].ndim == 2:
            D = self._moment(M).apply(state["operator"], _part("basis", state), M)
        else:
            D = (state["operator"] @ M.flatten(1).unsqueeze(-1)).reshape(M.shape)
        D = D.reshape(given)
        if self.size == "budget" or self.norm is None:
            return D
        length = self.norm.norm(D).reshape((-1,) + (1,) * (D.ndim - 1))
        return D / torch.where(length > 0, length, 1)

    @property
    def _on_steps(self) -> bool:
        return isinstance(self.budget, Budget) and self.budget.kind == "step"

    def _best(self, moment: Moment, kept: Mapping[str, Tensor], like: Tensor) -> tuple[Tensor, State]:
        best = on_values(self.budget)
        if best is not None:
            values, basis = moment.spectrum(kept)
            return best(values), basis
        assert isinstance(self.budget, Budget)
        # The basis of the moment is not that of the best operator here, so the operator is kept as a matrix.
        return self.budget.maximizer(moment.matrix(kept, tuple(like.shape[1:]))), {}

    def _moment(self, W: Tensor) -> Moment:
        if self.moment is not None:
            return self.moment
        if on_values(self.budget) is None:
            return FullMoment()
        diagonal = isinstance(self.budget, Budget) and self.budget.kind == "diagonal"
        return DiagonalMoment() if diagonal or W.ndim < 3 else KroneckerMoment()


def _named(part: str, tensors: Mapping[str, Tensor]) -> State:
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def _part(part: str, state: Mapping[str, Tensor]) -> State:
    return {name.removeprefix(f"{part}."): x for name, x in state.items() if name.startswith(f"{part}.")}
