"""State in fewer bits."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.rules.base import Rule, State

__all__ = ["Stored"]


@dataclass(frozen=True)
class Stored(Rule):
    """The rule, with those of its state tensors that have the size of the weights kept in `dtype`: half the memory in
    bfloat16. What it returns has not been rounded.

    Rounding to nearest adds to each entry of a momentum an error of 2⁻⁹/√3 of its size a step, 2⁻⁹/√(3(1-β²)) in all: .3 %
    at β = .95. Below 1-β = 2⁻⁸ small gradients would round away; such β are refused where the rule has one.

    >>> from normgeo.rules import Momentum
    >>> rule = Stored(Momentum(0.95))
    >>> rule.init(torch.zeros(1, 2))["momentum"].dtype
    torch.bfloat16
    """

    rule: Rule
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule) or not self.dtype.is_floating_point:
            raise TypeError(f"Stored takes a rule and a floating dtype, got {self.rule!r} and {self.dtype!r}")
        if 1 - getattr(self.rule, "beta", 0.0) < torch.finfo(self.dtype).eps / 2:
            raise ValueError(f"Stored: {self.rule} forgets too slowly for {self.dtype}; write dtype=torch.float32")

    @property
    def needs(self) -> Mapping[str, int]:  # type: ignore[override]
        return self.rule.needs

    @property
    def entrywise(self) -> bool:  # type: ignore[override]
        return self.rule.entrywise

    def init(self, W: Tensor, independent: int = 0) -> State:
        return {name: self._narrow(x, W) for name, x in self.rule.init(W, independent).items()}

    def update(self, G: Tensor, state: State) -> Tensor:
        wide = {name: x.to(G.dtype) if x.dtype == self.dtype else x for name, x in state.items()}
        M = self.rule.update(G, wide)
        state.update({name: self._narrow(x, G) for name, x in wide.items()})
        return M

    def _narrow(self, x: Tensor, like: Tensor) -> Tensor:
        return x.to(self.dtype) if x.shape == like.shape and x.is_floating_point() else x
