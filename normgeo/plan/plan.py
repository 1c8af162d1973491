"""The Plan: a flat, frozen table of leaves. It knows the modular norm of the network and makes its optimizer."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
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

from normgeo.geometry import Factor, Graph, Input, Leaf, Node, Sharpness, measure, sharpness, unwrapped
from normgeo.geometry.factor import Known
from normgeo.linalg import FAST, SVD, TIGHT, Polar
from normgeo.norms import with_polar
from normgeo.optim import Direction, Filter, Optimizer
from normgeo.optim.options import ELSEWHERE
from normgeo.plan.names import aliases, named_parameters, some
from normgeo.plan.paper import page, why
from normgeo.plan.patterns import overrides
from normgeo.plan.serialise import from_plain, leaf_from_plain, leaf_to_plain, to_plain
from normgeo.plan.verdict import Verdict
from normgeo.rules import Plain

__all__ = ["Plan"]

Precision = Literal["tight", "fast", "exact"]
PRECISIONS: dict[str, Polar] = {
    "tight": TIGHT,
    "fast": FAST,
    "exact": SVD(),
}
FORMAT = 1


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
        self,
        model: nn.Module | Sequence[dict[str, Any]],
        *,
        precision: Precision | Polar = ...,
        dry_run: Literal[False] = False,
        **options: Any,
    ) -> Optimizer: ...

    @overload
    def optimizer(
        self,
        model: nn.Module | Sequence[dict[str, Any]],
        *,
        precision: Precision | Polar = ...,
        dry_run: Literal[True],
        **options: Any,
    ) -> list[tuple[str, str]]: ...

    def optimizer(
        self,
        model: nn.Module | Sequence[dict[str, Any]],
        *,
        precision: Precision | Polar = "tight",
        dry_run: bool = False,
        **options: Any,
    ) -> Optimizer | list[tuple[str, str]]:
        """The optimizer of the model, or of parameter groups made with `groups`. Options are those of `Optimizer`.

        precision: how polar factors are computed; both named ones multiply in bfloat16 where the device does that faster.
        "tight": singular values of G/‖G‖_F in [1e-3, 1] land in [.99, 1], never above the unit ball. "fast", two thirds of
        the work: those in [4e-3, 1] in [.92, 1.02], smaller ones fall short. "exact": SVD. Or any `normgeo.linalg.Polar`.
        constraint: one for all leaves, or by pattern with "*" for the rest, {"head": Free(), "*": Ball(2.0)}; each pattern
        becomes a parameter group.
        dry_run=True returns, in place of the optimizer, the leaves that it would not move and why.
        """
        polar = PRECISIONS.get(precision) if isinstance(precision, str) else precision
        if not isinstance(polar, Polar):
            raise ValueError(
                f"precision must be one of {sorted(PRECISIONS)} or a normgeo.linalg.Polar, got {precision!r}"
            )
        if unknown := sorted(set(options) - set(inspect.signature(Optimizer).parameters)):
            if unknown[0] in ELSEWHERE:
                raise TypeError(f"{unknown[0]} is no option here: {ELSEWHERE[unknown[0]]}")
            known = [name for name in inspect.signature(Optimizer).parameters if name != "params"]
            raise TypeError(
                f"unknown option {unknown[0]!r}; options are {', '.join(known)}, and plan.groups takes them by pattern"
            )
        by_pattern = options.get("constraint")
        if isinstance(by_pattern, Mapping):
            if not isinstance(model, nn.Module):
                raise TypeError(
                    'constraints by pattern go with the model; in groups write {"head": dict(constraint=...)}'
                )
            options["constraint"] = by_pattern.get("*")
            own = {pattern: {"constraint": one} for pattern, one in by_pattern.items() if pattern != "*"}
            groups = self.groups(own, model=model)
        else:
            groups = self.groups(model=model) if isinstance(model, nn.Module) else list(model)
        if not all(isinstance(group, dict) and "leaves" in group for group in groups):
            raise TypeError("plan.optimizer takes the model, plan.optimizer(model), or groups made by plan.groups(...)")
        groups = [dict(group) for group in groups]
        for group in groups:
            precise = [[dataclasses.replace(f, norm=with_polar(f.norm, polar)) for f in its] for its in group["leaves"]]
            group["leaves"] = precise
        opt = Optimizer(groups, **options)
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
        found = self.find(model)
        wanted = list(found) if only is None else list(overrides("only", dict.fromkeys(only, True), list(found)))
        own = overrides("groups", options, wanted)
        groups: dict[tuple[int, int], dict[str, Any]] = {}
        for name in wanted:
            one: dict[str, Any] = dict(own.get(name, {}))
            if name in self.directions:
                one.setdefault("direction", self.directions[name])
                if isinstance(self.directions[name], Filter):  # a memory of its own
                    one.setdefault("rule", Plain())
            key = (id(own[name]) if name in own else 0, id(self.directions.get(name)))
            group = groups.setdefault(key, {"params": [], "leaves": [], **one})
            group["params"].append(found[name])
            group["leaves"].append([leaf for leaf in self.leaves if leaf.parameter == name])
        return sorted(groups.values(), key=lambda group: len(group) > 2)

    def find(self, model: nn.Module | None = None) -> dict[str, Parameter]:
        """name -> parameter of the model, by name or, where names have changed, by identity."""
        remembered = {name: p for name, ref in self.identity.items() if (p := ref()) is not None}
        shapes = {leaf.parameter: leaf for leaf in self.leaves}
        if model is None:
            if len(remembered) < len(shapes):
                raise ValueError(
                    "this plan does not hold a model (it was loaded, or its model is gone); pass model=model"
                )
            return remembered
        by_name, inside = aliases(model), {id(p) for p in model.parameters()}
        found: dict[str, Parameter] = {}
        for name in shapes:
            parameter = by_name.get(name)
            if parameter is None and name in remembered and id(remembered[name]) in inside:
                parameter = remembered[name]
            if parameter is None:
                raise ValueError(f"the model has no parameter {name}; compile the plan again for this model")
            found[name] = parameter
        known = {id(p) for p in found.values()}
        others = {name: p for name, p in named_parameters(model).items() if id(p) not in known}
        if unknown := [name for name, p in others.items() if p.requires_grad or name not in self.unused]:
            raise ValueError(f"the plan does not know {some(unknown)}; write plan = plan.extend(model)")
        return found

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
        return _restored, (self.leaves, self.directions, self.inputs, self.axis)

    def refresh(
        self,
        model: nn.Module,
        batch: Sequence[Any] | Mapping[str, Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        output: str | int | Callable[[Any], Any] | None = None,
        draws: int = 3,
        backwards: int = 32,
        seed: int = 0,
    ) -> Plan:
        """This plan with x·μ of every leaf measured at the model's present weights, by `normgeo.geometry.measure`, and the
        radii that follow. batch: what the model is called with, a tuple of arguments (with kwargs beside it) or a dict of
        named ones. output: as in `compile`. Masses, norms and radii that were given stay. An optimizer that was made
        before keeps its radii.

        >>> import torch, normgeo as ng
        >>> model = ng.nn.MLP(4, 8, 2)
        >>> [leaf.source for leaf in ng.compile(model).refresh(model, (torch.ones(1, 4),)).leaves]
        ['measured', 'measured', 'measured']
        """
        if isinstance(batch, Tensor):
            raise TypeError("batch is a tuple or a dict of the model's arguments; write plan.refresh(model, (x,))")
        args, named = ((), batch) if isinstance(batch, Mapping) else (tuple(batch), kwargs or {})
        found = measure(
            unwrapped(model),
            self.leaves,
            self.find(model),
            args,
            named,
            output=output,
            axis=self.axis,
            draws=draws,
            backwards=backwards,
            seed=seed,
        )
        again = self.rebuild and functools.partial(
            _refreshed,
            self.rebuild,
            batch=batch,
            kwargs=kwargs,
            output=output,
            draws=draws,
            backwards=backwards,
            seed=seed,
        )
        return dataclasses.replace(self, leaves=found.apply(self.leaves), rebuild=again)

    def holds(self, model: nn.Module, batch: Sequence[Any] | None = None) -> Verdict:
        """Whether the promise ‖f(w + Δ) - f(w)‖ ≤ ‖Δ‖ applies at the model's present weights and, if given, to these
        inputs: all factors are bounds, weights are in the unit balls, and inputs no larger than was assumed.

        >>> import normgeo as ng
        >>> model = ng.nn.Linear(4, 2)
        >>> bool(ng.compile(model).holds(model)), bool(ng.compile(0.5 * ng.nn.Stream(model, 0.5)).holds(model))
        (True, False)
        """
        found = self.find(model)
        moving = [leaf for leaf in self.leaves if found[leaf.parameter].requires_grad]
        reasons = [f"{leaf.name}: x·μ is {_how(leaf)}" for leaf in moving if leaf.known != "bound"]
        sizes = self.sizes(model)
        reasons += [f"{n}: its norm is {s:.4g}, outside the unit ball" for n, s in sizes.items() if not s <= 1 + 1e-5]
        return Verdict((*reasons, *self._larger(batch or ())))

    def _larger(self, batch: Sequence[Any]) -> list[str]:
        if batch and len(batch) != len(self.inputs):
            return [f"{len(batch)} inputs, but the plan is for {len(self.inputs)}"]
        sizes = [(i, x.measure(given), x.size) for i, (x, given) in enumerate(zip(self.inputs, batch, strict=False))]
        return [
            f"input {i}: its size is {s:.4g}, and the plan is for {most:.4g}"
            for i, s, most in sizes
            if not s <= most * (1 + 1e-5)
        ]

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
        if self.graph is None:
            raise ValueError(
                "second derivatives are declared by modules, and this plan was recorded from a forward pass, loaded or "
                "copied; write normgeo.compile(model).sharpness(model), with modules of normgeo.nn or registered ones"
            )
        names = {id(parameter): name for name, parameter in self.find(model).items()}
        leaves = {leaf.name: leaf for leaf in self.leaves}
        graph, output = self.graph(unwrapped(model))
        radii = []
        for use in graph.uses:
            name = names[id(use.parameter)]
            leaf = leaves[f"{name}[{use.block}]" if use.block else name]
            # What a module declares holds for the norm that it declares it in.
            known: Known = "bound" if leaf.norm == use.norm else "typical"
            radii.append(Factor(leaf.radius if leaf.trainable else 0.0, known))
        return sharpness(graph, output, radii)

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
        data = {
            "normgeo plan": FORMAT,
            "leaves": [leaf_to_plain(leaf) for leaf in self.leaves],
            "inputs": [dataclasses.asdict(x) for x in self.inputs],
            "axis": self.axis,
            "directions": {name: to_plain(direction) for name, direction in self.directions.items()},
        }
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote."""
        try:
            data = json.loads(text)
            if data["normgeo plan"] != FORMAT:
                raise ValueError(f"it has format {data['normgeo plan']}, this version reads {FORMAT}")
            directions = {name: from_plain(value) for name, value in data.get("directions", {}).items()}
            inputs = tuple(Input(**x) for x in data.get("inputs", ()))
            leaves = tuple(leaf_from_plain(leaf) for leaf in data["leaves"])
            return _restored(leaves, directions, inputs, data.get("axis", -1))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"this is not a plan that this version of normgeo can read: {error}") from error

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


def _how(leaf: Leaf) -> str:
    return "measured, a lower estimate" if leaf.source.startswith("measured") else leaf.known


def _refreshed(rebuild: Callable[[nn.Module], Plan], model: nn.Module, **options: Any) -> Plan:
    return rebuild(model).refresh(model, **options)


def _restored(
    leaves: tuple[Leaf, ...], directions: Mapping[str, Direction], inputs: tuple[Input, ...], axis: int
) -> Plan:
    return Plan(leaves, directions=directions, inputs=inputs, axis=axis)
