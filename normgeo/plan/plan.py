"""The Plan: a flat, frozen table of leaves. It knows the modular norm of the network and makes its optimizer."""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from normgeo.geometry import Graph, Input, Leaf, Node, Sharpness
from normgeo.geometry.outputs import Wanted
from normgeo.linalg import Polar
from normgeo.optim import Direction, Optimizer
from normgeo.plan.groups import Precision, Target, groups_of, optimizer_of
from normgeo.plan.names import find, some
from normgeo.plan.paper import page, why
from normgeo.plan.promise import judge, sharpness_of
from normgeo.plan.refresh import refreshed
from normgeo.plan.serialise import fields_from_json, plan_to_json
from normgeo.plan.trainer import Factory, for_trainer
from normgeo.plan.verdict import Verdict

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """The leaves of a network, with s = (M/m)·x·μ and r = 1/s for each:

        ‖w‖ = max s·‖w_ℓ‖_ℓ,   ‖g‖* = Σ ‖g_ℓ‖*_ℓ/s,   dualize(g)_ℓ = r·dualize_ℓ(g_ℓ),   M = Σ m over trainable leaves.

    If all factors are bounds, ‖f(w + Δ) - f(w)‖ ≤ ‖Δ‖ to first order for weights in their unit balls and inputs no larger
    than those the plan was compiled for.

    >>> import torch, normgeo as ng
    >>> model = ng.nn.MLP(4, 8, 2)
    >>> plan = ng.compile(model)
    >>> gs = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    >>> round(plan.norm(plan.dualize(gs)).item(), 2)
    1.0
    """

    leaves: tuple[Leaf, ...]
    identity: Mapping[str, weakref.ref[Parameter]] = field(default_factory=dict, compare=False, repr=False)
    """parameters at compile time, to find them again when their names change"""
    rebuild: Callable[[nn.Module], Plan] | None = field(default=None, compare=False, repr=False)
    assumed: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """operations without a rule, and how often they ran"""
    unused: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """frozen parameters that the output does not depend on; they have no leaf"""
    directions: Mapping[str, Direction] = field(default_factory=dict, repr=False)
    """parameter name -> the direction that a budget gives it, in place of the dual of its norm"""
    inputs: tuple[Input, ...] = ()
    """what is assumed of each input"""
    axis: int = -1
    """of the features of the output"""
    ways: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False, repr=False)
    """leaf name -> the operations between it and the output"""
    graph: Callable[[nn.Module], tuple[Graph, Node]] | None = field(default=None, compare=False, repr=False)
    """draws the graph of operations anew, for models whose modules declare theirs"""

    # ---- the modular norm

    @property
    def mass(self) -> float:
        """M, the mass of all trainable leaves."""
        return sum(leaf.mass for leaf in self.leaves if leaf.trainable)

    def norm(self, ws: Mapping[str, Tensor]) -> Tensor:  # ()
        """The modular norm of a change, given as parameter name -> tensor; infinite if a leaf without mass moves."""
        sizes = [(leaf, leaf.norm.norm(seen)) for leaf, seen in self._seen(ws)]
        each = [size / leaf.radius if leaf.radius else torch.where(size > 0, math.inf, size) for leaf, size in sizes]
        return torch.stack(each).amax()

    def dual_norm(self, gs: Mapping[str, Tensor]) -> Tensor:  # ()
        """max ⟨g, Δ⟩ over changes of modular norm 1."""
        return torch.stack([leaf.radius * leaf.norm.dual_norm(seen) for leaf, seen in self._seen(gs)]).sum()

    def dualize(self, gs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The change of modular norm 1 with the largest ⟨g, Δ⟩."""
        out = {name: torch.zeros_like(g) for name, g in gs.items()}
        for leaf, seen in self._seen(gs):
            leaf.write(out[leaf.parameter], leaf.radius * leaf.norm.dualize(seen))
        return out

    def _seen(self, tensors: Mapping[str, Tensor]) -> list[tuple[Leaf, Tensor]]:
        names = {leaf.parameter for leaf in self.leaves if leaf.trainable}
        if missing := sorted(names - set(tensors)):
            raise ValueError(f"no tensor for {some(missing)}; give one for every trainable parameter of the plan")
        if unknown := sorted(set(tensors) - {leaf.parameter for leaf in self.leaves}):
            raise ValueError(f"the plan does not know {some(unknown)}")
        if not names:
            raise ValueError("all parameters of the plan are frozen; its norm is that of no change at all")
        return [(leaf, leaf.read(tensors[leaf.parameter].detach())) for leaf in self.leaves if leaf.trainable]

    # ---- its optimizer

    @overload
    def optimizer(
        self, model: Target, *, precision: Precision | Polar = ..., dry_run: Literal[False] = False, **options: Any
    ) -> Optimizer: ...

    @overload
    def optimizer(
        self, model: Target, *, precision: Precision | Polar = ..., dry_run: Literal[True], **options: Any
    ) -> list[tuple[str, str]]: ...

    def optimizer(
        self, model: Target, *, precision: Precision | Polar = "tight", dry_run: bool = False, **options: Any
    ) -> Optimizer | list[tuple[str, str]]:
        """The optimizer of the model, or of parameter groups made with `groups`. Options are those of `Optimizer`.

        precision: how polar factors are computed; both named ones multiply in bfloat16 where the device does that faster.
        "tight": singular values of G/‖G‖_F in [1e-3, 1] land in [.99, 1], never above the unit ball. "fast", two thirds of
        the work: those in [4e-3, 1] in [.919, 1.02], smaller ones fall short. "exact": SVD. A
        torch.dtype: "tight" with all products in it, with 32 bits in the Gram form where matrices are long enough.
        Or any `normgeo.linalg.Polar`.
        constraint: one for all leaves, or by pattern with "*" for the rest, {"head": Free(), "*": Ball(2.0)}; each pattern
        becomes a parameter group.
        dry_run=True returns, in place of the optimizer, the leaves that it would not move and why.
        """
        opt = optimizer_of(self, model, precision, options)
        return opt.still() if dry_run else opt

    def groups(
        self,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        model: nn.Module | None = None,
        only: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Parameter groups for `optimizer`: one for all, and one for each set of `options` given by pattern.

        >>> import normgeo as ng
        >>> model = ng.nn.MLP(4, 8, 2)
        >>> groups = ng.compile(model).groups({"4": dict(lr=0.05)})
        >>> [(len(group["params"]), group.get("lr")) for group in groups]
        [(2, None), (1, 0.05)]
        """
        return groups_of(self, options, model, only)

    def find(self, model: nn.Module | None = None) -> dict[str, Parameter]:
        """name -> parameter of the model, by name or, where names have changed, by identity."""
        return find(dict.fromkeys(leaf.parameter for leaf in self.leaves), self.identity, self.unused, model)

    def for_trainer(self, **options: Any) -> tuple[type[Factory], dict[str, Any]]:
        """`optimizer_cls_and_kwargs` for `transformers.Trainer` (5 or newer), with the options of `optimizer`. The
        trainer's schedule multiplies lr; its learning_rate and weight_decay are not used. No tensors are held:
        parameters are found by their names in the model that the trainer gives.

        >>> import normgeo as ng
        >>> plan = ng.compile(ng.nn.MLP(4, 8, 2))
        >>> cls, kwargs = plan.for_trainer(lr=0.2)
        >>> cls()(ng.nn.MLP(4, 8, 2), **kwargs).param_groups[0]["lr"]
        0.2
        """
        return for_trainer(self, options)

    def extend(self, model: nn.Module) -> Plan:
        """A plan for a model that has grown, compiled anew with the same options. Masses go with the modules.

        >>> import normgeo as ng
        >>> trunk = ng.nn.Linear(4, 4).tare(3)
        >>> plan = ng.compile(trunk)
        >>> [leaf.mass for leaf in plan.extend(ng.nn.Linear(4, 2) @ trunk).leaves]
        [3.0, 1.0]
        """
        if self.rebuild is None:
            raise ValueError("a loaded or copied plan cannot be extended; write plan = normgeo.compile(model)")
        return self.rebuild(model)

    def __reduce__(self) -> tuple[Any, ...]:
        kept: dict[str, Any] = {"directions": self.directions, "inputs": self.inputs}
        return functools.partial(Plan, unused=self.unused, axis=self.axis, **kept), (self.leaves,)

    def refresh(
        self,
        model: nn.Module,
        batch: Sequence[Any] | Mapping[str, Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        output: Wanted = None,
        draws: int = 3,
        backwards: int = 32,
        seed: int = 0,
    ) -> Plan:
        """This plan with x·μ of every leaf measured at the model's present weights, by `normgeo.geometry.measure`, and the
        radii that follow. batch: what the model is called with, a tuple of arguments (with kwargs beside it) or a dict of
        named ones. output: as in `compile`. Masses, norms and radii that were given stay. An optimizer that was made
        before keeps its radii.

        >>> import torch, normgeo as ng
        >>> _ = torch.manual_seed(0)
        >>> model = ng.nn.MLP(4, 8, 2)
        >>> [leaf.source for leaf in ng.compile(model).refresh(model, (torch.ones(1, 4),)).leaves]
        ['measured', 'measured', 'measured']
        """
        options = {"output": output, "draws": draws, "backwards": backwards, "seed": seed}
        return refreshed(self, model, batch, kwargs, options)

    def holds(self, model: nn.Module, batch: Sequence[Any] | None = None) -> Verdict:
        """Whether the promise ‖f(w + Δ) - f(w)‖ ≤ ‖Δ‖ applies at the model's present weights and, if given, to these
        inputs: all factors are bounds, weights are in the unit balls, and inputs no larger than was assumed. Plans that
        were traced are for the weights and inputs that they were traced at.

        >>> import normgeo as ng
        >>> model = ng.nn.Linear(4, 2)
        >>> bool(ng.compile(model).holds(model)), bool(ng.compile(0.5 * ng.nn.Stream(model, 0.5)).holds(model))
        (True, False)
        """
        return judge(self, model, batch or ())

    def sharpness(self, model: nn.Module) -> Sharpness:
        """α, β, γ: how far the promise, which is for small steps, can be off for a step of size ‖Δ‖,

            ‖f(w + Δ) - f(w) - Df[Δ]‖ ≤ α/2·‖Δ‖²,

        for w and w + Δ in their unit balls. A worst case over all weights and inputs, with the dimension factors that it
        prints; no step size rests on it. `of_loss` makes the sharpness λ of a loss of it.

        >>> import normgeo as ng
        >>> model = ng.nn.Linear(8, 4) @ ng.nn.Linear(8, 8)
        >>> print(ng.compile(model).sharpness(model))
        α 0.5, β 1, γ 0 (bounds)
          linear  100 %  of α
        """
        return sharpness_of(self, model)

    def sizes(self, model: nn.Module | None = None) -> dict[str, float]:
        """leaf name -> norm of the weight as it is now.

        >>> import normgeo as ng
        >>> model = ng.nn.Linear(4, 2, zero=True)
        >>> ng.compile(model).sizes(model)
        {'weight': 0.0}
        """
        found = self.find(model)
        return {leaf.name: float(leaf.norm.norm(leaf.read(found[leaf.parameter].detach()))) for leaf in self.leaves}

    # ---- on paper

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, markdown: bool = False) -> str:
        """The plan as a table for people, as `print` shows it or in Markdown, and what there is to know beside it."""
        return page(self, markdown)

    def why(self, name: str) -> str:
        """What a leaf is, where its numbers come from, and the operations between it and the output.

        >>> import torch, normgeo as ng
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> print(ng.compile(model, (torch.ones(1, 4),)).why("0.weight").splitlines()[-1])
        linear (0) → bias (0) → relu (1) → linear (2) → bias (2) → output
        """
        return why(self, name)

    def to_json(self) -> str:
        """The plan as JSON; `from_json` gives it back."""
        return plan_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote."""
        return cls(**fields_from_json(text))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a JSON file, whole or not at all."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.to_json(), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan that `save` wrote.

        >>> import normgeo as ng, tempfile, pathlib
        >>> plan = ng.compile(ng.nn.MLP(4, 8, 2))
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "plan.json"
        >>> plan.save(file)
        >>> ng.Plan.load(file) == plan
        True
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"))
