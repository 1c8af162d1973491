"""The way from a weight to the output: through which operations a change of it passes."""

from __future__ import annotations

from collections.abc import Sequence

from normgeo.geometry.graph import Graph, Node, Use

__all__ = ["Ways"]


class Ways:
    """The shortest way from every node to the output.

    >>> graph = Graph()
    >>> x = graph.input()
    >>> y = graph.op("add", graph.op("relu", x), x)
    >>> Ways(graph, y).of([0])
    ('input', 'add')
    """

    def __init__(self, graph: Graph, output: Node) -> None:
        self.graph = graph
        self.steps = {output.index: 0}
        self.next: dict[int, int] = {}
        for node in reversed(graph.nodes[: output.index + 1]):
            if node.index in self.steps:
                for source, slot in zip(node.inputs, node.slots, strict=True):
                    if slot.value > 0 and self.steps[node.index] + 1 < self.steps.get(source, len(graph.nodes) + 1):
                        self.steps[source], self.next[source] = self.steps[node.index] + 1, node.index

    def of(self, nodes: Sequence[int]) -> tuple[str, ...]:
        """Operations and the modules that they run in, from the first of the nodes that reaches the output."""
        at: int | None = next((node for node in nodes if node in self.steps), None)
        out = []
        while at is not None:
            node = self.graph.nodes[at]
            out.append(f"{node.op} ({node.path})" if node.path else node.op)
            at = self.next.get(at)
        return tuple(out)

    def of_uses(self, uses: Sequence[Use]) -> tuple[str, ...]:
        """The same for the uses of a weight."""
        return self.of([use.node for use in uses])
