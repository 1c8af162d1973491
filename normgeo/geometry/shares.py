"""The default of training for a recorded network: equal radii for all hidden matrices, whatever the depth.

    group              members                                  mass, each   x·μ, each   radius
    input              tables of rows: embeddings, positions    1/n          1/n         1/M
    trunk              maps that all data pass through, n a place  1/n       1/n         1/M
    hidden             maps that data can go around             1/n          1/n         1/M
    biases             added to all places alike                1/n          1            1/(nM)
    vectors            gains, scalars                           c/n          1/n         c/M
    unused             what roles= calls so                     0            1           0

On a stream that n branches add to, one branch has about the share 1/n in what is read from it, and the same share of the
mass: the depth cancels. Measured on ordinary residual streams, radii without any factor of depth kept the best learning
rate from 2 to 24 layers, and the worst-case sum, which divides by the depth, moved it and ended higher. Biases are another
matter: what they add is the same at every place, their gradients agree, and so n of them add up; of GPT-2 with equal radii
for them the best learning rate fell by half from 2 to 12 layers. So these are typical values, not bounds. A map that
nothing goes around (every layer of a plain MLP, the stem, the head) counts in full. A kernel of k taps has k^-¼ times
that x·μ: of norm 1, it passes on all of a constant image and k^-½ of white noise.

A table that is also the head has x·μ = 1/n + max(√d, d/8): rows that change by an RMS of 1 change the logits of a random
input by √d, and of one that they are aligned with by more, in proportion to d. The tables then share a mass of 2 so that
the rows of all move alike: positions that move faster than the tokens beside them drown them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from normgeo.geometry.factor import Factor, Known, assumed, typical
from normgeo.geometry.graph import Graph, Node, Use
from normgeo.norms import Conv

__all__ = ["REASONS", "Share", "reaching", "shares"]

KINDS = {
    "input": ("embedding", "positions", "token"),
    "biases": ("bias",),
    "vectors": ("gain", "scalar", "bias table", "state space"),
    "unused": ("unused",),
}
VECTOR_SHARE = 0.1
"""c: of gains and scalars together, beside 1 for a group of matrices"""


REASONS = {
    "input": "tables of rows, and tokens, share a mass of 1, and of 1 more if one is the head too; their rows move alike",
    "trunk": "all data pass through it: a mass of 1, shared with others at the same place",
    "hidden": "data can go around it: it shares a mass of 1 with all such maps, and has the same share of the change",
    "biases": "they share a mass of 1, and what they add is the same everywhere, so that they add up",
    "unused": "it has no mass, because roles= says that the output does not depend on it",
    "vectors": f"gains and scalars share a mass of {VECTOR_SHARE:g}",
}


@dataclass(frozen=True)
class Share:
    """The mass of a leaf and its typical x·μ, with the group that they come from."""

    mass: float
    reach: Factor
    group: str


def shares(graph: Graph, output: Node, leaves: Mapping[str, Sequence[Use]]) -> dict[str, Share]:
    """Mass and x·μ of every leaf, by the group that its uses put it in."""
    known = reaching(graph, output)
    trunk = narrows(graph, known)
    group = {name: _group(uses, trunk) for name, uses in leaves.items()}
    size = Counter(group.values())
    out = {}
    for name, uses in leaves.items():
        kind, share = group[name][0], 1 / size[group[name]]
        reach = 1.0 if kind in ("biases", "unused") else share * _passed(uses)
        if kind == "input":
            reach += _head(uses)
        mass = 0.0 if kind == "unused" else share * (VECTOR_SHARE if kind == "vectors" else 1.0)
        out[name] = Share(mass, _factor(reach, uses, known), kind)
    tables = [name for name, share in out.items() if share.group == "input"]
    total = sum(out[name].reach.value for name in tables)
    heads = sum(1 for name in tables if _head(leaves[name]))
    for name in tables:
        out[name] = replace(out[name], mass=(1 + heads) * out[name].reach.value / total)
    return out


def _head(uses: Sequence[Use]) -> float:
    """What the use of a table as the head adds to its x·μ."""
    return max((use.input_norm.value for use in uses if use.input_norm.value > 1), default=0.0)


def _passed(uses: Sequence[Use]) -> float:
    """What a kernel of norm 1 and k taps passes on, typically: all of a constant image and k^-½ of white noise, so k^-¼."""
    taps = [math.prod(use.seen().shape[-use.norm.spatial :]) for use in uses if isinstance(use.norm, Conv)]
    return max(taps) ** -0.25 if taps else 1.0


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
    unsure = any("assumed" in (known.get(use.node), use.role, use.input_norm.known) for use in uses)
    return assumed(value) if unsure else typical(value)


def _group(uses: Sequence[Use], trunk: frozenset[int]) -> tuple[str, int]:
    """The group of a leaf; leaves of the trunk share only with those at the same place."""
    role = uses[0].role.split(",")[0]
    for kind, roles in KINDS.items():
        if role in roles:
            return kind, 0
    through = [use.node for use in uses if use.node in trunk]
    return ("trunk", through[0]) if through else ("hidden", 0)


def narrows(graph: Graph, known: Mapping[int, Known]) -> frozenset[int]:
    """The nodes that every way from an input or a table to the output leads through: those that no edge jumps over, in
    the order in which the operations ran, and that nothing starts behind."""
    jumps = [0] * (len(graph.nodes) + 1)
    start = 0
    for node in graph.nodes:
        if node.index in known:
            start = start if node.inputs else node.index
            for source in node.inputs:
                jumps[source + 1] += 1
                jumps[node.index] -= 1
    over = list(accumulate(jumps))
    return frozenset(index for index in known if over[index] == 0 and index >= start)
