"""Dynamic budgets as directions: a causal filter on gradients, chosen by a budget from their lag moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from normgeo.budgets import (
    Budget,
    DiagonalMoment,
    DynamicDataMetric,
    FullMoment,
    IsotropicMoment,
    LagMoment,
    Moment,
    Restricted,
)
from normgeo.norms import Norm
from normgeo.optim.direction import Direction, with_axes
from normgeo.rules.base import State
from normgeo.steps import Stats

__all__ = ["Filter"]


@dataclass(frozen=True)
class Filter(Direction):
    """D[n] = Σ_{k<lags} Q[k] M[n-k], Q the budget's best filter for R[k] = E[G[n] M[n-k]ᵀ]; G the raw gradients, M what
    the rule makes of them. The filter is a memory of its own, so the rule to give with it is `Plain`, M = G; on top of
    momentum it is the best filter of the momentum.

    each: "entry" is a filter for every entry of a leaf, "leaf" one filter Q[k] = q[k]·I for each leaf, whose cost
    counts once. A family such as `OnePole(DynamicDiagonal())` is for leaves: momentum with the β that the leaf's lags
    ask for. A budget on matrices (K, d, d) gets lag moments in full. memory: the weight on the past in the averages of
    R.

    Beside the leaf this keeps `lags` gradients, and as many moments with each="entry": 2·lags + 1 times the leaf,
    against lags + 1 with each="leaf". A gradient is forgotten after so many steps, so rows of tables that are no longer
    seen stop. R holds products of gradients: of gradients beyond 1e19 or below 1e-19 they leave the range of float32.
    source="cross": R[k] = E[V[n] M[n-k]ᵀ] with the gradients V of validation data, which every step needs anew
    (`with opt.validation():`); Q then has the most power on the validation loss.
    size="norm": D is brought to norm 1 in the leaf's norm, so that lr keeps its meaning; "budget": D as it is.

    >>> import normgeo as ng
    >>> model = ng.nn.MLP(8, 16, 4)
    >>> direction = Filter(ng.budgets.OnePole(ng.budgets.DynamicDiagonal()), lags=12)
    >>> opt = ng.optimizer(model, direction=direction, rule=ng.rules.Plain())
    """

    budget: Budget | DynamicDataMetric | Restricted
    lags: int = 8
    each: Literal["entry", "leaf"] | None = None
    memory: float = 0.99
    size: Literal["norm", "budget"] = "norm"
    norm: Norm | None = None
    source: Literal["train", "cross"] = "train"

    def __post_init__(self) -> None:
        dynamic = isinstance(self.budget, Budget) and self.budget.kind == "filter"
        if not dynamic and not isinstance(self.budget, DynamicDataMetric | Restricted):
            raise TypeError(f"Filter takes a budget on filters, such as DynamicDiagonal(); got {self.budget!r}")
        if self.each not in (None, "entry", "leaf") or self.size not in ("norm", "budget"):
            raise ValueError(
                f'Filter: each must be "entry" or "leaf" and size "norm" or "budget", got {self.each!r} and {self.size!r}'
            )
        if self.source not in ("train", "cross"):
            raise ValueError(f'Filter: source must be "train" or "cross", got {self.source!r}')
        if self._matrices and self.each is not None:
            raise ValueError(f"Filter: {self.budget!r} is about matrices, so leave each={self.each!r} out")
        self._lags  # noqa: B018  says what is wrong with the rest

    @property
    def needs(self) -> Mapping[str, int]:  # type: ignore[override]
        return {} if self.source == "train" else {"validation": 1}

    def bind(self, norm: Norm) -> Direction:
        return replace(self, norm=self.norm or norm)

    def init(self, W: Tensor) -> State:
        W = with_axes(W)
        return {**self._lags.init(W), "gradient": torch.zeros_like(W)}

    def observe(self, G: Tensor, state: State, stats: Stats) -> None:
        if self.source == "cross":
            assert stats.validation is not None, "the optimizer refuses such steps"
            G = stats.validation
        state["gradient"] = with_axes(G)

    def __call__(self, M: Tensor, state: State, W: Tensor) -> Tensor:
        self._lags.observe(with_axes(M), state, state["gradient"])
        q, past = self.budget.maximizer(state["moment"]), state["past"].flatten(2)
        D = torch.einsum("nkij,nkj->ni", q, past) if self._matrices else (q * past).sum(1)
        D = D.reshape(M.shape)
        if self.size == "budget" or self.norm is None:
            return D
        length = self.norm.norm(D).reshape((-1,) + (1,) * (M.ndim - 1))
        return D / torch.where(length > 0, length, 1)

    @property
    def _matrices(self) -> bool:
        budget = self.budget.budget if isinstance(self.budget, Restricted) else self.budget
        return isinstance(budget, Budget) and budget.ndim == 3

    @property
    def _lags(self) -> LagMoment:
        one = self.each == "leaf" or (self.each is None and isinstance(self.budget, Restricted))
        moment: Moment
        if self._matrices:
            moment = FullMoment(self.memory)
        else:
            moment = IsotropicMoment(self.memory) if one else DiagonalMoment(self.memory)
        return LagMoment(self.lags, moment)
