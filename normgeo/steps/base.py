"""The StepSize: how far to go along the unit direction, as a factor on the group's lr."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from normgeo.geometry import Leaf
from normgeo.norms import Norm

__all__ = ["Move", "Stats", "StepSize", "StepState"]


@dataclass
class Move:
    """One stack of n leaves of one shape in the middle of a step; every tensor is (n, *shape)."""

    G: Tensor
    """gradients"""
    M: Tensor
    """smoothed gradients"""
    D: Tensor
    """unit directions: the update is W ← W - η·radius·D"""
    W: Tensor
    """weights before the step"""
    radius: Tensor
    """(n, 1, ..., 1), the radius of each leaf"""
    leaves: Sequence[Leaf] = ()
    """who they are: name, role, norm"""
    update: Tensor | None = None
    """what was added to the weights; set once they are written, for parts that need "updates\""""
    eta: Tensor | None = None
    """η of that step, lr included, broadcastable to the weights; set with `update`"""

    @property
    def norm(self) -> Norm:
        """The norm that all leaves of the stack have."""
        return self.leaves[0].norm

    def dual_norm(self) -> Tensor:  # () the part of ‖M‖* in the modular norm that these leaves contribute
        return (self.M * self.D * self.radius).sum()

    def along(self, living: Tensor | None = None) -> Tensor:  # (n, *shape)
        """u = r·D, the way that the weights go; 0 for leaves that are not `living` (n,)."""
        u = self.radius * self.D
        return u if living is None else torch.where(living.to(u.device).reshape(self.radius.shape), u, 0)

    def slope(self) -> Tensor:  # () the part of ⟨G, r·D⟩ that these leaves contribute
        return (self.G * self.D * self.radius).sum()


@dataclass
class Stats:
    """What a step size may look at. Fields that it did not ask for in `needs` are None or empty.

    >>> import torch
    >>> Stats(count=torch.tensor(3.0)).loss is None
    True
    """

    count: Tensor
    """() how many steps the group has completed"""
    loss: Tensor | None = None
    """() from the closure, for needs = {"loss": 1}"""
    moves: Sequence[Move] = ()
    """all stacks of the group, for needs = {"moves": 1}; the stack at hand, for needs = {"move": 1}"""
    hvp: Callable[[Tensor], Tensor] | None = None
    """V (n, *shape) -> HV for the stack at hand, only in `observe` of a direction, for needs = {"hvp": k} every k steps"""
    validation: Tensor | None = None
    """(n, *shape) validation gradients of the stack at hand, if there are new ones (`Optimizer.validation`); only in
    `observe` of a direction, for needs = {"validation": k}: every k-th step is refused without"""
    hessian: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
    """[V for each move] -> [HV], H the Hessian of the group; only in `value`, for needs = {"hvp": k, "moves": 1}, in
    every k-th step"""
    line: Callable[[Tensor | float], tuple[Tensor, Tensor]] | None = None
    """η -> (loss, its derivative in η) at the weights W - η·r·D (before any constraint), for needs = {"closure": k,
    "moves": 1}; the closure runs for every η but 0. None in steps between the k-th ones."""
    turn: int = 0
    """how many steps the group has completed as the host knows it, for what is done every k steps; `count` leaves out those
    that the device skipped"""

    @property
    def dual_norm(self) -> Tensor:  # ()
        """‖M‖* = Σ radius·⟨M, dualize(M)⟩ over the group, for needs = {"moves": 1}."""
        if not self.moves:
            raise RuntimeError('dual_norm is known only to a step size that declares needs = {"moves": 1}')
        return total(move.dual_norm() for move in self.moves)

    @property
    def slope(self) -> Tensor:  # ()
        """Σ ⟨G, radius·D⟩: how fast the loss of this batch falls along the direction, for needs = {"moves": 1}."""
        if not self.moves:
            raise RuntimeError('slope is known only to a step size that declares needs = {"moves": 1}')
        return total(move.slope() for move in self.moves)


@dataclass
class StepState:
    """What a step size remembers: scalars that the group shares, and tensors per leaf in the order of `Stats.moves`.

    >>> StepState().shared
    {}
    """

    shared: dict[str, Tensor] = field(default_factory=dict)
    leaves: Sequence[dict[str, Tensor]] = ()


class StepSize(ABC):
    """A rule for the size of the step: η = lr · value, with the lr of the parameter group.

    `value` returns a 0-D tensor, or a list with one tensor per move: (n,) for a size per leaf, or any shape (n, ...) that
    broadcasts against the weights (n, *shape) for a size per row or per weight. It works in tensors, so that nothing
    waits for the device and a new value never recompiles; only searches along `stats.line` look at what they find. A
    larger `needs` is a cost: "moves" keeps every direction of the group in memory at once, "updates" a copy of the
    weights, "hvp" the graph of the gradients, "closure" further evaluations of the loss. With "move", for rules that
    share nothing between leaves, `value` is called for each stack in its turn, with one move; in a product with a rule
    that does, or that needs "moves", it is called once, with all.

    >>> import torch
    >>> class TrustRegion(StepSize):
    ...     needs = {"moves": 1}
    ...     def value(self, stats, state): return stats.dual_norm.clamp(max=1.0)
    >>> one = torch.ones(1, 4)
    >>> TrustRegion().value(Stats(torch.tensor(0.0), moves=[Move(one, one, one, one, 0.1 * one)]), StepState())
    tensor(0.4000, dtype=torch.float64)
    """

    needs: Mapping[str, int] = {}

    def init(self, W: Tensor) -> dict[str, Tensor]:  # W (n, *shape)
        """State per leaf."""
        return {}

    def init_shared(self) -> dict[str, float]:
        """State of the whole group: numbers, kept as 0-D float64 tensors."""
        return {}

    @abstractmethod
    def value(self, stats: Stats, state: StepState) -> Tensor | Sequence[Tensor]:
        """The factor on lr for this step."""

    def follow(self, moves: Sequence[Move], state: StepState) -> None:
        """See what was written (`move.update`), for needs = {"updates": 1}."""
        return

    def __mul__(self, other: StepSize) -> StepSize:
        """(a * b).value = a.value · b.value."""
        from normgeo.steps.product import Product

        return Product(self, other)


def total(parts: Iterable[Tensor]) -> Tensor:  # -> () float64
    """The sum of 0-D tensors of a group, wherever they are."""
    first, *rest = (part.double() for part in parts)
    for part in rest:
        first = first + part.to(first.device)
    return first
