"""Bounds along a recorded graph: x·μ of every leaf at the recorded inputs and weights, never exceeded.

    slots    every operation that mixes entries is a node; for each input ‖dy‖ ≤ slot·‖dx‖, in the measures of both
    uses     a weight at work: ‖dy‖ ≤ x·‖Δ‖_ℓ, where x is the size of what it multiplies, as recorded
    μ        flows backwards (`graph`): μ(n) = Σ slot·μ(consumer), and x·μ of a leaf is the sum over its uses
    promise  ‖J Δ‖ ≤ Σ_ℓ x_ℓ μ_ℓ ‖Δ_ℓ‖_ℓ ≤ ‖Δ‖

What is between two nodes is kept entry by entry (`local`). Sizes of activations, slopes of activations, deviations in
normalisation are those of the recorded forward: a bound over all inputs would be infinite for most networks. Norms of
matrices, gains, sizes of what a weight or another activation multiplies count as at least 1: a zero head, LoRA's B = 0 or
a layer scale of 1e-6 say nothing about what is behind them after the first step.

An operation without a rule here counts with slots of 1 that are assumed, unless its rule for `geometry.operation` gives
bounds, and the plan says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.geometry.bounds.ball import balls, is_known
from normgeo.geometry.bounds.local import Local, Measure, Root, Source, Term, stretch
from normgeo.geometry.factor import Factor, assumed, bound
from normgeo.geometry.graph import Graph, Node
from normgeo.geometry.leaf import Leaf
from normgeo.geometry.record import Call, Recording, Value

__all__ = ["RULES", "Bounds", "Linearized", "Piece", "bounds", "linearization"]

MOST_TERMS = 6
"""more entries than this behind one entry are a node"""

Rule = Callable[["Linearized"], Any]
RULES: dict[Any, Rule] = {}
R = TypeVar("R", bound=Rule)


def linearization(*functions: str | Callable[..., Any]) -> Callable[[R], R]:
    """Declare how much a torch function can stretch a change, by itself or by its name, for `sensitivity="traced"`. The
    rule gets a `Linearized` and returns the derivative of its output (a tuple for several outputs).

    >>> import torch, normgeo as ng
    >>> @ng.geometry.linearization("logcumsumexp")
    ... def _(op):
    ...     x = op.local(0)  # every output is an average of changes of entries before it
    ...     return op.node(ng.geometry.Measure(), [(x, ng.geometry.Measure(), 1.0)])
    >>> class Model(torch.nn.Linear):
    ...     def forward(self, x): return super().forward(x).logcumsumexp(-1)
    >>> ng.compile(Model(4, 2), (torch.ones(1, 4),), sensitivity="traced").assumed
    {}
    """

    def keep(rule: R) -> R:
        RULES.update(dict.fromkeys(functions, rule))
        return rule

    return keep


Piece = tuple[Local | None, Measure, float]
"""a derivative, the measure in which it is needed, and by how much the operation stretches that"""


@dataclass(frozen=True)
class Bounds:
    """x·μ of every leaf with how well it is known, the size of what it multiplies, and the operations without a rule."""

    products: Mapping[str, Factor]
    sizes: Mapping[str, float]
    assumed: Mapping[str, int]


def bounds(
    recording: Recording,
    leaves: Sequence[Leaf],
    parameters: Mapping[str, Parameter],
    axis: int = -1,
    declared: Mapping[int, Sequence[Factor]] | None = None,
) -> Bounds:
    """‖J_ℓ‖ of every leaf from above. The output is measured by its RMS over `axis`, maximum over everything else.
    declared: slots of calls whose own rule gives bounds, by index of the call."""
    tracer = Tracer(recording, leaves, parameters, declared or {})
    tracer.run()
    return tracer.finish(axis)


class Linearized:
    """A call near the recorded point, as its rule sees it.

    >>> import torch
    >>> from normgeo.geometry.record import record
    >>> recording = record(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    >>> Linearized(Tracer(recording, [], {}, {}), recording.calls[0]).tensor(0)
    tensor([[1., 1.]])
    """

    def __init__(self, tracer: Tracer, call: Call) -> None:
        self.tracer, self.call, self.name = tracer, call, call.name

    @property
    def outputs(self) -> tuple[Value, ...]:
        return self.call.outputs

    def argument(self, position: int, name: str = "", default: Any = None) -> Any:
        """An argument, by position or by name; tensors are `Value`s."""
        if position < len(self.call.args):
            return self.call.args[position]
        return self.call.kwargs.get(name, default)

    def local(self, x: Any, name: str = "") -> Local | None:
        """The derivative of an argument (a value, or its position); None for what does not change."""
        value = self.argument(x, name) if isinstance(x, int) else x
        return self.tracer.locals.get(value.index) if isinstance(value, Value) else None

    def tensor(self, x: Any, name: str = "") -> Tensor:
        """The recorded tensor of an argument."""
        value = self.argument(x, name) if isinstance(x, int) else x
        out: Tensor = value.tensor
        return out.detach()

    @property
    def moving(self) -> list[Value]:
        """The arguments that change, each once."""
        given = {x.index: x for x in self.call.inputs if x.index in self.tracer.locals}
        return list(given.values())

    def node(
        self,
        measure: Measure,
        pieces: Iterable[Piece],
        uses: Iterable[tuple[str, float]] = (),
        shape: Sequence[int] | None = None,
        known: Callable[[float], Factor] = bound,
        output: int = 0,
    ) -> Local:
        """The output as a new root, measured so: dy is the sum of the pieces, each of which stretches by no more than it
        says, and of `uses`, which stretch a change of a leaf by so much. `shape`: as which the measure sees the output."""
        size = tuple(self.call.outputs[output].shape)
        made = self.tracer.node(self.call, measure, pieces, uses, tuple(shape or size), known)
        if made.shape == size:
            return made
        return Local(made.root, size, (Term(torch.arange(math.prod(size)).reshape(size)),))


@dataclass
class Tracer:
    """Walks through a recording."""

    recording: Recording
    leaves: Sequence[Leaf]
    parameters: Mapping[str, Parameter]
    declared: Mapping[int, Sequence[Factor]]
    graph: Graph = field(default_factory=Graph)
    locals: dict[int, Local] = field(default_factory=dict)
    """the derivative of every value that changes, by its index"""
    uses: list[tuple[str, int, Factor]] = field(default_factory=list)
    """leaf, node, x"""
    assumed: dict[str, int] = field(default_factory=dict)
    owners: dict[int, Parameter] = field(default_factory=dict)
    """the parameter that is a root, by the root's id"""

    def run(self) -> None:
        of = {id(p): [leaf for leaf in self.leaves if leaf.parameter == name] for name, p in self.parameters.items()}
        for value in self.recording.parameters:
            if mine := of.get(id(value.tensor)):
                root = Root(tuple(value.shape), [balls(leaf, value.shape) for leaf in mine])
                self.locals[value.index] = Local(root, tuple(value.shape), (Term(),))
                self.owners[id(root)] = value.tensor  # type: ignore[assignment]
        for call in self.recording.calls:
            self._call(call)

    def finish(self, axis: int) -> Bounds:
        local = self.locals.get(self.recording.output.index)
        products = {leaf.name: bound(0.0) for leaf in self.leaves}
        sizes = {leaf.name: 0.0 for leaf in self.leaves}
        if local is not None:
            measure = Measure((axis % len(local.shape),) if local.shape else ())
            end = self.node(None, measure, [(local, measure, 1.0)], (), local.shape, bound)
            mu = self.graph.sensitivities(self.graph.nodes[_index(end.root)])
            for name, node, x in self.uses:
                products[name] = products[name] + x * mu[node]
                sizes[name] = max(sizes[name], x.value)
        for leaf in self.leaves:
            if not is_known(leaf.norm):
                products[leaf.name] = assumed(products[leaf.name].value)
        return Bounds(products, sizes, self.assumed)

    def node(
        self,
        call: Call | None,
        measure: Measure,
        pieces: Iterable[Piece],
        uses: Iterable[tuple[str, float]],
        shape: tuple[int, ...],
        known: Callable[[float], Factor],
    ) -> Local:
        edges: dict[int, float] = {}
        named: dict[str, float] = {}
        for local, needed, gain in pieces:
            for name, factor in () if local is None else self.stretched(local, needed):
                target: Any = edges if isinstance(name, int) else named
                target[name] = target.get(name, 0.0) + factor * gain
        for name, factor in uses:
            named[name] = named.get(name, 0.0) + factor
        if call is not None and not all(map(math.isfinite, (*edges.values(), *named.values()))):
            self.assumed[call.name] = self.assumed.get(call.name, 0) + 1
            known = _assumed_one
        self.graph.path = [call.path] if call and call.path else []
        inputs: list[Node] = [self.graph.nodes[i] for i in edges]
        name = call.name if call else "output"
        made = self.graph.op(
            name, *inputs, slots=[known(x) for x in edges.values()], size=bound(1.0), features=0, axis=-1
        )
        self.uses += [(leaf, made.index, known(x)) for leaf, x in named.items()]
        root = Root(shape, [[Source(made.index, measure.count(shape), measure)]])
        return Local(root, shape, (Term(),))

    def is_node(self, root: Root) -> bool:
        """Not a parameter."""
        return isinstance(root.sources[0][0].name, int)

    def owner(self, root: Root) -> Parameter | None:
        """The parameter that is this root."""
        return self.owners.get(id(root))

    def stretched(self, local: Local, needed: Measure) -> list[tuple[int | str, float]]:
        """By how much each source of the root can change dy in this measure."""
        return [(each[0].name, min(stretch(local, source, needed) for source in each)) for each in local.root.sources]

    def _call(self, call: Call) -> None:
        op = Linearized(self, call)
        if not op.moving or not any(_carries(value.tensor) for value in call.outputs):
            return
        rule = RULES.get(call.function) or RULES.get(call.name)
        complex_ = any(value.tensor.is_complex() for value in (*op.moving, *call.outputs))
        out = self.unknown(op) if rule is None or complex_ else rule(op)
        each = out if isinstance(out, tuple | list) else (out,) * len(call.outputs)
        for value, local in zip(call.outputs, each, strict=True):
            self.locals.pop(value.index, None)
            if local is not None and _carries(value.tensor):
                self.locals[value.index] = local

    def unknown(self, op: Linearized) -> tuple[Local, ...]:
        """What no rule tells: assumed, or what the rule of `operation` says."""
        locals_ = [local for x in op.moving if (local := op.local(x)) is not None]
        slots = self.declared.get(op.call.index, ())
        told = len(slots) == len(locals_) and all(slot.known == "bound" for slot in slots)
        if not told:
            self.assumed[op.name] = self.assumed.get(op.name, 0) + 1
        out = []
        for k, value in enumerate(op.outputs):
            shape = tuple(value.shape)
            axes = tuple(a for a in locals_[0].features() if locals_[0].shape == shape) or (len(shape) - 1,) * bool(
                shape
            )
            gains = [slot.value for slot in slots] if told else [1.0] * len(locals_)
            pieces = [(x, Measure(x.features()), gain) for x, gain in zip(locals_, gains, strict=True)]
            out.append(op.node(Measure(axes), pieces, known=bound if told else assumed, output=k))
        return tuple(out)


def _index(root: Root) -> int:
    index = root.sources[0][0].name
    assert isinstance(index, int)
    return index


def _carries(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _assumed_one(value: float) -> Factor:
    return assumed(value if math.isfinite(value) else 1.0)
