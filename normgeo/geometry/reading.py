"""Reading a recording: every value gets a meaning (a node of the graph, a weight, or a constant) by the rule of the call
that gave it, and every parameter is found at work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from normgeo.geometry.declare import GeometryError, declare, trace
from normgeo.geometry.entries import Axis, Entries
from normgeo.geometry.factor import Factor, assumed, typical
from normgeo.geometry.graph import Graph, Node
from normgeo.geometry.layout import Layout
from normgeo.geometry.record import Call, Recording, Span, Value
from normgeo.geometry.registry import rule_of

__all__ = ["Found", "Meaning", "Mixed", "Operation", "Reader", "Weight"]


@dataclass(frozen=True, eq=False)
class Weight:
    """A value made of one parameter and constants."""

    parameter: Parameter
    entries: Entries | None
    """which of its entries, None if they have no strides"""
    changed: tuple[str, ...] = ()
    """what was done to them: add for 1 + w, exp, ..."""


@dataclass(frozen=True, eq=False)
class Mixed:
    """A value made of several parameters: of sums, products or matrix products of weights."""

    how: str
    parts: tuple[Weight | Mixed, ...]


Meaning = Node | Weight | Mixed | None


@dataclass(frozen=True, eq=False)
class Found:
    """A weight at work: what it is used as, at which node, and which of its axes go out, in, or count blocks."""

    weight: Weight
    node: Node
    role: str
    groups: tuple[tuple[str, tuple[Axis, ...]], ...]
    call: Call
    axis: int | None = None
    """the axis of the call's output that the first group o is on"""
    whole: bool = False
    """whether all entries share what is used of some: rows of tables"""
    parts: tuple[str, ...] = ()
    """equal blocks along the outputs, where the operation itself says so"""

    @property
    def offset(self) -> int:
        return self.weight.entries.offset if self.weight.entries else 0


class Operation:
    """A call as its rule sees it.

    >>> import torch
    >>> from normgeo.geometry.record import record
    >>> recording = record(torch.nn.ReLU(), (torch.ones(2),))
    >>> Operation(Reader(recording), recording.calls[0]).name
    'relu'
    """

    def __init__(self, reader: Reader, call: Call) -> None:
        self.reader, self.call, self.name = reader, call, call.name

    def argument(self, position: int, name: str = "", default: Any = None) -> Any:
        """An argument, by position or by name; tensors are `Value`s."""
        if position < len(self.call.args):
            return self.call.args[position]
        return self.call.kwargs.get(name, default)

    def meaning(self, x: Any) -> Meaning:
        return self.reader.meaning.get(x.index) if isinstance(x, Value) else None

    def data(self, x: Any, name: str = "") -> Node | None:
        """The node of an argument (a value, or its position); a weight becomes one, as tokens. None for a constant."""
        value = self.argument(x, name) if isinstance(x, int) else x
        meaning = self.meaning(value)
        if isinstance(meaning, Weight | Mixed):
            return self.reader.token(self.call, value, meaning)
        return meaning

    @property
    def nodes(self) -> list[Node]:
        """The nodes of all arguments."""
        return [node for x in self.call.inputs if (node := self.data(x)) is not None]

    def result(
        self,
        *inputs: Node | None,
        slots: Factor | Sequence[Factor] | None = None,
        size: Factor | None = None,
        name: str = "",
        axis: int | None = None,
    ) -> Node:
        """A node with these inputs. `slots` as in `Graph.op`, typically 1. `axis`: of the features, as the first input's
        unless the number of axes has changed."""
        present = [node for node in inputs if node is not None]
        return self.reader.node(self.call, name or self.name, present, slots or typical(1.0), size, axis)

    def use(
        self,
        weight: Weight,
        node: Node,
        role: str,
        groups: Iterable[tuple[str, Iterable[int]]] = (),
        axis: int | None = None,
        whole: bool = False,
        parts: tuple[str, ...] = (),
    ) -> None:
        """Note that the node uses a weight. groups: letter -> axes of the weight's value, in the order that the norm wants:
        o for outputs, i for inputs, b for blocks, d for the entries of a vector."""
        axes = weight.entries.axes if weight.entries else ()
        chosen = tuple((letter, tuple(axes[i] for i in its)) for letter, its in groups) if axes else ()
        self.reader.found.append(Found(weight, node, role, chosen, self.call, axis, whole, parts))


@dataclass
class Reader:
    """Reads a recording into a graph."""

    recording: Recording
    graph: Graph = field(default_factory=Graph)
    meaning: dict[int, Meaning] = field(default_factory=dict)
    """of each value, by its index; constants have none"""
    found: list[Found] = field(default_factory=list)
    made: dict[int, Call] = field(default_factory=dict)
    """the call behind a node, by its index"""
    axis: dict[int, int] = field(default_factory=dict)
    """the axis of a node's features, by its index, where it is not the last"""
    assumed: dict[str, int] = field(default_factory=dict)
    """operations without a rule, and how often they run"""

    def read(self) -> Node:
        """The node of the recording's output."""
        for value in self.recording.parameters:
            assert isinstance(value.tensor, Parameter)
            self.meaning[value.index] = Weight(value.tensor, Entries.all(value.shape))
        for value in self.recording.inputs:
            if value.tensor.is_floating_point():
                self.meaning[value.index] = self.graph.input()
        spans: dict[int, list[Span]] = {}
        for span in self.recording.spans:
            if declare.dispatch(type(span.module)) is not declare.dispatch(object):
                spans.setdefault(span.first, []).insert(0, span)
        position, calls = 0, self.recording.calls
        while position < len(calls):
            declared = next((s for s in spans.get(position, ()) if s.last > position and self._declared(s)), None)
            if declared is not None:
                position = declared.last
                continue
            self._call(calls[position])
            position += 1
        output = self.meaning.get(self.recording.output.index)
        if not isinstance(output, Node):
            raise GeometryError("the model's output does not depend on its weights or floating inputs; choose output=")
        return output

    def node(
        self,
        call: Call,
        name: str,
        inputs: Sequence[Node],
        slots: Factor | Sequence[Factor],
        size: Factor | None = None,
        axis: int | None = None,
    ) -> Node:
        self.graph.path = [call.path] if call.path else []
        size = typical(1.0) if size is None else size
        node = self.graph.op(name, *inputs, slots=slots, size=size, features=0, layout=Layout())
        self.graph.path = []
        self.made[node.index] = call
        if axis is None and inputs:
            axis = self.axis.get(inputs[0].index)
        if axis is not None and call.outputs and -axis <= call.outputs[0].tensor.ndim:
            self.axis[node.index] = axis
        return node

    def token(self, call: Call, value: Value, meaning: Weight | Mixed) -> Node:
        """A weight that is used as data: rows of features."""
        if isinstance(meaning, Mixed):
            parts = [self.token(call, value, part) for part in meaning.parts]
            node = self.node(call, meaning.how, parts, typical(1.0))
        else:
            node = self.node(call, "token", (), ())
            self.found.append(Found(meaning, node, "token", (), call, None, whole=True))
        self.meaning[value.index] = node
        return node

    def _call(self, call: Call) -> None:
        meanings = [self.meaning.get(x.index) for x in call.inputs]
        if all(m is None for m in meanings) or not any(_carries(value.tensor) for value in call.outputs):
            return
        op = Operation(self, call)
        rule = rule_of(call.function, call.name) or _unknown
        out = rule(op)
        each = out if isinstance(out, tuple) else (out,) * len(call.outputs)
        for value, meaning in zip(call.outputs, each, strict=True):
            if meaning is None or (isinstance(meaning, Node) and not _carries(value.tensor)):
                self.meaning.pop(value.index, None)
            else:
                self.meaning[value.index] = meaning

    def _declared(self, span: Span) -> bool:
        """Hand a run of a module on to the declaration of its type; False if that does not work out."""
        inputs = [x for x in span.args if isinstance(x, Value)]
        nodes: list[Any] = []
        for x in inputs:
            meaning = self.meaning.get(x.index)
            if isinstance(meaning, Weight | Mixed):
                return False
            nodes.append(meaning if meaning is not None else self.graph.input())
        before = len(self.graph.nodes), len(self.graph.uses)
        self.graph.path = [span.path] if span.path else []
        try:
            out = trace(span.module, self.graph, *nodes)
        except (GeometryError, ValueError):
            del self.graph.nodes[before[0] :], self.graph.uses[before[1] :]
            return False
        finally:
            self.graph.path = []
        given = span.outputs if isinstance(span.outputs, tuple | list) else (span.outputs,)
        for value, node in zip(given, out if isinstance(out, tuple) else (out,), strict=False):
            self.meaning[value.index] = node
        return True


def _carries(x: Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _unknown(op: Operation) -> Meaning:
    """An operation without a rule: sensitivity 1 to each input, assumed; weights in it have the role of their shape."""
    reader, nodes, weights = op.reader, [], []
    reader.assumed[op.name] = reader.assumed.get(op.name, 0) + 1
    if (made := of_weights(op)) is not None:
        return made
    for x in op.call.inputs:
        meaning = op.meaning(x)
        nodes += [meaning] if isinstance(meaning, Node) else []
        weights += parameters(meaning)
    out = reader.node(op.call, op.name, nodes, assumed(), assumed())
    for weight in weights:
        op.use(weight, out, "assumed")
    return out


def parameters(meaning: Meaning) -> list[Weight]:
    """The weights that a value is made of."""
    if isinstance(meaning, Mixed):
        return [w for part in meaning.parts for w in parameters(part)]
    return [meaning] if isinstance(meaning, Weight) else []


def changed(weight: Weight | Mixed, how: str) -> Weight | Mixed:
    """The weight after an elementwise function of its own."""
    if isinstance(weight, Mixed):
        return weight
    return replace(weight, changed=(*weight.changed, how))


def of_weights(op: Operation) -> Weight | Mixed | None:
    """What an operation makes of weights alone; None if data take part."""
    given = [(x, m) for x in op.call.inputs if (m := op.meaning(x)) is not None]
    if not given or any(isinstance(m, Node) for _, m in given):
        return None
    weights = []
    for x, m in given:
        same = op.call.outputs[0].shape == x.shape
        weights.append(changed(m if same or isinstance(m, Mixed) else replace(m, entries=None), op.name))  # type: ignore[arg-type]
    return weights[0] if len(weights) == 1 else Mixed("mul", tuple(weights))
