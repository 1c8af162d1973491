"""Which rank dualizes which leaf."""

from __future__ import annotations

from collections.abc import Iterable

from normgeo.optim.balance import assign, polar_flops
from normgeo.optim.exchange import Exchange
from normgeo.optim.layout import Box, Shards
from normgeo.optim.ranks import Ranks
from normgeo.optim.stack import Stack

__all__ = ["share_out"]


def share_out(stacks: Iterable[Stack], ranks: Ranks | None) -> None:
    """Give the stacks whose leaves are dualized as a whole an exchange: leaves to the ranks that have shards of them, or to
    `ranks`, by floating-point operations. Leaves of all stacks are assigned together."""
    meeting: dict[Ranks, list[Stack]] = {}
    for stack in stacks:
        group = stack.layout.ranks or ranks
        if stack.meets and group is not None and group.size > 1:
            meeting.setdefault(group, []).append(stack)
    for group, these in meeting.items():
        owners = iter(assign([polar_flops(leaf.shape) for stack in these for leaf in stack.leaves], group.size))
        for stack in these:
            shape = stack.leaves[0].shape
            layout, everything = stack.layout, Box((0,) * len(shape), shape)
            parts = layout.boxes(shape) if isinstance(layout, Shards) else [everything] * group.size
            stack.exchange = Exchange(group, parts, [next(owners) for _ in stack.leaves], shape, stack.device)
