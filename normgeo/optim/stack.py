"""The Stack: leaves seen by the mathematics as one tensor (n, *shape)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.constraints import Constraint, Pull, Rate
from normgeo.geometry import Leaf
from normgeo.optim.descent import InPlace, Step, descend
from normgeo.optim.direction import Direction, Dualize
from normgeo.optim.exchange import Exchange, Task
from normgeo.optim.fused import Fused, settle
from normgeo.optim.iterate import Descent, Iterate
from normgeo.optim.layout import Shards, Whole, layout_of
from normgeo.optim.place import Bunch, most_entries
from normgeo.optim.shards import costly, on_shards
from normgeo.rules import Rule
from normgeo.rules.base import State
from normgeo.steps import StepSize

__all__ = ["Parts", "Stack"]

Store = MutableMapping[Any, dict[str, Any]]


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

    def ask(self, *needs: str) -> bool:
        """Whether one of them needs one of these."""
        return any(need in part.needs for part in self for need in needs)

    @property
    def entrywise(self) -> bool:
        """Whether, the duality map apart, a shard of a leaf is as good as the leaf."""
        each = self.rule.entrywise and self.iterate.entrywise and self.constraint.entrywise
        looks = {"move", "moves", "updates", "closure", "hvp"} & set(self.step.needs)
        return each and self.direction is None and not looks

    @property
    def flat(self) -> bool:
        """Whether momentum and the writing of weights see numbers without a shape, and only the rule keeps state of them;
        if the step size looks at what is between them, then at one stack after the other."""
        each = self.rule.entrywise and self.iterate.entrywise and self.constraint.entrywise
        free = type(self.iterate).init is Iterate.init and type(self.constraint).init is Constraint.init
        apart = not self.step.needs or (set(self.step.needs) == {"move"} and not self.step.init_shared())
        return each and self.direction is None and self.iterate.joint and free and apart

    @property
    def simple(self) -> bool:
        """`flat`, and the step size looks at nothing: then matrices may lie transposed, or among zeros, in a stack."""
        return self.flat and not self.step.needs and not self.step.init(torch.zeros(1, 1))


class Stack:
    """Reads gradients and weights of its leaves, keeps their state in stacked buffers, and writes weights back.

    The buffers' slices are what `torch.optim.Optimizer.state` holds for each parameter, so saving, loading and moving
    state are torch's own business.
    """

    def __init__(self, bunch: Bunch, parts: Parts, store: Store, fused: Fused, capturable: bool = False) -> None:
        self.params = [parameter for parameter, _ in bunch.entries]
        self.leaves = [leaf for _, leaf in bunch.entries]
        self.norm, self.shape, self.places = bunch.norm, bunch.shape, bunch.places
        self.rule, self.iterate, self.step = parts.rule, parts.iterate, parts.step
        self.constraint = parts.constraint.bind(self.norm)
        self.layout = layout_of(self.params[0], self.leaves[0], parts.entrywise)
        apart = on_shards(self.norm, self.layout, self.leaves[0].shape) if isinstance(self.layout, Shards) else None
        self.direction = (parts.direction or apart or Dualize(self.norm)).bind(self.norm)
        self.meets = (
            apart is None and parts.direction is None and (isinstance(self.layout, Shards) or costly(self.norm))
        )
        """whether whole leaves are to be dualized, each on a rank that `exchange` knows once it is set"""
        self.exchange: Exchange | None = None
        self._plain = self.layout == Whole() and all(leaf.view is None for leaf in self.leaves)
        self._filled = all(place.shape == self.shape and not place.turned for place in self.places)
        self._bare = self._plain and self._filled
        self.fused = fused if parts.flat and self.layout == Whole() else None
        first = self.params[0]
        self.dtype = torch.float32 if first.dtype in (torch.bfloat16, torch.float16) else first.dtype
        self.device = first.device
        self.looks = self.device.type == "cpu" and not capturable
        """whether the host may look into tensors: on an accelerator it would wait"""
        pulls = type(self.constraint).retract is Pull.retract and type(self.iterate) is Descent
        self.descends = pulls and self.looks and not fused.compile and "updates" not in parts.step.needs
        """whether W ← W - η·r·D - d·W with numbers is all that happens to weights"""
        self._in_place = InPlace(self.params) if self.descends and self._bare and first.dtype == self.dtype else None
        looked = {type(self.constraint).tangent, type(self.constraint).direct}
        self.unseen = parts.simple and looked == {Constraint.tangent, Constraint.direct}
        """whether nobody looks at weights before they are written"""
        flows = fused.compile and self.fused and self._bare and self.unseen and math.prod(self.shape) > 0
        flows = flows and type(self.direction) is Dualize and not costly(self.norm)
        self.at_once = fused.step(self.norm) if flows else None
        """all of a step as one compiled function, for norms without products"""
        self._bind(store)
        self._moved: Tensor | list[bool] = [False] * len(self)
        self._rows = self._rows_at_a_time(parts)
        self.radius, self.radii, self.lengths, self.all_may_move = torch.empty(0), torch.empty(0), [0.0], True

    def __len__(self) -> int:
        return len(self.leaves)

    def weights(self) -> Tensor:  # (n, *shape)
        return self._read(lambda p: p).detach()

    def grads(self) -> Tensor:  # (n, *shape), 0 where there is none
        return self._read(_grad)

    def borrow(self) -> tuple[Tensor, Tensor]:
        """Gradients and weights, as the parameters themselves where that serves: to be looked at and not written to. Of
        weights that `descend` can change where they are, and that nobody looks at, there are no entries."""
        p = self.params[0]
        alone = self.fused and self._bare and len(self) == 1
        G = _grad(p).unsqueeze(0).to(self.dtype) if alone else self.grads()
        if self.unseen and self._descent_in_place():
            return G, G.new_empty(0)
        return G, p.detach().unsqueeze(0).to(self.dtype) if alone else self.weights()

    def go(self, rate: Rate, moving: Tensor, living: Tensor | None) -> None:
        """All of a step, by one function that changes state and weights where they are. moving: (n, 1, ..., 1)."""
        seen = [_grad(p) for p in self.params], [p.detach() for p in self.params]
        G, W = (its[0].unsqueeze(0) if len(self) == 1 else torch.stack(its) for its in seen)
        parts = self.norm, self.rule, self.iterate, self.constraint
        assert self.at_once is not None
        self._moved = self.at_once(*parts, G, W, dict(self.state["rule"]), rate, moving, living)
        if len(self) == 1:
            torch.autograd.graph.increment_version(self.params)
        else:
            self.write(W, self.present())

    def blocks(self) -> list[Stack]:
        """This stack; or, of a leaf that is larger than stacks should be and whose rows have nothing to do with each other,
        one stack for every few rows. They share its memory, and are good for one step."""
        rows, count = self._rows, self.shape[0] if self.shape else 1
        return [self] if rows >= count else [self._block(slice(i, i + rows)) for i in range(0, count, rows)]

    def _rows_at_a_time(self, parts: Parts) -> int:
        whole = self.shape[0] if self.shape else 1
        alike = all(x.shape[1:2] == self.shape[:1] for x in self.state["rule"].values())
        apart = parts.simple and type(self.direction) is Dualize and (self.norm.entrywise or self.norm.independent)
        if len(self) > 1 or self.at_once is not None or not (apart and alike and self._bare):
            return whole
        return max(1, most_entries(self.device) // max(1, math.prod(self.shape[1:])))

    def _block(self, rows: slice) -> Stack:
        block, p = object.__new__(Stack), self.params[0]
        block.__dict__.update(self.__dict__)
        view = p.detach()[rows]
        if p.grad is not None and p.grad.dtype != p.dtype:  # where torch allows it, it asks for this
            view.grad_dtype = p.grad.dtype
        view.grad = None if p.grad is None else p.grad[rows]
        block.params, block.shape = [view], tuple(view.shape)  # type: ignore[list-item]
        block._in_place = self._in_place and InPlace(block.params)
        block.state = {part: {name: x[:, rows] for name, x in state.items()} for part, state in self.state.items()}
        block._buffers = {part: dict(state) for part, state in block.state.items()}
        return block

    def turn(self, M: Tensor, W: Tensor) -> Task[Tensor]:
        """The direction of M."""
        if self.exchange is None:
            return self.direction(M, self.state["direction"], W)
        return (yield from self.exchange(lambda M: self.direction(M, {}, M), M))

    def present(self) -> list[bool]:
        return [p.grad is not None for p in self.params]

    def write(self, W: Tensor, where: Sequence[bool]) -> None:
        """Put the slices of W for which `where` holds back into their parameters."""
        slots = [slot for slot in zip(self.params, self.leaves, self.views(W), where, strict=True) if slot[-1]]
        if self._plain:
            if slots:
                torch._foreach_copy_([p for p, *_ in slots], [w for _, _, w, _ in slots])
            return
        for p, leaf, w, _ in slots:
            self.layout.write(leaf, p, w)
        torch.autograd.graph.increment_version([p for p, *_ in slots])

    def as_parameters(self, V: Tensor) -> dict[Parameter, Tensor]:
        """V (n, *shape) as tensors in the shapes of the parameters, 0 where they have other leaves."""
        out: dict[Parameter, Tensor] = {}
        for p, leaf, v in zip(self.params, self.leaves, self.views(V), strict=True):
            leaf.write(out.setdefault(p, torch.zeros_like(p)), v)
        return out

    def from_parameters(self, tensors: Mapping[Parameter, Tensor]) -> Tensor:  # (n, *shape), 0 where there is none
        return self._read(lambda p: tensors[p] if p in tensors else torch.zeros_like(p))

    def set_radii(self, total_mass: float) -> None:
        """r = (mass/M)·reach, with the numbers that are saved with the parameters; `radius` is for duals in `norm`."""
        self.radii = (
            self.numbers["mass"] / total_mass * self.numbers["reach"] if total_mass else 0 * self.numbers["mass"]
        )
        lengths = self.radii * torch.tensor([place.scale for place in self.places], dtype=torch.float64)
        self.radius = lengths.to(self.device, self.dtype).reshape((-1,) + (1,) * len(self.shape))
        self.lengths = lengths.tolist()
        self.all_may_move = bool((self.radii > 0).all())

    def views(self, V: Tensor) -> list[Tensor]:
        """The leaves in V (n, *shape)."""
        if self._filled:  # also by the shards that a rank has
            return list(V.unbind())
        return [place.view(slot) for place, slot in zip(self.places, V.unbind(), strict=True)]

    def flags(self, which: Sequence[bool]) -> Tensor:  # (n,) bool
        """Written on the device, where a copy from the host would wait."""
        out = torch.ones(len(self), dtype=torch.bool, device=self.device)
        for i in (i for i, yes in enumerate(which) if not yes):
            out[i].fill_(False)
        return out

    def snapshot(self) -> dict[str, State]:
        """The state, to bring back that of leaves which are not alive; without that of which `Fused` takes care."""
        parts = {part: state for part, state in self.state.items() if not (self.fused and part == "rule")}
        return {part: {k: v.clone() for k, v in state.items()} for part, state in parts.items()}

    def count_moves(self, new: Tensor, old: Tensor, moved: Tensor | None = None) -> None:
        """See which leaves are not what they were, unless it is known; 16-bit weights may round a small step away."""
        if moved is None:
            written = new.to(self.params[0].dtype)
            if self.looks:  # there comparing and then reducing is slow, and nothing waits for the answer
                self._moved = [not torch.equal(a, b) for a, b in zip(written.unbind(), old.unbind(), strict=True)]
            else:
                self._moved = (written != old).reshape(len(self), -1).any(1)
        else:
            self._moved = moved

    def descend(self, W: Tensor, D: Tensor, steps: Sequence[Step]) -> None:
        """W ← W - η·D - d·W by the steps (η, d) of the leaves, W as they were `borrow`ed."""
        units = D.to(self.dtype).contiguous().unbind()
        if (in_place := self._descent_in_place()) is not None:
            self._moved = in_place(units, steps)
            return
        new = W.clone(memory_format=torch.contiguous_format)
        descend(new.unbind(), units, steps)
        self.count_moves(new, W)
        self.write(new, [step is not None for step in steps])

    def _descent_in_place(self) -> InPlace | None:
        return self._in_place if all(p.is_contiguous() for p in self.params) else None

    def commit(self, blocks: Sequence[Stack], before: dict[str, State] | None, alive: Tensor | None) -> None:
        """Bring what the parts assigned back into the buffers, undo it where a leaf is not alive, and count who moved."""
        self._keep(before or {}, alive)
        if blocks[0] is not self:
            self._moved = _any([block._moved for block in blocks])
        moved, ranks = self._moved, self.layout.ranks
        if ranks is not None:
            moved = ranks.anywhere(torch.as_tensor(moved))
        self.numbers["moved"] += 1 if not isinstance(moved, Tensor) and all(moved) else torch.as_tensor(moved)

    def _keep(self, before: dict[str, State], alive: Tensor | None) -> None:
        for part, state in self.state.items():
            settle(self._buffers[part], state, alive if part in before else None, before.get(part, {}))

    def _read(self, pick: Callable[[Parameter], Tensor]) -> Tensor:
        seen = [pick(p) for p in self.params]
        if not self._plain:
            seen = [self.layout.read(leaf, tensor) for leaf, tensor in zip(self.leaves, seen, strict=True)]
        if self._filled:
            return torch.stack(seen).to(self.dtype)
        out = seen[0].new_zeros((len(self), *self.shape), dtype=self.dtype)
        torch._foreach_copy_(self.views(out), seen)
        return out

    def _bind(self, store: Store) -> None:
        """Allocate the buffers, take over what the store already has, and leave their slices in the store."""
        W = self.weights().contiguous()  # so are the buffers then, of channels_last kernels too, and can be flattened
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
                slots = self.views(buffer) if buffer.shape[1:] == self.shape else buffer
                for slot, leaf, kept in zip(slots, self.leaves, (store[p] for p in self.params), strict=True):
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


def _any(flags: Sequence[Tensor | list[bool]]) -> Tensor | list[bool]:
    if all(isinstance(its, list) for its in flags):
        return [any(its) for its in zip(*flags, strict=True)]
    return torch.stack([torch.as_tensor(its) for its in flags]).any(0)


def _grad(p: Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _take_over(slot: Tensor, saved: Tensor, leaf: Leaf, key: str) -> None:
    if saved.shape != slot.shape:
        raise ValueError(f"state {key!r} of {leaf.name} has shape {tuple(saved.shape)}, expected {tuple(slot.shape)}")
    slot.copy_(saved)
