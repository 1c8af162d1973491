"""Second order: how much the first-order promise of a network can be off.

Changes flow forward, sensitivities backward, and what each operation bends meets both. For a change Δ of the weights with
‖Δ_ℓ‖ ≤ r_ℓ for every leaf, δ(n) bounds the change of the output of node n to first order, and

    δ(n) = Σ over inputs of slot·δ(input) + Σ over uses of x·r
    ‖D²f[Δ, Δ']‖ ≤ α = Σ over nodes of μ(n)·( Σᵢⱼ γᵢⱼ·δᵢ·δⱼ + 2·Σ over uses and inputs of c·r·δᵢ ),

because the second derivative of a node is that of its operation at the changes of its inputs, plus its slots times the
second derivatives of its inputs. With δ' of a change of the network's inputs in place of one or both δ this is β and γ. On
a tree of modules it is the published recursion (Large et al., arXiv 2405.14813): for M₂ ∘ M₁ and the shares of mass p,

    α = p₁²·α₁/μ₂ + p₂²·α₂ + 2·p₁·p₂·β₂/μ₂ + p₁²·γ₂/μ₂²,   β = p₁·β₁ + μ₁·p₂·β₂ + μ₁·p₁·γ₂/μ₂,   γ = μ₂·γ₁ + μ₁²·γ₂,

and for tuples and sums α = Σ p²·α, β = Σ p·β, γ = Σ γ. On any other DAG, weights used twice included, it still holds.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normgeo.geometry.curvature import LINEAR, Curvature
from normgeo.geometry.factor import Factor, bound, total
from normgeo.geometry.graph import ONE, ZERO, Graph, Node, Use

__all__ = ["Sharpness", "Term", "curvature", "sharpness"]


@dataclass(frozen=True)
class Term:
    """What one operation adds to α.

    >>> Term("tanh", "act", bound(0.5), dimension=8.0).alpha.value
    0.5
    """

    op: str
    path: str
    alpha: Factor | None
    """None if the operation does not say how it bends"""
    dimension: float = 1.0
    """the factor of it that grows with the number of features"""


@dataclass(frozen=True)
class Sharpness:
    """‖D²f[Δ, Δ']‖ ≤ α·‖Δ‖·‖Δ'‖ for changes of the weights, β for one of the weights and one of the inputs, γ for two of
    the inputs; ‖Df[Δ]‖ ≤ gain·‖Δ‖, with gain 1 for what a plan compiles. They hold where the bounds of the graph do: for
    weights in their unit balls and inputs no larger than declared. None where an operation does not say how it bends.

    >>> import normgeo as ng
    >>> model = ng.nn.Linear(64, 4) @ ng.nn.Tanh() @ ng.nn.Linear(8, 64)
    >>> print(ng.compile(model).sharpness(model))
    α 2.04, β 4.079, γ 6.158 (bounds)
      tanh    75 %  of α, with a dimension factor of 8 in it
      linear  25 %  of α
    """

    alpha: Factor | None
    beta: Factor | None
    gamma: Factor | None
    gain: Factor = ONE
    terms: tuple[Term, ...] = ()

    @property
    def unknown(self) -> str:
        """Which operation keeps α from being known, and the line to write; empty if none does."""
        silent = next((term for term in self.terms if term.alpha is None), None)
        if silent is None:
            return ""
        return (
            f"operation {silent.op!r} ({silent.path or 'the model itself'}) does not say how it bends; write "
            f"graph.op(..., curvature=...) and, if it has a parameter, graph.use(..., mixed=...)"
        )

    def of_loss(self, gradient: float, curvature: float = 1.0) -> Factor:
        """λ = G·α + S·gain² with ℓ(f(w + Δ)) ≤ ℓ(f(w)) + ⟨∇(ℓ∘f), Δ⟩ + λ/2·‖Δ‖². `gradient` is G ≥ ‖∇ℓ‖* at the present
        output, `curvature` S ≥ the second derivative of ℓ on the way, both in the norm of outputs: RMS over features,
        maximum over samples. For means over samples of

            ½·RMS(f - y)²                                     G = mean RMS(f - y), S = 1
            cross-entropy of n classes, outputs in RMS        G = √(2n), S = n/2
            cross-entropy behind a head of norm RMSToLinf     G = 2, S = 1 (α and gain then hold for the largest logit)

        >>> import normgeo as ng
        >>> model = ng.nn.Linear(8, 4) @ ng.nn.Linear(8, 8)
        >>> ng.compile(model).sharpness(model).of_loss(2.0).value
        2.0
        """
        for name, value in (("gradient", gradient), ("curvature", curvature)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"of_loss: {name} must be a finite number ≥ 0, got {value}")
        if self.alpha is None:
            raise ValueError(f"the sharpness is unknown: {self.unknown}")
        return bound(gradient) * self.alpha + bound(curvature) * self.gain * self.gain

    def __str__(self) -> str:
        names = {"α": self.alpha, "β": self.beta, "γ": self.gamma}
        known = {factor.known for factor in names.values() if factor is not None}
        word = "bounds" if known == {"bound"} else next((k for k in ("assumed", "typical") if k in known), "")
        head = ", ".join(f"{n} {'unknown' if f is None else f'{f.value:.4g}'}" for n, f in names.items())
        lines = [f"{head} ({word})" if word else head, *([self.unknown] if self.unknown else [])]
        return "\n".join(lines + (_table(self.terms, self.alpha.value) if self.alpha and self.alpha.value else []))


def sharpness(graph: Graph, output: Node, radii: Sequence[Factor] | None = None) -> Sharpness:
    """α, β, γ of what leads to `output`. `radii`: for every use, in the order of `graph.uses`, the largest norm of its
    parameter's change when ‖Δ‖ = 1; 1 each unless given. ‖·‖ of inputs is the largest over inputs.

    >>> from normgeo.geometry import LINEAR
    >>> graph = Graph()
    >>> x = graph.input()
    >>> half = graph.op("half", x, slots=bound(0.5), curvature=LINEAR)
    >>> product = Curvature(((0, 1, bound(3.0)),))
    >>> sharpness(graph, graph.op("product", x, half, curvature=product)).gamma
    Factor(value=3.0, known='bound')
    """
    mu = graph.sensitivities(output)
    weights = _Change(graph, radii or [ONE] * len(graph.uses), {})
    inputs = _Change(graph, [ZERO] * len(graph.uses), {node.index: ONE for node in _inputs(graph)})
    terms = _terms(graph, mu, weights, weights)
    return Sharpness(
        alpha=_sum(terms),
        beta=_sum(_terms(graph, mu, weights, inputs)),
        gamma=_sum(_terms(graph, mu, inputs, inputs)),
        gain=weights.of_nodes[output.index],
        terms=tuple(terms),
    )


def curvature(graph: Graph, output: Node) -> Curvature | None:
    """Of several operations without weights as if they were one, between the inputs of the graph; None if one is unknown.

    >>> from normgeo.geometry import LINEAR, entrywise
    >>> graph = Graph()
    >>> twice = graph.op("twice", graph.input(), slots=bound(2.0), curvature=LINEAR)
    >>> curvature(graph, graph.op("bent", twice, curvature=entrywise(0.5, features=4))).pairs
    ((0, 0, Factor(value=4.0, known='bound')),)
    """
    mu, still = graph.sensitivities(output), [ZERO] * len(graph.uses)
    changes = [_Change(graph, still, {node.index: ONE}) for node in _inputs(graph)]
    pairs, dimension = [], 1.0
    for i, j in itertools.combinations_with_replacement(range(len(changes)), 2):
        terms = _terms(graph, mu, changes[i], changes[j])
        found = _sum(terms)
        if found is None:
            return None
        if found != ZERO:
            pairs.append((i, j, found))
        dimension = max([dimension, *(term.dimension for term in terms)])
    return Curvature(tuple(pairs), dimension)


def _inputs(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "input"]


class _Change:
    """How much every node changes to first order when uses of weights and inputs change by so much."""

    def __init__(self, graph: Graph, of_uses: Sequence[Factor], of_inputs: Mapping[int, Factor]) -> None:
        self.of_uses = of_uses
        self.of_nodes: list[Factor] = []
        own: dict[int, list[tuple[Factor, ...]]] = {}
        for use, r in zip(graph.uses, of_uses, strict=True):
            own.setdefault(use.node, []).append((use.input_norm, r))
        for node in graph.nodes:
            passed = [(slot, self.of_nodes[i]) for slot, i in zip(node.slots, node.inputs, strict=True)]
            start = [(of_inputs[node.index],)] if node.index in of_inputs else []
            self.of_nodes.append(total([*start, *passed, *own.get(node.index, [])]))


def _terms(graph: Graph, mu: Sequence[Factor], a: _Change, b: _Change) -> list[Term]:
    """μ(n) times what node n adds to the second derivative between two changes, for the nodes that may add something."""
    uses: dict[int, list[tuple[Use, Factor, Factor]]] = {}
    for use, r, s in zip(graph.uses, a.of_uses, b.of_uses, strict=True):
        uses.setdefault(use.node, []).append((use, r, s))
    out = []
    for node in graph.nodes:
        first, second = ([change.of_nodes[i] for i in node.inputs] for change in (a, b))
        parts: list[Factor | None] = []
        if any(d.value for d in first) and any(d.value for d in second) and node.curvature != LINEAR:
            parts.append(node.curvature.between(first, second) if node.curvature else None)
        for use, r, s in uses.get(node.index, ()):
            crossed = total([*((r, d) for d in second), *((s, d) for d in first)])
            if crossed.value:
                parts.append(use.mixed * crossed if use.mixed else None)
        if parts and mu[node.index].value:
            known = [part for part in parts if part is not None]
            alpha = total((mu[node.index], part) for part in known) if len(known) == len(parts) else None
            out.append(Term(node.op, node.path, alpha, node.curvature.dimension if node.curvature else 1.0))
    return out


def _sum(terms: Sequence[Term]) -> Factor | None:
    known = [term.alpha for term in terms if term.alpha is not None]
    return total((alpha,) for alpha in known) if len(known) == len(terms) else None


def _table(terms: Sequence[Term], alpha: float) -> list[str]:
    """The operations behind most of α, the largest first; equal ones of repeated blocks are one row."""
    groups: dict[tuple[str, str, float], float] = {}
    for term in terms:
        key = (re.sub(r"(?<!\w)\d+(?!\w)", "*", term.path), term.op, term.dimension)
        groups[key] = groups.get(key, 0.0) + (term.alpha.value if term.alpha else 0.0)
    rows = sorted(((share, *key) for key, share in groups.items() if share > alpha / 200), reverse=True)
    names = [f"{op} ({path})" if path.strip("*") else op for _, path, op, _ in rows]
    width = max(map(len, names), default=0)
    return [
        f"  {name.ljust(width)}  {100 * share / alpha:2.0f} %  of α"
        + (f", with a dimension factor of {dimension:.4g} in it" if dimension > 1 else "")
        for name, (share, _, _, dimension) in zip(names, rows, strict=True)
    ]
