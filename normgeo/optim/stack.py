"""The Stack: leaves of one norm, shape, dtype and device, seen by the mathematics as one tensor (n, *shape)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.constraints import Constraint
from normgeo.geometry import Leaf
from normgeo.optim.direction import Direction, Dualize
from normgeo.optim.exchange import Exchange, Task
from normgeo.optim.iterate import Iterate
from normgeo.optim.layout import Shards, Whole, layout_of
from normgeo.optim.ranks import Ranks
from normgeo.optim.shards import costly, on_shards
from normgeo.rules import Rule
from normgeo.rules.base import State
from normgeo.steps import StepSize

__all__ = ["Parts", "Stack", "at_a_time", "group_leaves"]

Store = MutableMapping[Any, dict[str, Any]]

# Entries of a stack on CPU: 1 MB in float32, the second-level cache of one core. All that happens to a leaf in a step then
# happens in the cache, and temporaries are small enough for malloc to recycle. Accelerators want whole stacks.
CACHED = 2**18
# Entries of whole leaves that come to one rank at a time: 256 MB in float32, or one leaf if that is larger. While they are
# under way the rank works on others.
WHOLE = 2**26


@dataclass(frozen=True)
class Parts:
    """What a parameter group is made to do."""

    rule: Rule
    direction: Direction | None
    step: StepSize
    iterate: Iterate
    constraint: Constraint

    def __iter__(self) -> Iterator[Any]:
        """Those that there are."""
        named = (self.rule, self.direction, self.step, self.iterate, self.constraint)
        return (part for part in named if part is not None)

    @property
    def entrywise(self) -> bool:
        """Whether, the duality map apart, a shard of a leaf is as good as the leaf."""
        each = self.rule.entrywise and self.iterate.entrywise and self.constraint.entrywise
        looks = {"moves", "updates", "closure", "hvp"} & set(self.step.needs)
        return each and self.direction is None and not looks


class Stack:
    """Reads gradients and weights of its leaves, keeps their state in stacked buffers, and writes weights back.

    The buffers' slices are what `torch.optim.Optimizer.state` holds for each parameter, so saving, loading and moving
    state are torch's own business.
    """

    def __init__(self, entries: Sequence[tuple[Parameter, Leaf]], parts: Parts, store: Store) -> None:
        self.params = [parameter for parameter, _ in entries]
        self.leaves = [leaf for _, leaf in entries]
        self.norm = self.leaves[0].norm
        self.layout = layout_of(self.params[0], self.leaves[0], parts.entrywise)
        self.rule, self.iterate, self.step = parts.rule, parts.iterate, parts.step
        self.constraint = parts.constraint.bind(self.norm)
        apart = on_shards(self.norm, self.layout, self.leaves[0].shape) if isinstance(self.layout, Shards) else None
        self.direction = (parts.direction or apart or Dualize(self.norm)).bind(self.norm)
        self.meets = (
            apart is None and parts.direction is None and (isinstance(self.layout, Shards) or costly(self.norm))
        )
        """whether whole leaves are to be dualized, each on a rank that `exchange` knows once it is set"""
        self.exchange: Exchange | None = None
        self._plain = self.layout == Whole() and all(leaf.view is None for leaf in self.leaves)
        first = self.params[0]
        self.dtype = torch.float32 if first.dtype in (torch.bfloat16, torch.float16) else first.dtype
        self.device = first.device
        self._bind(store)
        self.radius, self.all_may_move = torch.empty(0), True

    def __len__(self) -> int:
        return len(self.leaves)

    def weights(self) -> Tensor:  # (n, *shape)
        return self._read(lambda p: p).detach()

    def grads(self) -> Tensor:  # (n, *shape), 0 where there is none
        return self._read(lambda p: torch.zeros_like(p) if p.grad is None else p.grad)

    def turn(self, M: Tensor, W: Tensor) -> Task[Tensor]:
        """The direction of M."""
        if self.exchange is None:
            return self.direction(M, self.state["direction"], W)
        return (yield from self.exchange(lambda M: self.direction(M, {}, M), M))

    def present(self) -> list[bool]:
        return [p.grad is not None for p in self.params]

    def write(self, W: Tensor, where: Sequence[bool]) -> None:
        """Put the slices of W for which `where` holds back into their parameters."""
        slots = [slot for slot in zip(self.params, self.leaves, W.unbind(), where, strict=True) if slot[-1]]
        if self._plain:
            torch._foreach_copy_([p for p, *_ in slots], [w for _, _, w, _ in slots])
            return
        for p, leaf, w, _ in slots:
            self.layout.write(leaf, p, w)
        torch.autograd.graph.increment_version([p for p, *_ in slots])

    def as_parameters(self, V: Tensor) -> dict[Parameter, Tensor]:
        """V (n, *shape) as tensors in the shapes of the parameters, 0 where they have other leaves."""
        out: dict[Parameter, Tensor] = {}
        for p, leaf, v in zip(self.params, self.leaves, V.unbind(), strict=True):
            leaf.write(out.setdefault(p, torch.zeros_like(p)), v)
        return out

    def from_parameters(self, tensors: Mapping[Parameter, Tensor]) -> Tensor:  # (n, *shape), 0 where there is none
        return self._read(lambda p: tensors[p] if p in tensors else torch.zeros_like(p))

    def set_radii(self, total_mass: float) -> None:
        """r = (mass/M)·reach, with the numbers that are saved with the parameters."""
        radii = self.numbers["mass"] / total_mass * self.numbers["reach"] if total_mass else self.numbers["mass"] * 0
        shape = (len(self),) + (1,) * len(self.leaves[0].shape)
        self.radius = radii.to(self.device, self.dtype).reshape(shape)
        self.all_may_move = bool((radii > 0).all())

    def snapshot(self) -> dict[str, State]:
        return {part: {k: v.clone() for k, v in state.items()} for part, state in self.state.items()}

    def count_moves(self, new: Tensor, old: Tensor) -> None:
        """Add 1 to `moved` of the leaves that are not what they were; 16-bit weights may round a small step away."""
        written = new.to(self.params[0].dtype)
        if written.device.type == "cpu":  # there comparing and then reducing is slow, and nothing waits for the answer
            changed = [not torch.equal(a, b) for a, b in zip(written.unbind(), old.unbind(), strict=True)]
            moved = torch.tensor(changed)
        else:
            moved = (written != old).reshape(len(self), -1).any(1)
        if self.layout.ranks is not None:
            moved = self.layout.ranks.anywhere(moved)
        self.numbers["moved"] += moved

    def commit(self, before: dict[str, State] | None, alive: Tensor | None) -> None:
        """Bring what the parts assigned back into the buffers, and undo it for leaves that are not alive."""
        for part, state in self.state.items():
            for name, buffer in self._buffers[part].items():
                new = state[name]
                if alive is not None and before is not None:
                    new = torch.where(like(alive, new), new, before[part][name])
                if new is not buffer:
                    buffer.copy_(new)
                    state[name] = buffer

    def _read(self, pick: Callable[[Parameter], Tensor]) -> Tensor:
        seen = [pick(p) for p in self.params]
        if not self._plain:
            seen = [self.layout.read(leaf, tensor) for leaf, tensor in zip(self.leaves, seen, strict=True)]
        return torch.stack(seen).to(self.dtype)

    def _bind(self, store: Store) -> None:
        """Allocate the buffers, take over what the store already has, and leave their slices in the store."""
        W = self.weights()
        numbers: State = {
            "mass": torch.tensor([leaf.mass for leaf in self.leaves], dtype=torch.float64),
            "reach": torch.tensor([leaf.reach for leaf in self.leaves], dtype=torch.float64),
            "moved": torch.zeros(len(self), dtype=torch.float32, device=self.device),
        }
        self.state: dict[str, State] = {
            "rule": self.rule.init(W, self.norm.independent),
            "direction": self.direction.init(W),
            "step": self.step.init(W),
            "iterate": self.iterate.init(W),
            "constraint": self.constraint.init(W),
        }
        for part, state in [("", numbers), *self.state.items()]:
            for name, buffer in state.items():
                for slot, leaf, kept in zip(buffer, self.leaves, (store[p] for p in self.params), strict=True):
                    key = state_key(leaf, part, name)
                    if key in kept:
                        _take_over(slot, self.layout.restore(leaf, kept[key]), leaf, key)
                    kept[key] = self.layout.keep(leaf, slot)
        self.numbers = numbers
        self._buffers = {part: dict(state) for part, state in self.state.items()}


def state_key(leaf: Leaf, part: str, name: str) -> str:
    """The key of a state tensor in the optimizer's state of the leaf's parameter: "rule.momentum", "[q]rule.momentum"."""
    block = leaf.name.removeprefix(leaf.parameter)
    return f"{block}{part}.{name}" if part else f"{block}{name}"


def group_leaves(
    entries: Sequence[tuple[Parameter, Leaf]], parts: Parts, ranks: Ranks | None
) -> Iterator[list[tuple[Parameter, Leaf]]]:
    """Leaves to stack: of equal norm, shape, dtype, device and layout; on CPU no more than stay in its cache, and on many
    ranks, their own or `ranks` that share the work, no more than these should have whole at a time."""
    stacks: dict[Any, list[tuple[Parameter, Leaf]]] = {}
    for parameter, leaf in entries:
        layout = layout_of(parameter, leaf, parts.entrywise)
        key = (leaf.norm, leaf.shape, parameter.dtype, layout, parameter.device)
        stacks.setdefault(key, []).append((parameter, leaf))
    for (*_, layout, device), these in stacks.items():
        shape, sharing = these[0][1].shape, layout.ranks or ranks
        if sharing is not None:
            size = at_a_time(shape, sharing.size)
        else:
            size = max(1, CACHED // math.prod(shape)) if device.type == "cpu" else len(these)
        yield from (these[i : i + size] for i in range(0, len(these), size))


def at_a_time(shape: Sequence[int], ranks: int) -> int:
    """How many leaves of that shape ranks put together before the next ones."""
    return ranks * max(1, WHOLE // math.prod(shape))


def _take_over(slot: Tensor, saved: Tensor, leaf: Leaf, key: str) -> None:
    if saved.shape != slot.shape:
        raise ValueError(f"state {key!r} of {leaf.name} has shape {tuple(saved.shape)}, expected {tuple(slot.shape)}")
    slot.copy_(saved)


def like(alive: Tensor, x: Tensor) -> Tensor:  # (n,), (n, ...) -> (n, 1, ..., 1)
    return alive.to(x.device).reshape((-1,) + (1,) * (x.ndim - 1))
