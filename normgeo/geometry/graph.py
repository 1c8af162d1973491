"""The graph of a network's operations, and the two passes over it: sizes flow forward, sensitivities backward.

    size(n)  is computed by each operation from the sizes of its inputs, when the node is made
    μ(output) = 1,   μ(n) = Σ over consumers c of slot sensitivity · μ(c)

On a tree this is the recursion of the modular norm (Large et al., arXiv 2405.14813); on any other DAG it still holds,
since the change of the output is the sum over paths of what each path passes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import Parameter

from normgeo.geometry.curvature import Curvature
from normgeo.geometry.factor import Factor, bound
from normgeo.geometry.layout import Layout
from normgeo.geometry.leaf import View
from normgeo.norms import Norm

__all__ = ["Graph", "Node", "Use"]

ONE, ZERO = bound(1.0), bound(0.0)


@dataclass(frozen=True)
class Node:
    """One operation: what it is called, what it consumes with which sensitivity, and how large its output can be.

    >>> Graph().input(size=bound(2.0)).size.value
    2.0
    """

    index: int
    op: str
    path: str
    inputs: tuple[int, ...]
    slots: tuple[Factor, ...]
    size: Factor
    features: int | None = None
    """how many features the output has, where it is known"""
    layout: Layout = field(default_factory=Layout)
    """the axis that they are on"""
    peak: Factor | None = None
    """how large one entry can be, where that is less than √features·size"""
    curvature: Curvature | None = None
    """its second derivatives, where they are known"""


@dataclass(frozen=True)
class Use:
    """A parameter at work: a change Δ changes the output of `node` by at most input_norm·‖Δ‖, the first to first order.

    >>> import torch, normgeo as ng
    >>> graph, weight = Graph(), Parameter(torch.eye(2))
    >>> graph.use(weight, graph.op("Wx", graph.input()), role="linear", norm=ng.norms.RMSToRMS())
    >>> graph.uses[0].role
    'linear'
    """

    parameter: Parameter
    node: int
    role: str
    norm: Norm
    mass: float
    input_norm: Factor
    view: View | None = None
    block: str = ""
    """name of the block of a fused parameter"""
    mixed: Factor | None = None
    """c in ‖∂²z[Δ, δ]‖ ≤ c·‖Δ‖·‖δ‖ between a change of the parameter and one of an input, where it is known"""

    def seen(self) -> Tensor:
        """The parameter as the norm sees it."""
        stored = self.parameter.detach()
        return stored if self.view is None else self.view.read(stored)


class Graph:
    """Operations in the order in which they run. Modules add to it with `op` and `use`; see `normgeo.geometry.register`.

    >>> from normgeo.geometry import bound
    >>> graph = Graph()
    >>> x = graph.input()
    >>> half = graph.op("halve", x, slots=bound(0.5), size=bound(0.5))
    >>> total = graph.op("add", x, half, slots=(bound(1.0), bound(1.0)), size=bound(1.5))
    >>> [factor.value for factor in graph.sensitivities(total)]
    [1.5, 1.0, 1.0]
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.uses: list[Use] = []
        self.path: list[str] = []

    def input(self, size: Factor = ONE, features: int | None = None) -> Node:
        """What the network is given; by default of size 1 (RMS over features, at most 1 for every token)."""
        return self._add(Node(len(self.nodes), "input", "", (), (), size, features))

    def op(
        self,
        name: str,
        *inputs: Node,
        slots: Factor | Sequence[Factor] = ONE,
        size: Factor | None = None,
        features: int | None = None,
        axis: int | None = None,
        peak: Factor | None = None,
        layout: Layout | None = None,
        curvature: Curvature | None = None,
    ) -> Node:
        """Add an operation. `slots`: its sensitivity to each input, one for all or one each. `size`: of its output, by
        default Σ slot·size(input), right for linear operations and those with op(0) = 0. `features`: how many, as the first
        input; 0 where it is unknown. `axis`: theirs, as the inputs'; or a `layout` that nobody shares.
        `peak`: of a single entry, if it is bounded. `curvature`: its second derivatives; without them the sharpness of the
        network is unknown.
        """
        each = (slots,) * len(inputs) if isinstance(slots, Factor) else tuple(slots)
        if len(each) != len(inputs):
            raise ValueError(f"operation {name!r} has {len(inputs)} inputs and {len(each)} sensitivities")
        if size is None:
            size = sum((s * x.size for s, x in zip(each, inputs, strict=True)), start=ZERO)
        if features is None and inputs:
            features = inputs[0].features
        path = ".".join(self.path)
        if layout is None:
            layout = Layout.shared([x.layout for x in inputs], name) if axis is None else Layout(axis)
        indices = tuple(i.index for i in inputs)
        return self._add(
            Node(len(self.nodes), name, path, indices, each, size, features or None, layout, peak, curvature)
        )

    def use(
        self,
        parameter: Parameter,
        node: Node,
        *,
        role: str,
        norm: Norm,
        mass: float = 1.0,
        input_norm: Factor = ONE,
        slot: Factor = ONE,
        view: View | None = None,
        block: str = "",
        mixed: Factor | None = None,
    ) -> None:
        """Say that `node` uses a parameter: a change Δ changes its output by at most slot·input_norm·‖Δ‖.

        An input_norm below 1 counts as 1, the size that modules are declared for. `mixed`: for an output that is linear in
        the parameter, c in ‖∂²z[Δ, δ]‖ ≤ c·‖Δ‖·‖δ‖ for a change δ of any input; without it the sharpness is unknown.
        """
        size = input_norm.at_least(ONE) * slot
        self.uses.append(Use(parameter, node.index, role, norm, mass, size, view, block, mixed))

    def sensitivities(self, output: Node) -> list[Factor]:
        """μ of every node: how much a change of its output can change `output`."""
        mu = [ZERO] * len(self.nodes)
        mu[output.index] = ONE
        for node in reversed(self.nodes[: output.index + 1]):
            for source, slot in zip(node.inputs, node.slots, strict=True):
                mu[source] = mu[source] + slot * mu[node.index]
        return mu

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node
