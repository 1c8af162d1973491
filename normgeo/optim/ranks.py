"""Ranks: the processes that train one network together, and what they have to agree on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import DeviceMesh, ProcessGroup
    from torch.distributed.tensor import DTensor

__all__ = ["Ranks", "agree", "as_dtensor", "check_ranks", "mean", "ranks_of", "talking"]


@dataclass(frozen=True)
class Ranks:
    """A process group. Ranks are counted inside it, from 0."""

    group: ProcessGroup

    @property
    def size(self) -> int:
        return distributed.get_world_size(self.group)

    @property
    def me(self) -> int:
        return distributed.get_rank(self.group)

    def anywhere(self, flags: Tensor) -> Tensor:
        """Which of the flags are set on at least one rank."""
        return self._reduce(flags, distributed.ReduceOp.MAX)

    def everywhere(self, flags: Tensor) -> Tensor:
        """Which of the flags are set on all ranks."""
        return self._reduce(flags, distributed.ReduceOp.MIN)

    def mean(self, x: Tensor) -> Tensor:
        x = x.detach().clone()
        with talking(self):
            distributed.all_reduce(x, group=self.group)
        return x / self.size

    def each(self, x: Tensor) -> Tensor:  # (*shape) -> (ranks, *shape)
        """x of every rank."""
        out = [torch.empty_like(x) for _ in range(self.size)]
        with talking(self):
            distributed.all_gather(out, x.contiguous(), group=self.group)
        return torch.stack(out)

    def _reduce(self, flags: Tensor, how: Any) -> Tensor:
        numbers = flags.to(torch.uint8)
        with talking(self):
            distributed.all_reduce(numbers, how, group=self.group)
        return numbers.to(flags.dtype)


@contextmanager
def talking(ranks: Ranks) -> Iterator[None]:
    """Say what it means when the others do not answer."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {ranks.me} of {ranks.size} lost the others in the middle of an optimizer step: one of them has stopped, "
            "or takes another path through the program. The weights may be between two steps; start all ranks again from "
            f"the last checkpoint. ({error})"
        ) from error


def ranks_of(where: ProcessGroup | DeviceMesh) -> Ranks:
    """All ranks of a mesh or of a process group."""
    if not hasattr(where, "mesh_dim_names"):
        return Ranks(where)
    return _of_mesh(where)


@lru_cache(maxsize=64)
def _of_mesh(mesh: DeviceMesh) -> Ranks:
    if mesh.ndim == 1:
        return Ranks(mesh.get_group())
    world = distributed.group.WORLD
    if world is not None and mesh.size() == distributed.get_world_size():
        return Ranks(world)
    return Ranks(mesh._flatten().get_group())


def check_ranks(parts: Iterable[Any], together: Sequence[Ranks]) -> None:
    """Refuse parts that would see something else on every rank."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    for part in parts:
        if "hvp" in part.needs:
            raise ValueError(
                f"{type(part).__name__} needs second derivatives, which no wrapper averages over ranks; use it on one rank"
            )
        if {"loss", "closure"} & set(part.needs) and not together:
            raise ValueError(
                f"{type(part).__name__} needs the loss, and every rank has its own; say who trains together: "
                "plan.optimizer(model, ..., ranks=torch.distributed.group.WORLD)"
            )


def agree(ranks: Iterable[Ranks], flags: Tensor) -> Tensor:
    """The flags that are set on all ranks of each of these groups."""
    for each in ranks:
        flags = each.everywhere(flags)
    return flags


def mean(ranks: Sequence[Ranks], x: Tensor) -> Tensor:
    """The mean over the ranks of these groups. Where one group is a part of another, it has been averaged already."""
    for each in ranks:
        x = each.mean(x)
    return x


def as_dtensor(tensor: Tensor) -> DTensor | None:
    """The tensor if it is a DTensor. Whoever has one has imported them; others need not wait for that import."""
    module = sys.modules.get("torch.distributed.tensor")
    return tensor if module is not None and isinstance(tensor, module.DTensor) else None
