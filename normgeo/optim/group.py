"""A parameter group in a step: its stacks one by one, or together where the step size has to see all of them first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.constraints import Rate
from normgeo.geometry import Leaf
from normgeo.optim.closure import Grads, Line, hessian_vector_product
from normgeo.optim.exchange import in_turn
from normgeo.optim.fused import Fused, apart
from normgeo.optim.guard import Verdict
from normgeo.optim.passage import alive, direct, rate, write
from normgeo.optim.place import bunches
from normgeo.optim.ranks import Ranks
from normgeo.optim.stack import Parts, Stack, Store
from normgeo.steps import Stats, StepState
from normgeo.steps.base import Move

__all__ = ["Group"]


class Group:
    """The stacks of the parameters that are trained now, and the tensors that the group has once: its count of steps and
    what its step size shares. Each parameter's state holds them, so they are saved and moved with it."""

    def __init__(
        self,
        params: Sequence[Parameter],
        leaves: Callable[[Parameter], Sequence[Leaf]],
        parts: Parts,
        store: Store,
        ranks: Ranks | None,
        fused: Fused,
        capturable: bool = False,
        alone: bool = False,
        ragged: bool = False,
    ) -> None:
        self.parts = parts
        trained = [p for p in params if p.requires_grad]
        entries = [(p, leaf) for p in trained for leaf in leaves(p)]
        self.stacks = [
            Stack(bunch, parts, store, fused, capturable)
            for bunch in bunches(entries, parts.entrywise, ragged and parts.simple, ranks, alone)
        ]
        self.stacks_of: dict[Parameter, list[Stack]] = {p: [] for p in trained}
        for stack in self.stacks:
            for p in set(stack.params):
                self.stacks_of[p].append(stack)
        device = trained[0].device if trained else torch.device("cpu")
        numbers = {"step": torch.zeros((), dtype=torch.float32, device=device)}
        for name, start in parts.step.init_shared().items():
            numbers[f"shared.{name}"] = torch.tensor(float(start), dtype=torch.float64, device=device)
        # Parameters that were frozen for a while have fallen behind: the group goes on from the one that is furthest.
        started = [store[p] for p in params if "step" in store.get(p, {})]
        furthest: dict[str, Tensor] = max(started, key=lambda state: float(state["step"]), default={})
        for key, tensor in numbers.items():
            tensor.copy_(furthest.get(key, tensor))
            for p in trained:
                store[p][key] = tensor
        self.count = numbers.pop("step")
        self.shared = {key.removeprefix("shared."): tensor for key, tensor in numbers.items()}
        self.steps = int(furthest.get("step", 0))
        """the count as the host knows it, for parts that act every k steps; steps that the device skips are in it"""

    def due(self, need: str, *parts: Any) -> bool:
        """Whether in this step one of the parts (of all, unless given) gets what it needs every k steps."""
        return bool(self.stacks) and any(
            self.steps % part.needs[need] == 0 for part in parts or self.parts if need in part.needs
        )

    def advance(
        self,
        options: dict[str, Any],
        verdict: Verdict,
        loss: Any,
        graph: Grads | None,
        validation: Mapping[Parameter, Tensor],
        line: Callable[[Sequence[Stack], Sequence[Tensor]], Line] | None,
    ) -> None:
        """One step. `options` has the lr, `validation` the gradients of `Optimizer.validation`; `line` makes the loss along
        directions, if there is a closure."""
        if stacks := [stack for stack in self.stacks if any(stack.present())]:
            self.move(options, verdict, stacks, loss, graph, validation, line)
            self._count(self._together(verdict))

    def count_step(self, moved: Set[Parameter]) -> None:
        """Count a step in which these parameters have moved one by one."""
        if not moved.isdisjoint(self.stacks_of):
            self._count(None)

    def move(
        self,
        options: dict[str, Any],
        verdict: Verdict,
        stacks: Sequence[Stack],
        loss: Any = None,
        graph: Grads | None = None,
        validation: Mapping[Parameter, Tensor] | None = None,
        line: Callable[[Sequence[Stack], Sequence[Tensor]], Line] | None = None,
    ) -> None:
        """What `advance` does, for some stacks and without counting."""
        step = self.parts.step
        living = [alive(stack, verdict) for stack in stacks]
        before = [None if a is None else stack.snapshot() for a, stack in zip(living, stacks, strict=True)]
        shared_before = {} if verdict.finite is None else {name: x.clone() for name, x in self.shared.items()}
        stats = Stats(self.count, torch.as_tensor(loss).detach() if "loss" in step.needs else None, turn=self.steps)
        state = StepState(dict(self.shared), [stack.state["step"] for stack in stacks])

        # Lazily: one stack at a time, unless the step size has to see all directions before it decides, or keeps something
        # for the whole group, which changes once a step.
        bent = graph if self.parts.direction is not None and self.due("hvp", self.parts.direction) else None
        held = validation if validation and self.parts.ask("validation") else {}
        blocks = [stack.blocks() for stack in stacks]
        moves: Iterable[Move | None] = in_turn(
            direct(block, a, stats, bent, held) for its, a in zip(blocks, living, strict=True) for block in its
        )
        if {"moves", "updates"} & set(step.needs) or ("move" in step.needs and self.shared):
            moves = stats.moves = [move for move in moves if move is not None]
            if graph is not None and self.due("hvp", step):
                stats.hessian = hessian_vector_product(stacks, graph)
            if line is not None and self.due("closure", step):
                stats.line = line(stacks, [move.along(a) for move, a in zip(stats.moves, living, strict=True)])
        alone = "move" in step.needs and not stats.moves
        value: Tensor | Sequence[Tensor] = () if alone else step.value(stats, state)
        passing = iter(moves)
        rates: dict[Any, Rate] = {}
        for i, its in enumerate(blocks):
            for block in its:
                move = next(passing)
                if alone and move is not None:
                    value = step.value(replace(stats, moves=[move]), StepState(state.shared, [state.leaves[i]]))
                    state.leaves[i].update({name: apart(x, [move.W]) for name, x in state.leaves[i].items()})
                factor = value if isinstance(value, Tensor) else value[0 if alone else i]
                key = i if alone or factor is not value else (block.dtype, block.device)
                if key not in rates:
                    rates[key] = rate(options, factor, block.radius)
                write(block, move, rates[key]._replace(radius=block.radius), living[i], "updates" in step.needs)
                del move  # its tensors make room for those of the next one, in memory and in the cache
        step.follow(stats.moves, state)
        for stack, its, was, a in zip(stacks, blocks, before, living, strict=True):
            stack.commit(its, was, a)
        ok = self._together(verdict)
        for name, buffer in self.shared.items():
            new = state.shared[name].to(buffer)
            buffer.copy_(new if ok is None else torch.where(ok, new, shared_before[name]))

    def _count(self, ok: Tensor | None) -> None:
        self.count.add_(1 if ok is None else ok)
        self.steps += 1

    def _together(self, verdict: Verdict) -> Tensor | None:
        """() whether the step counts, as the device knows; None for yes."""
        return verdict.whole.to(self.count.device) if verdict.together and verdict.finite is not None else None
