"""The Layout: how a leaf lies on the ranks, and what of it one rank sees."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from normgeo.geometry import Leaf
from normgeo.optim.ranks import Ranks, as_dtensor, ranks_of

__all__ = ["Box", "Gathered", "Layout", "Shards", "Whole", "box_here", "boxes", "layout_of", "local"]


@dataclass(frozen=True)
class Box:
    """A part of a tensor: where it starts and how long it is on every axis.

    >>> Box((2, 0), (1, 3)).of(torch.arange(9).reshape(3, 3))
    tensor([[6, 7, 8]])
    """

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))

    @property
    def entries(self) -> int:
        return math.prod(self.size)

    def of(self, whole: Tensor) -> Tensor:
        return whole[self.slices]

    def along(self, axes: Sequence[int]) -> Box:
        return Box(tuple(self.start[a] for a in axes), tuple(self.size[a] for a in axes))


class Layout(ABC):
    """Reads leaves from tensors like their parameter (the weight, its gradient) and writes them back. Instances are
    values: leaves of equal layout can be stacked."""

    @property
    def ranks(self) -> Ranks | None:
        """The ranks that the leaf is spread over."""
        return None

    @abstractmethod
    def read(self, leaf: Leaf, stored: Tensor) -> Tensor:
        """What this rank sees of the leaf."""

    @abstractmethod
    def write(self, leaf: Leaf, stored: Tensor, seen: Tensor) -> None:
        """Put it back."""

    def keep(self, leaf: Leaf, slot: Tensor) -> Tensor:
        """A leaf's state as checkpoints have it; it shares memory with `slot`."""
        return slot

    def restore(self, leaf: Leaf, saved: Tensor) -> Tensor:
        """This rank's part of a state tensor from a checkpoint."""
        sharded = as_dtensor(saved)
        return saved if sharded is None else sharded.full_tensor()


@dataclass(frozen=True)
class Whole(Layout):
    """Every rank has the parameter."""

    def read(self, leaf: Leaf, stored: Tensor) -> Tensor:
        return leaf.read(stored)

    def write(self, leaf: Leaf, stored: Tensor, seen: Tensor) -> None:
        leaf.write(stored, seen)


@dataclass(frozen=True)
class Gathered(Layout):
    """Ranks have shards of the parameter, and every rank sees the whole leaf and keeps all of its state: right for every
    part of the optimizer, and as expensive as without sharding."""

    mesh: Any

    @property
    def ranks(self) -> Ranks:
        return ranks_of(self.mesh)

    def read(self, leaf: Leaf, stored: Tensor) -> Tensor:
        return leaf.read(_full(stored))

    def write(self, leaf: Leaf, stored: Tensor, seen: Tensor) -> None:
        whole = seen
        if leaf.view is not None:  # the rest of the parameter is another leaf's
            whole = _full(stored).clone()
            leaf.write(whole, seen)
        local(stored).copy_(box_here(stored).of(whole))


@dataclass(frozen=True)
class Shards(Layout):
    """Ranks have shards of the leaf, and each sees its own."""

    mesh: Any
    placements: tuple[Any, ...]
    order: tuple[int, ...]
    """the parameter's axes in the order of the leaf's"""

    @property
    def ranks(self) -> Ranks:
        return ranks_of(self.mesh)

    @property
    def split(self) -> set[int]:
        """The axes of the leaf that are cut."""
        return {self.order.index(p.dim) for p in self.placements if not p.is_replicate()}

    def boxes(self, shape: Sequence[int]) -> list[Box]:
        """The part of a leaf of that shape that each rank has."""
        mesh, stored = self.mesh.mesh, self._stored(shape)
        where = dict(zip(mesh.flatten().tolist(), boxes(stored, mesh.shape, self.placements), strict=True))
        everyone = torch.distributed.get_process_group_ranks(self.ranks.group)
        return [where[rank].along(self.order) for rank in everyone]

    def read(self, leaf: Leaf, stored: Tensor) -> Tensor:
        return local(stored, self.placements).permute(self.order)

    def write(self, leaf: Leaf, stored: Tensor, seen: Tensor) -> None:
        local(stored, self.placements).permute(self.order).copy_(seen)

    def keep(self, leaf: Leaf, slot: Tensor) -> Tensor:
        if slot.ndim == 0:
            return slot
        from torch.distributed.tensor import DTensor

        shape = torch.Size(leaf.shape[: slot.ndim])
        if max(self.split, default=0) >= slot.ndim or slot.shape != self._box(leaf).size[: slot.ndim]:
            raise ValueError(
                f"a part keeps state of shape {tuple(slot.shape)} for {leaf.name}, of which this rank sees a shard: parts "
                "that say entrywise=True keep tensors of the leaf's own shape, or one number for each leaf"
            )
        strides = torch.empty(shape, device="meta").stride()
        placements = self._placements
        return DTensor.from_local(slot, self.mesh, placements, run_check=False, shape=shape, stride=strides)

    def restore(self, leaf: Leaf, saved: Tensor) -> Tensor:
        sharded = as_dtensor(saved)
        if sharded is not None:
            if sharded.device_mesh == self.mesh:
                return sharded.redistribute(placements=self._placements).to_local()
            saved = sharded.full_tensor()
        if saved.ndim and tuple(saved.shape) == leaf.shape[: saved.ndim]:
            box = self._box(leaf)
            return Box(box.start[: saved.ndim], box.size[: saved.ndim]).of(saved)
        return saved

    @property
    def _placements(self) -> list[Any]:
        """Those of a tensor with the axes of the leaf."""
        from torch.distributed.tensor import Replicate, Shard

        if self.order == tuple(range(len(self.order))):
            return list(self.placements)
        return [Replicate() if p.is_replicate() else Shard(self.order.index(p.dim)) for p in self.placements]

    def _box(self, leaf: Leaf) -> Box:
        """The part that this rank has."""
        here, mesh = self.mesh.get_coordinate(), self.mesh.mesh
        return box(self._stored(leaf.shape), mesh.shape, self.placements, here).along(self.order)

    def _stored(self, shape: Sequence[int]) -> list[int]:
        return [shape[self.order.index(axis)] for axis in range(len(shape))]


def layout_of(parameter: Tensor, leaf: Leaf, entrywise: bool) -> Layout:
    """The layout for a leaf that is treated entry by entry, its duality map apart, or else as a whole."""
    sharded = as_dtensor(parameter)
    if sharded is None:
        return Whole()
    order = _order(leaf)
    box_here(sharded)
    placements = tuple(sharded.placements)
    if not entrywise or order is None or (order != tuple(sorted(order)) and _strided(placements)):
        return Gathered(sharded.device_mesh)
    shards = Shards(sharded.device_mesh, placements, order)
    # Rules are told about independent slices, which must then be on one rank each.
    cut = shards.split and leaf.norm.independent and max(shards.split) >= leaf.norm.independent
    return Gathered(sharded.device_mesh) if cut else shards


def _order(leaf: Leaf) -> tuple[int, ...] | None:
    """The parameter's axes in the order of the leaf's, if the leaf is all of the parameter with its axes rearranged."""
    if leaf.view is None:
        return tuple(range(len(leaf.shape)))
    if leaf.view.block is not None or leaf.view.span is not None or "(" in leaf.view.pattern:
        return None
    stored, seen = (side.split() for side in leaf.view.pattern.split("->"))
    return tuple(stored.index(axis) for axis in seen)


def _strided(placements: Sequence[Any]) -> list[int]:
    return [axis for axis, p in enumerate(placements) if hasattr(p, "split_factor")]


def boxes(shape: Sequence[int], mesh: Sequence[int], placements: Sequence[Any]) -> list[Box]:
    """The part of a tensor that each coordinate of a mesh has, in row-major order.

    >>> from torch.distributed.tensor import Shard
    >>> [box.size for box in boxes((5, 3), (4,), [Shard(0)])]
    [(2, 3), (2, 3), (1, 3), (0, 3)]
    """
    return [box(shape, mesh, placements, here) for here in product(*map(range, mesh))]


def box(shape: Sequence[int], mesh: Sequence[int], placements: Sequence[Any], here: Sequence[int]) -> Box:
    """The part at one coordinate. An axis that is cut n times is cut into pieces of ⌈length/n⌉, the last ones shorter or
    empty. Mesh axes cut from left to right, but what `fully_shard` cuts of an axis that tensor parallelism has cut before
    (a strided shard) comes last."""
    strided = _strided(placements)
    plain = [axis for axis, p in enumerate(placements) if p.is_shard() and axis not in strided]
    if len(strided) > 1 or any(p.is_partial() for p in placements):
        raise ValueError(f"the optimizer does not know shards like {tuple(placements)}")
    start, size = [0] * len(shape), list(shape)
    for axis in plain + strided:
        dim, pieces = placements[axis].dim, mesh[axis]
        piece = -(-size[dim] // pieces)
        first = min(here[axis] * piece, size[dim])
        start[dim] += first
        size[dim] = min(piece, size[dim] - first)
    return Box(tuple(start), tuple(size))


def box_here(tensor: Any) -> Box:
    """The part of a DTensor that this rank has."""
    mesh, found = tensor.device_mesh, tuple(tensor.to_local().shape)
    expected = box(tuple(tensor.shape), mesh.mesh.shape, tensor.placements, mesh.get_coordinate())
    if expected.size != found:
        raise ValueError(
            f"the optimizer expected a shard of shape {expected.size} and found {found}: it does not know shards like "
            f"{tensor.placements} of {tuple(tensor.shape)}"
        )
    return expected


def local(tensor: Tensor, placements: Sequence[Any] | None = None) -> Tensor:
    """This rank's part of a DTensor, brought to `placements` first; other tensors as they are."""
    sharded = as_dtensor(tensor)
    if sharded is None:
        return tensor
    if placements is not None and tuple(sharded.placements) != tuple(placements):
        sharded = sharded.redistribute(placements=placements)
    return sharded.to_local()


def _full(tensor: Tensor) -> Tensor:
    sharded = as_dtensor(tensor)
    return tensor if sharded is None else sharded.full_tensor()
