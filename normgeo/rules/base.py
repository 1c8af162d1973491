"""The Rule: gradients in, a smoothed gradient out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from normgeo.linalg import host_sees

__all__ = ["Rule", "State", "drop_stale"]

State = dict[str, Tensor]
"""What a part of the optimizer remembers about a stack of n leaves: name -> tensor with a leading axis of length n. The
names, shapes and dtypes that `init` returns stay; a part may change the tensors in place or assign others instead."""


class Rule(ABC):
    """Smooths the gradients G (n, *shape) of a stack of n leaves of one shape; instances are frozen dataclasses.

    The optimizer stores what `init` returns with the parameters, so it is saved, moved and resumed with them. `update`
    may change state in place or assign new tensors to its keys. `needs` names what the part wants beyond gradients and
    how often, in steps, for instance {"loss": 1} or {"hvp": 10}.

    >>> class Sum(Rule):
    ...     def init(self, W, independent=0): return {"total": torch.zeros_like(W)}
    ...     def update(self, G, state): return state["total"].add_(G)
    >>> rule, W = Sum(), torch.zeros(1, 2)
    >>> state = rule.init(W)
    >>> [rule.update(torch.ones(1, 2), state).tolist() for _ in range(2)]
    [[[1.0, 1.0]], [[2.0, 2.0]]]
    """

    needs: Mapping[str, int] = {}
    entrywise = False
    """whether every entry (every slice, along the independent axes) is smoothed on its own, so that a shard of a leaf is as
    good as the leaf; of other rules a sharded leaf is seen whole, on every rank"""

    def init(self, W: Tensor, independent: int = 0) -> State:  # W (n, *shape)
        """State for weights W. `independent` axes after the first index slices that are dualized each on its own."""
        return {}

    @abstractmethod
    def update(self, G: Tensor, state: State) -> Tensor:  # (n, *shape) -> (n, *shape)
        """The smoothed gradient M. It may be state itself: nobody else writes to it."""

    def still(self, state: State) -> Tensor | None:  # (n, *shape)
        """A gradient at which `update` leaves the state as it is, to the bit, if there is one. Where only the device knows
        whether a gradient is finite, it takes the place of a bad one; otherwise the state is copied in every step."""
        return None


def drop_stale(momentum: Tensor, G: Tensor, age: Tensor, memory: float | Tensor) -> None:
    """Keep in `age` how many steps ago each slice last had a gradient; where that is `memory` steps or more, momentum ← 0.

    A duality map moves every row of a table by a full radius, whether its momentum is 1 or 1e-30; with the weight β on
    the past, a row seen once would drift for 1700 steps (β = .95) until it underflows. Dropping it after 1/(1-β) steps
    bounds what one sighting can move to 1/(1-β) radii, the distance that plain gradient descent would move it.
    """
    seen = _seen(G, tuple(range(age.ndim, G.ndim)))
    age.add_(1).masked_fill_(seen, 0)
    # 1/(1-.95) is 19.999999999999982 in binary; the tolerance keeps the twentieth step.
    fresh = age <= memory - 1 + 1e-6
    if not (host_sees(fresh) and fresh.all()):
        momentum.mul_(fresh.reshape(fresh.shape + (1,) * (G.ndim - age.ndim)))


def _seen(G: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Whether a slice has an entry that is not 0."""
    if not axes:
        return G != 0
    if not host_sees(G):
        return torch.linalg.vector_norm(G, torch.inf, dim=axes) != 0
    # On CPU max takes a tenth of the time of max|·|, and of (G != 0).any(); min is for slices without a positive entry.
    seen = G.amax(axes) != 0
    return seen if seen.all() else seen | (G.amin(axes) != 0)


def never(W: Tensor, independent: int) -> Tensor:
    """The age of slices that no gradient has reached yet."""
    return torch.full(W.shape[: 1 + independent], torch.inf, dtype=torch.float32, device=W.device)
