"""The default of training for a recorded network: equal radii for all hidden matrices, whatever the depth.

    group              members                                  mass, each   x·μ, each   radius
    input              tables of rows: embeddings, positions    1/n          1/n         1/M
    trunk              maps that all data pass through          1            1           1/M
    hidden             maps that data can go around             1/n          1/n         1/M
    vectors            biases, gains, scalars                   c/n          1/n         c/M

On a stream that n branches add to, one branch has about the share 1/n in what is read from it, and the same share of the
mass: the depth cancels. Measured on ordinary residual streams, radii without any factor of depth kept the best learning
rate from 2 to 24 layers, and the worst-case sum, which divides by the depth, moved it and ended higher. So these are
typical values, not bounds. A map that nothing goes around (every layer of a plain MLP, the stem, the head) counts in
full. A table that is also the head has both masses, and x·μ = 1/n + √d: rows that change by an RMS of 1 change the logits
of a random input by √d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normgeo.geometry.factor import Factor, Known, assumed, typical
from normgeo.geometry.graph import Graph, Node, Use

__all__ = ["Share", "reaching", "shares"]

INPUTS = ("embedding", "positions", "token")
VECTORS = ("bias", "gain", "scalar", "bias table", "state space")
VECTOR_SHARE = 0.1
"""c: of biases and gains together, beside 1 for a group of matrices"""


@dataclass(frozen=True)
class Share:
    """The mass of a leaf and its typical x·μ, with the group that they come from."""

    mass: float
    reach: Factor
    group: str


def shares(graph: Graph, output: Node, leaves: Mapping[str, Sequence[Use]]) -> dict[str, Share]:
    """Mass and x·μ of every leaf, by the group that its uses put it in."""
    known = reaching(graph, output)
    groups: dict[str, list[str]] = {}
    for name, uses in leaves.items():
        groups.setdefault(_group(graph, output, known, uses), []).append(name)
    out = {}
    for group, members in groups.items():
        share = 1.0 if group == "trunk" else 1 / len(members)
        for name in members:
            mass, reach = share * (VECTOR_SHARE if group == "vectors" else 1.0), share
            if group == "input" and (
                matrices := [use.input_norm.value for use in leaves[name] if use.input_norm.value > 1]
            ):
                mass, reach = mass + 1.0, reach + max(matrices)
            out[name] = Share(mass, _factor(reach, leaves[name], known), group)
    return out


def reaching(graph: Graph, output: Node) -> dict[int, Known]:
    """The nodes from which the output can be reached, and how well the way is known at best: assumed if any step is."""
    known: dict[int, Known] = {output.index: "typical"}
    for node in reversed(graph.nodes[: output.index + 1]):
        if node.index in known:
            for source, slot in zip(node.inputs, node.slots, strict=True):
                if slot.value > 0:
                    unsure = "assumed" in (slot.known, known[node.index], known.get(source))
                    known[source] = "assumed" if unsure else "typical"
    return known


def _factor(value: float, uses: Sequence[Use], known: Mapping[int, Known]) -> Factor:
    unsure = any(known.get(use.node) == "assumed" or use.role == "assumed" for use in uses)
    return assumed(value) if unsure else typical(value)


def _group(graph: Graph, output: Node, known: Mapping[int, Known], uses: Sequence[Use]) -> str:
    role = uses[0].role.split(",")[0]
    if role in INPUTS:
        return "input"
    if role in VECTORS:
        return "vectors"
    first = next((use.node for use in uses if use.node in known), output.index)
    return "trunk" if role == "head" or _all_pass(graph, known, first) else "hidden"


def _all_pass(graph: Graph, known: Mapping[int, Known], node: int) -> bool:
    """Whether everything that leads to a node can reach the output through it alone."""
    before, queue = {node}, [node]
    while queue:
        for source in graph.nodes[queue.pop()].inputs:
            if source not in before:
                before.add(source)
                queue.append(source)
    return not any(
        source in before and source != node and other.index not in before
        for other in graph.nodes
        if other.index in known
        for source in other.inputs
    )
