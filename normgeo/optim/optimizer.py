"""The optimizer: one torch.optim.Optimizer for every rule, direction, step size, iterate and constraint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.constraints import Constraint, Decay, Free
from normgeo.geometry import Leaf
from normgeo.optim import checkpoint
from normgeo.optim.closure import Grads, Line, evaluate, hessian_vector_product
from normgeo.optim.direction import Direction
from normgeo.optim.guard import Guard, Policy, Verdict
from normgeo.optim.iterate import Descent, Iterate
from normgeo.optim.passage import alive, direct, rate, write
from normgeo.optim.stack import Parts, Stack, group_leaves, state_key
from normgeo.rules import Momentum, Rule
from normgeo.steps import Constant, Stats, StepSize, StepState
from normgeo.steps.base import Move

__all__ = ["Optimizer"]

KINDS: dict[str, Any] = {
    "rule": Rule,
    "direction": Direction,
    "step": StepSize,
    "iterate": Iterate,
    "constraint": Constraint,
}
OPTIONS = {"params", "leaves", "lr", "decay", *KINDS}
SUPPLIED = {"loss", "hvp", "closure", "moves", "updates"}


@dataclass
class Ready:
    """A parameter group made ready: its stacks, and the tensors that it has once."""

    parts: Parts
    stacks: list[Stack]
    count: Tensor
    shared: dict[str, Tensor]
    steps: int
    """the count as the host knows it, for parts that act every k steps; steps that the device skips are in it"""


class Optimizer(torch.optim.Optimizer):
    """W ← retract(W - η·r·D), D = direction(rule(G)), η = lr·step, r the radius of each leaf in the modular norm.

    Made by `plan.optimizer(model, ...)`. `params` are parameter groups, each with "params" and, in the same order, their
    "leaves" (a tuple for each parameter); a group may have its own lr, rule, direction, step, iterate and constraint, or
    decay=x for constraint=Decay(x), as the optimizer itself may. With one group, lr is the largest change (RMS) of the
    network's output that a step may cause to first order, if the plan's factors are bounds; with several, the sum of
    (m_group/M)·lr_group is.

    With a part that needs "hvp" the closure returns the loss and does not call backward().

    >>> import torch, normgeo as ng
    >>> model = ng.nn.MLP(8, 16, 4)
    >>> opt = ng.compile(model).optimizer(model, lr=0.1)
    >>> (model(torch.randn(2, 8)) - 1).square().sum().backward()
    >>> opt.step()
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float | Tensor = 0.2,
        rule: Rule | None = None,
        direction: Direction | None = None,
        step: StepSize | None = None,
        iterate: Iterate | None = None,
        constraint: Constraint | None = None,
        decay: float | None = None,
        nonfinite: Policy = "skip",
    ) -> None:
        if decay is not None:
            constraint = _decay(decay, constraint)
        self._leaves: dict[Parameter, tuple[Leaf, ...]] = {}
        self._bound: list[Ready] | None = None
        self._signature: tuple[Any, ...] = ()
        self._evaluating = False
        self._guard = Guard(nonfinite)
        self.parts: list[Parts] = []
        """what each parameter group is made to do"""
        self._default_parts = Parts(
            rule=Momentum(0.9, nesterov=True) if rule is None else rule,
            direction=direction,
            step=Constant() if step is None else step,
            iterate=Descent() if iterate is None else iterate,
            constraint=Free() if constraint is None else constraint,
        )
        super().__init__(params, {"lr": lr})

    # ---- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as `plan.groups(...)` makes them: "params", their "leaves", and any options of their own."""
        group = dict(param_group)
        if isinstance(group["params"], Tensor):
            group["params"] = [group["params"]]
        group["params"] = list(group["params"])
        leaves = group.pop("leaves", None)
        if leaves is None or len(leaves) != len(group["params"]):
            raise ValueError(
                "these parameters have no geometry; write plan = plan.extend(model) and then "
                "for group in plan.groups(model=model, only=[its names]): opt.add_param_group(group)"
            )
        if unknown := sorted(set(group) - OPTIONS):
            raise ValueError(f"unknown option {unknown[0]!r} in a parameter group; known are {sorted(OPTIONS)}")
        if (decay := group.pop("decay", None)) is not None:
            group["constraint"] = _decay(decay, group.get("constraint"))
        parts = replace(self._default_parts, **{name: group.pop(name) for name in KINDS if name in group})
        _check(parts, group.get("lr", self.defaults["lr"]))
        _check_owner(parts)
        for parameter, its in zip(group["params"], leaves, strict=True):
            _check_leaves(parameter, its)
        group["structure"] = checkpoint.structure(parts, [leaf for its in leaves for leaf in its])
        super().add_param_group(group)
        group["base_lr"] = float(group["lr"])
        self.parts.append(parts)
        self._leaves.update(zip(group["params"], map(tuple, leaves), strict=True))
        self._bound = None

    @property
    def skipped(self) -> int:
        """How many steps were dropped because of NaN or Inf in a gradient (under nonfinite="skip")."""
        self._guard.report()
        return self._guard.skipped

    # ---- one step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. `closure`, needed only by parts that ask for the loss or for Hessian-vector products, returns it."""
        for group in self.param_groups:  # before any group moves
            if not isinstance(group["lr"], Tensor):  # looking into a tensor would wait for its device
                _check_lr(group["lr"])
                group["base_lr"] = group["base_lr"] or group["lr"]
        if self._evaluating:
            raise RuntimeError(
                "step() inside `with opt.averaged()`: the model has its averaged weights; leave the block first"
            )
        groups = self._ready()
        loss, graph = evaluate(closure, self.parts, self._trainable, lambda: groups[0].steps)
        verdict = self._examine(loss)
        if verdict.step:
            for group, ready in zip(self.param_groups, groups, strict=True):
                self._advance(group, ready, verdict, loss, graph, closure)
        return loss

    def _advance(
        self,
        group: dict[str, Any],
        ready: Ready,
        verdict: Verdict,
        loss: Any,
        graph: Grads | None,
        closure: Callable[[], Any] | None,
    ) -> None:
        stacks = [stack for stack in ready.stacks if any(stack.present())]
        if not stacks:
            return
        step = ready.parts.step
        living = [alive(stack, verdict) for stack in stacks]
        before = [None if a is None else stack.snapshot() for a, stack in zip(living, stacks, strict=True)]
        shared_before = {} if verdict.finite is None else {name: x.clone() for name, x in ready.shared.items()}
        stats = Stats(ready.count, torch.as_tensor(loss).detach() if "loss" in step.needs else None)
        state = StepState(dict(ready.shared), [stack.state["step"] for stack in stacks])

        # Lazily: one stack at a time, unless the step size has to see all directions before it decides.
        moves: Iterable[Move] = (direct(s, a, stats, graph) for s, a in zip(stacks, living, strict=True))
        if {"moves", "updates"} & set(step.needs):
            moves = stats.moves = list(moves)
            if graph is not None and "hvp" in step.needs:
                stats.hessian = hessian_vector_product(stacks, graph)
            if closure is not None and "closure" in step.needs:
                stats.line = self._line(ready, stacks, stats, loss, closure)
        value = step.value(stats, state)
        for i, (stack, move) in enumerate(zip(stacks, moves, strict=True)):
            factor = value if isinstance(value, Tensor) else value[i]
            write(stack, move, rate(group, factor, move), living[i], "updates" in step.needs)
        step.follow(stats.moves, state)
        for stack, was, a in zip(stacks, before, living, strict=True):
            stack.commit(was, a)
        self._commit_shared(ready, state, shared_before, verdict)

    def _line(
        self, ready: Ready, stacks: list[Stack], stats: Stats, loss: Any, closure: Callable[[], Any]
    ) -> Line | None:
        """The loss along the direction of a group. Once another group has moved, it has to be measured at 0 too."""
        period = ready.parts.step.needs["closure"]
        if ready.steps % period:
            return None
        first = self._bound is not None and ready is self._bound[0]
        start = (torch.as_tensor(loss).detach(), -stats.slope) if first else None
        differentiates = any("hvp" in part.needs for parts in self.parts for part in parts)
        return Line(closure, stacks, stats.moves, start, self._trainable(), differentiates)

    def _commit_shared(self, ready: Ready, state: StepState, before: dict[str, Tensor], verdict: Verdict) -> None:
        together = verdict.finite if verdict.together else None
        ok = None if together is None else together.all().to(ready.count.device)
        for name, buffer in ready.shared.items():
            new = state.shared[name].to(buffer)
            buffer.copy_(new if ok is None else torch.where(ok, new, before[name]))
        ready.count.add_(1 if ok is None else ok)
        ready.steps += 1

    def _examine(self, loss: Any) -> Verdict:
        """Look for NaN and Inf, also in a loss that a part asked for."""
        params = [p for p in self._trainable() if p.grad is not None]
        grads = [p.grad for p in params if p.grad is not None]
        for p, grad in zip(params, grads, strict=True):
            if grad.is_sparse:
                name = self._leaves[p][0].parameter
                raise ValueError(f"the gradient of {name} is sparse; norms need dense gradients: use a dense embedding")
        asked = any("loss" in part.needs for parts in self.parts for part in parts)
        verdict = self._guard(lambda: [self._leaves[p][0].parameter for p in params], grads, loss if asked else None)
        if verdict.finite is not None:
            verdict.position = {p: i for i, p in enumerate(params)}
        return verdict

    def _trainable(self) -> list[Parameter]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    # ---- stacks

    def _ready(self) -> list[Ready]:
        """The stacks of each group; made anew when parameters were frozen, unfrozen, moved, cast, added or loaded."""
        params = [p for group in self.param_groups for p in group["params"]]
        signature = tuple((p.requires_grad, p.dtype, p.device) for p in params)
        if self._bound is None or signature != self._signature:
            self._bound = [self._bind(*both) for both in zip(self.param_groups, self.parts, strict=True)]
            stacks = [stack for ready in self._bound for stack in ready.stacks]
            total = float(sum(float(stack.numbers["mass"].sum()) for stack in stacks))
            for stack in stacks:
                stack.set_radii(total)
            self._signature = signature
        return self._bound

    def _bind(self, group: dict[str, Any], parts: Parts) -> Ready:
        params = [p for p in group["params"] if p.requires_grad]
        entries = [(p, leaf) for p in params for leaf in self._leaves[p]]
        stacks = [Stack(these, parts, self.state) for these in group_leaves(entries)]
        device = params[0].device if params else torch.device("cpu")
        numbers = {"step": torch.zeros((), dtype=torch.float32, device=device)}
        for name, start in parts.step.init_shared().items():
            numbers[f"shared.{name}"] = torch.tensor(float(start), dtype=torch.float64, device=device)
        # Parameters that were frozen for a while have fallen behind: the group goes on from the one that is furthest.
        started = [self.state[p] for p in group["params"] if "step" in self.state.get(p, {})]
        furthest: dict[str, Tensor] = max(started, key=lambda state: float(state["step"]), default={})
        for key, tensor in numbers.items():
            tensor.copy_(furthest.get(key, tensor))
            for p in params:
                self.state[p][key] = tensor
        shared = {key.removeprefix("shared."): numbers[key] for key in numbers if key != "step"}
        return Ready(parts, stacks, numbers["step"], shared, int(numbers["step"]))

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """As everywhere in torch, to be saved together with the weights that the model trains with."""
        if self._evaluating:
            raise RuntimeError(
                "state_dict() inside `with opt.averaged()`: the model's weights are not those it trains with"
            )
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint. Its leaves and parts must be the same; its numbers (lr, masses, radii) win."""
        mine = [group["structure"] for group in self.param_groups]
        checkpoint.compare(mine, [group.get("structure") for group in state_dict["param_groups"]])
        super().load_state_dict(state_dict)
        for group, structure in zip(self.param_groups, mine, strict=True):
            group["structure"] = structure
        checkpoint.keep_dtypes(self, state_dict)
        checkpoint.tell_numbers(self.state, self._leaves)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_leaves", "_guard", "parts", "_default_parts")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bound, self._signature, self._evaluating = None, (), False

    def _group_leaves(self, group: dict[str, Any]) -> list[Leaf]:
        return [leaf for p in group["params"] for leaf in self._leaves[p]]

    # ---- looking

    def __repr__(self) -> str:
        groups = [
            f"  group {i}: {len(group['params'])} parameters, lr={group['lr']}, {', '.join(map(repr, parts))}"
            for i, (group, parts) in enumerate(zip(self.param_groups, self.parts, strict=True))
        ]
        return "\n".join(["normgeo.optim.Optimizer", *groups])

    def still(self) -> list[tuple[str, str]]:
        """The leaves that a step would not move, and why."""
        out = []
        for group in self.param_groups:
            for leaf, parameter in ((leaf, p) for p in group["params"] for leaf in self._leaves[p]):
                reasons = {
                    "frozen (requires_grad=False)": not parameter.requires_grad,
                    "mass 0": leaf.mass == 0,
                    "lr 0": float(group["lr"]) == 0,
                }
                if why := ", ".join(reason for reason, holds in reasons.items() if holds):
                    out.append((leaf.name, why))
        return out

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the weights that the iterate wants evaluated; outside, those it trains with, to the bit.
        `step()` inside is refused, and so is saving: leave the block first.

        >>> import normgeo as ng
        >>> model = ng.nn.MLP(8, 16, 4)
        >>> opt = ng.optimizer(model)
        >>> with opt.averaged():
        ...     pass  # evaluate the model here
        """
        if self._evaluating:
            raise RuntimeError("`with opt.averaged()` inside another: the model has its averaged weights already")
        with torch.no_grad():
            stacks = [stack for ready in self._ready() for stack in ready.stacks]
            training = [stack.weights() for stack in stacks]
            for stack, W in zip(stacks, training, strict=True):
                stack.write(stack.iterate.average(W, stack.state["iterate"]), [True] * len(stack))
        self._evaluating = True
        try:
            yield
        finally:
            self._evaluating = False
            with torch.no_grad():
                for stack, W in zip(stacks, training, strict=True):
                    stack.write(W, [True] * len(stack))

    @torch.no_grad()
    def describe(self) -> str:
        """A line per leaf: lr, radius, how many steps moved it, and why it does not move if it does not.

        >>> import normgeo as ng
        >>> model = ng.nn.MLP(8, 16, 4)
        >>> print(ng.optimizer(model).describe().splitlines()[1])
        0.weight  linear  0.2  0.3333  0      no gradient yet, or steps too small for its dtype
        """
        stacks = [stack for ready in self._ready() for stack in ready.stacks]
        radii = {
            leaf: r for stack in stacks for leaf, r in zip(stack.leaves, stack.radius.flatten().tolist(), strict=True)
        }
        still = dict(self.still())
        rows = [("leaf", "role", "lr", "radius", "moved", "")]
        for group in self.param_groups:
            leaves = [(parameter, leaf) for parameter in group["params"] for leaf in self._leaves[parameter]]
            for parameter, leaf in leaves:
                moved = int(self.state[parameter].get(state_key(leaf, "", "moved"), 0))
                why = still.get(leaf.name, "" if moved else "no gradient yet, or steps too small for its dtype")
                radius = f"{radii.get(leaf, 0.0):.4g}"
                rows.append((leaf.name, leaf.role, f"{float(group['lr']):g}", radius, str(moved), why))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _decay(strength: float, constraint: Constraint | None) -> Decay:
    if constraint is not None:
        raise ValueError("decay= and constraint= are one setting; write constraint=Decay(strength) or decay=strength")
    return Decay(strength)


def _check_lr(lr: float) -> None:
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr must be a finite number ≥ 0, got {lr}")


def _check(parts: Parts, lr: float | Tensor) -> None:
    _check_lr(float(lr))
    for name, kind in KINDS.items():
        part = getattr(parts, name)
        if part is None and name == "direction":
            continue
        if not isinstance(part, kind):
            raise TypeError(f"{name}= takes a normgeo {kind.__name__}, got {part!r}")
        if missing := sorted(set(part.needs) - SUPPLIED):
            raise ValueError(
                f"{name} {type(part).__name__} needs {missing}, but this optimizer supplies {sorted(SUPPLIED)}"
            )


def _check_owner(parts: Parts) -> None:
    if parts.direction is not None and type(parts.constraint).direct is not Constraint.direct:
        raise ValueError(f"{parts.constraint} has a direction of its own; leave out direction={parts.direction}")


def _check_leaves(parameter: Tensor, leaves: Sequence[Leaf]) -> None:
    for leaf in leaves:
        if parameter.is_complex():
            raise ValueError(f"{leaf.name} is complex; norms here are real: store real and imaginary parts apart")
        seen = tuple(leaf.read(parameter.detach()).shape)
        if seen != leaf.shape:
            raise ValueError(f"{leaf.name} has shape {seen}, but the plan was made for {leaf.shape}; compile again")
