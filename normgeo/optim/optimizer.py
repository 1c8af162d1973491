"""The optimizer: one torch.optim.Optimizer for every rule, direction, step size, iterate and constraint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.constraints import Constraint, Free
from normgeo.geometry import Leaf
from normgeo.optim import checkpoint
from normgeo.optim.closure import Line, evaluate
from normgeo.optim.direction import Direction
from normgeo.optim.fused import Fused
from normgeo.optim.group import Group
from normgeo.optim.guard import Guard, Policy, Verdict
from normgeo.optim.in_backward import Hooks, check_in_backward
from normgeo.optim.iterate import Descent, Iterate
from normgeo.optim.layout import local
from normgeo.optim.options import (
    KINDS,
    OPTIONS,
    check_capturable,
    check_devices,
    check_leaves,
    check_lr,
    check_parts,
    decaying,
)
from normgeo.optim.passage import averaged
from normgeo.optim.ranks import Ranks, agree, as_dtensor, check_ranks, mean, ranks_of
from normgeo.optim.sharing import share_out
from normgeo.optim.stack import Parts, state_key
from normgeo.rules import Momentum, Rule
from normgeo.steps import Constant, StepSize

if TYPE_CHECKING:
    from torch.distributed import DeviceMesh, ProcessGroup

__all__ = ["Optimizer"]


class Optimizer(torch.optim.Optimizer):
    """W ← retract(W - η·r·D), D = direction(rule(G)), η = lr·step, r the radius of each leaf in the modular norm.

    Made by `plan.optimizer(model, ...)`. `params` are parameter groups, each with "params" and, in the same order, their
    "leaves" (a tuple for each parameter); a group may have its own lr, rule, direction, step, iterate and constraint, or
    decay=x for constraint=Decay(x), as the optimizer itself may. With one group, lr is the largest change (RMS) of the
    network's output that a step may cause to first order, if the plan's factors are bounds; with several, the sum of
    (m_group/M)·lr_group is.

    capturable: a step looks into no tensor, so that a CUDA graph can record it after a few warm-up steps; lr is a tensor on
    the device, and schedules change it in place. Bad gradients are counted on the device and told by `skipped`.
    compile: momentum and the writing of weights go through `torch.compile` (True, or the name of a backend), where parts
    are entrywise; no new lr and no new shape compiles again.
    in_backward: each parameter moves inside backward(), as soon as its gradient is there, which is then freed; call step()
    after it all the same. Needs nonfinite="zero"; there are no gradients left to clip or accumulate.
    ragged: matrices of different shapes share a stack, transposed or among zeros, where that takes less time: many small
    ones go two to four times as fast, and rounding differs from that of the same weights sharded.

    With a part that needs "hvp" the closure returns the loss and does not call backward().

    Parameters may be DTensors (`fully_shard`, tensor parallelism): directions are those of the whole weights, which meet
    on one rank each. `ranks`, a process group or device mesh, is for weights of which every rank has a copy (DDP): these
    ranks divide the duality maps among them, and losses that parts look at are averaged over them.

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
        ranks: ProcessGroup | DeviceMesh | None = None,
        capturable: bool = False,
        compile: bool | str = False,
        in_backward: bool = False,
        ragged: bool = False,
    ) -> None:
        if decay is not None:
            constraint = decaying(decay, constraint)
        self._placed: list[list[tuple[Leaf, ...]]] = []
        """the leaves of each group's parameters, by position: accelerate puts shards in the place of parameters"""
        self._bound: list[Group] | None = None
        self._signature: tuple[Any, ...] = ()
        self._evaluating = False
        self._together: list[Ranks] = []
        """groups of ranks that train the same weights"""
        self._validation: dict[Parameter, Tensor] = {}
        self._guard = Guard(nonfinite, capturable)
        self._capturable = capturable
        self._fused = Fused(compile)
        self._ragged = ragged
        self._hooks = Hooks(self) if in_backward else None
        self._ranks = None if ranks is None else ranks_of(ranks)
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
        params = [p[1] if isinstance(p, tuple) else p for p in group["params"]]  # (name, parameter), as torch allows
        leaves = group.pop("leaves", None)
        if leaves is None or len(leaves) != len(params):
            raise ValueError(
                "these parameters have no geometry; write plan = plan.extend(model) and then "
                "for group in plan.groups(model=model, only=[its names]): opt.add_param_group(group)"
            )
        if unknown := sorted(set(group) - OPTIONS):
            raise ValueError(f"unknown option {unknown[0]!r} in a parameter group; known are {sorted(OPTIONS)}")
        if (decay := group.pop("decay", None)) is not None:
            group["constraint"] = decaying(decay, group.get("constraint"))
        parts = replace(self._default_parts, **{name: group.pop(name) for name in KINDS if name in group})
        check_lr(float(group.get("lr", self.defaults["lr"])))
        check_parts(parts)
        if self._capturable:
            check_capturable(parts)
        if self._hooks is not None:
            check_in_backward(parts, self._guard.policy, self._capturable, params, self._ranks)
        for parameter, its in zip(params, leaves, strict=True):
            check_leaves(parameter, its)
        group["structure"] = checkpoint.structure(parts, [leaf for its in leaves for leaf in its])
        super().add_param_group(group)
        group["base_lr"] = float(group["lr"])
        if self._capturable:
            if not group["base_lr"]:
                raise ValueError("capturable=True needs the lr that schedules start from, lr > 0; got 0")
            self._keep_lr_on_device(group)
        self.parts.append(parts)
        self._placed.append(list(map(tuple, leaves)))
        if self._hooks is not None:
            self._hooks.watch(params)
        self._bound = None

    def _keep_lr_on_device(self, group: dict[str, Any]) -> None:
        if self._capturable:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float64).to(group["params"][0].device)

    @property
    def skipped(self) -> int:
        """How many steps were dropped because of NaN or Inf in a gradient (under nonfinite="skip")."""
        self._guard.report(wait=True)
        return self._guard.skipped

    # ---- one step

    @torch._disable_dynamo  # a compiled training step calls this one as it is: its stacks are batched already
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. `closure`, needed only by parts that ask for the loss or for Hessian-vector products, returns it."""
        for options in self.param_groups:  # before any group moves
            if not isinstance(options["lr"], Tensor):  # looking into a tensor would wait for its device
                check_lr(options["lr"])
            options["base_lr"] = options["base_lr"] or float(options["lr"])
        if self._evaluating:
            raise RuntimeError(
                "step() inside `with opt.averaged()`: the model has its averaged weights; leave the block first"
            )
        groups = self._ready()
        validation, self._validation = self._validation, {}
        if not validation and any(group.due("validation") for group in groups):
            raise ValueError(
                "this step needs validation gradients; before opt.step() write\n"
                "with opt.validation():\n    validation_loss(model).backward()"
            )
        params = self._trainable()
        check_ranks([part for parts in self.parts for part in parts], self._together)
        loss, graph = evaluate(closure, self.parts, params, any(group.due("hvp") for group in groups))
        if self._hooks is not None:
            for group in groups:
                group.count_step(self._hooks.arrived)
            self._hooks.arrived.clear()
            return loss
        differs = self._together and loss is not None and self._ask("loss", "closure")
        seen = mean(self._together, torch.as_tensor(loss)) if differs else loss
        verdict = self._examine(params, seen, validation)
        if not verdict.step:
            return loss
        differentiates = self._ask("hvp")
        for number, (options, group) in enumerate(zip(self.param_groups, groups, strict=True)):
            # Once a group has moved, the loss at the start of the next one is another.
            start = seen if number == 0 else None
            line = None if closure is None else partial(Line, closure, params, differentiates, start, self._together)
            group.advance(options, verdict, seen, graph, validation, line)
        return loss

    def _move(self, p: Parameter, first: bool) -> None:
        """The step of one parameter, in the middle of backward()."""
        groups = self._ready() if first or self._bound is None else self._bound
        verdict = self._examine([p], None, {})
        for options, group in zip(self.param_groups, groups, strict=True):
            if p in group.stacks_of:
                group.move(options, verdict, group.stacks_of[p])

    def _ask(self, *needs: str) -> bool:
        return any(parts.ask(*needs) for parts in self.parts)

    def _examine(self, trainable: Sequence[Parameter], loss: Any, validation: Mapping[Parameter, Tensor]) -> Verdict:
        """Look for NaN and Inf, also in a loss that a part asked for and in validation gradients."""
        found = {p: p.grad for p in trainable if p.grad is not None}
        for p, grad in found.items():
            if grad.is_sparse:
                name = self._names([p])[0]
                raise ValueError(f"the gradient of {name} is sparse; norms need dense gradients: use a dense embedding")
        held = {p: g for p, g in validation.items() if p in found}
        verdict = self._guard(
            lambda: [*self._names(found), *(f"{name} (validation)" for name in self._names(held))],
            [local(grad) for grad in (*found.values(), *held.values())],
            loss if self._ask("loss") else None,
            partial(agree, self._together),
        )
        if verdict.finite is not None:
            verdict.position = {p: i for i, p in enumerate(found)}
            if held:
                own, theirs = verdict.finite.split([len(found), len(held)])
                flags, fine = dict(zip(held, theirs.unbind(), strict=True)), torch.ones_like(own[0])
                verdict.finite = own & torch.stack([flags.get(p, fine) for p in found])
        return verdict

    @property
    def _leaves(self) -> dict[Parameter, tuple[Leaf, ...]]:
        both = zip(self.param_groups, self._placed, strict=True)
        return {p: its for group, leaves in both for p, its in zip(group["params"], leaves, strict=True)}

    def _names(self, params: Iterable[Parameter]) -> list[str]:
        leaves = self._leaves
        return [leaves[p][0].parameter for p in params]

    def _trainable(self) -> list[Parameter]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    # ---- stacks

    def _ready(self) -> list[Group]:
        """The stacks of each group; made anew when parameters were frozen, unfrozen, moved, cast, added or loaded."""
        params = [p for group in self.param_groups for p in group["params"]]
        signature = tuple((id(p), p.requires_grad, p.dtype, p.device) for p in params)
        if self._bound is None or signature != self._signature:
            check_devices(params)
            if self._hooks is not None:
                self._hooks.watch(params)
            leaves = self._leaves
            self._bound = [
                Group(
                    group["params"],
                    leaves.__getitem__,
                    parts,
                    self.state,
                    self._ranks,
                    self._fused,
                    self._capturable,
                    self._hooks is not None,
                    self._ragged,
                )
                for group, parts in zip(self.param_groups, self.parts, strict=True)
            ]
            stacks = [stack for group in self._bound for stack in group.stacks]
            total = float(sum(float(stack.numbers["mass"].sum()) for stack in stacks))
            for stack in stacks:
                stack.set_radii(total)
            share_out(stacks, self._ranks)
            meshes = dict.fromkeys(sharded.device_mesh for p in params if (sharded := as_dtensor(p)) is not None)
            self._together = list(dict.fromkeys([*map(ranks_of, meshes), *([self._ranks] if self._ranks else [])]))
            self._signature = signature
        return self._bound

    @contextmanager
    def validation(self) -> Iterator[None]:
        """Inside, backward() makes validation gradients: the next step hands them to parts that ask for them, such as
        `Operate(budget, source="cross")`. Gradients to train on are what they were, before and after.

        >>> import torch, normgeo as ng
        >>> model, x = ng.nn.MLP(8, 16, 4), torch.randn(2, 8)
        >>> opt = ng.optimizer(model, direction=ng.optim.Operate(ng.budgets.Frobenius(), source="cross"))
        >>> with opt.validation():
        ...     model(torch.randn(2, 8)).square().sum().backward()
        >>> model(x).square().sum().backward()
        >>> opt.step()
        """
        if not self._ask("validation"):
            raise RuntimeError(
                "no part of this optimizer looks at validation gradients; write "
                'direction=ng.optim.Operate(budget, source="cross")'
            )
        params = self._trainable()
        kept = [p.grad for p in params]
        for p in params:
            p.grad = None
        try:
            yield
            self._validation = {p: p.grad for p in params if p.grad is not None}
        finally:
            for p, grad in zip(params, kept, strict=True):
                p.grad = grad

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
            self._keep_lr_on_device(group)
        checkpoint.keep_dtypes(self, state_dict)
        checkpoint.tell_numbers(self.state, self._leaves)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_placed", "_guard", "_capturable", "_fused", "_ragged", "parts", "_default_parts")
        return {
            **super().__getstate__(),
            **{name: getattr(self, name) for name in own},
            "_hooks": self._hooks is not None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bound, self._signature, self._evaluating, self._validation = None, (), False, {}
        self._ranks, self._together = None, []
        if self._hooks is False:
            self._hooks = None
        elif self._hooks is True:
            self._hooks = Hooks(self)
            self._hooks.watch(p for group in self.param_groups for p in group["params"])

    # ---- looking

    def __repr__(self) -> str:
        groups = [
            f"  group {i}: {len(group['params'])} parameters, lr={group['lr']}, {', '.join(map(repr, parts))}"
            for i, (group, parts) in enumerate(zip(self.param_groups, self.parts, strict=True))
        ]
        return "\n".join(["normgeo.optim.Optimizer", *groups])

    def still(self) -> list[tuple[str, str]]:
        """The leaves that a step would not move, and why."""
        out, leaves = [], self._leaves
        for group in self.param_groups:
            for leaf, parameter in ((leaf, p) for p in group["params"] for leaf in leaves[p]):
                reasons = {
                    "frozen (requires_grad=False)": not parameter.requires_grad,
                    "mass 0": leaf.mass == 0,
                    "lr 0": float(group["lr"]) == 0,
                }
                if why := ", ".join(reason for reason, holds in reasons.items() if holds):
                    out.append((leaf.name, why))
        return out

    @torch.no_grad()
    def sizes(self) -> dict[str, float]:
        """leaf name -> the norm of the weight as it is now.

        >>> import normgeo as ng
        >>> ng.optimizer(ng.nn.Linear(4, 2, zero=True)).sizes()
        {'weight': 0.0}
        """
        out: dict[str, float] = {}
        for p, leaves in self._leaves.items():
            whole = p if (sharded := as_dtensor(p)) is None else sharded.full_tensor()
            out |= {leaf.name: float(leaf.norm.norm(leaf.read(whole))) for leaf in leaves}
        return out

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has the weights that the iterate wants evaluated; outside, those it trains with, to the bit.
        An average is brought to what its constraint holds: one of points of a sphere is inside it, and that of
        `ScheduleFree` is of points beyond. `step()` inside is refused, and so is saving: leave the block first.

        >>> import normgeo as ng
        >>> model = ng.nn.MLP(8, 16, 4)
        >>> opt = ng.optimizer(model)
        >>> with opt.averaged():
        ...     pass  # evaluate the model here
        """
        if self._evaluating:
            raise RuntimeError("`with opt.averaged()` inside another: the model has its averaged weights already")
        with torch.no_grad():
            stacks = [stack for group in self._ready() for stack in group.stacks]
            training = [stack.weights() for stack in stacks]
            for stack, W in zip(stacks, training, strict=True):
                stack.write(averaged(stack, W), [True] * len(stack))
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
        stacks = [stack for group in self._ready() for stack in group.stacks]
        radii = {leaf: r for stack in stacks for leaf, r in zip(stack.leaves, stack.radii.tolist(), strict=True)}
        still = dict(self.still())
        rows, leaves = [("leaf", "role", "lr", "radius", "moved", "")], self._leaves
        for group in self.param_groups:
            for parameter, leaf in ((p, leaf) for p in group["params"] for leaf in leaves[p]):
                moved = int(self.state[parameter].get(state_key(leaf, "", "moved"), 0))
                why = still.get(leaf.name, "" if moved else "no gradient yet, or steps too small for its dtype")
                radius = f"{radii.get(leaf, 0.0):.4g}"
                rows.append((leaf.name, leaf.role, f"{float(group['lr']):g}", radius, str(moved), why))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
