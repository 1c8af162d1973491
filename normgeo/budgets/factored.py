"""Moments that are smaller than a matrix of their size: Kronecker factors, and sketches of low rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.budgets.moments import Basis, Moment, State
from normgeo.linalg import eigh

__all__ = ["KroneckerMoment", "SketchMoment"]


@dataclass(frozen=True)
class KroneckerMoment(Moment):
    """M ≈ L ⊗ R / t for leaves (a, b): L = sym E[G Hᵀ] (a, a), R = sym E[Gᵀ H] (b, b), t = E⟨G, H⟩, exact where M is a
    Kronecker product. Q = (U ⊗ V) diag(q) (U ⊗ V)ᵀ acts as G ↦ U (q ∘ UᵀGV) Vᵀ; nothing of size (ab, ab) is formed.

    Further axes belong to the second side. A side longer than `largest` is taken to be isotropic and costs nothing. For
    validation moments t is a scalar product that can be near 0: average over enough steps.

    >>> moment, g = KroneckerMoment(), torch.diag(torch.tensor([3.0, 1.0])).unsqueeze(0)
    >>> moment.spectrum(moment.estimate(g))[0]
    tensor([[0.1000, 0.9000, 0.9000, 8.1000]])
    """

    largest: int = 2048

    def parts(self, G: Tensor, H: Tensor) -> State:
        g, h = (x.reshape(len(x), x.shape[1] if x.ndim > 1 else 1, -1) for x in (G, H))
        kept: State = {"trace": (g * h).sum((1, 2))}
        for name, x, y in (("left", g, h), ("right", g.mT, h.mT)):
            if x.shape[1] <= self.largest:
                side = x @ y.mT
                kept[name] = (side + side.mT) / 2
            else:
                kept[name] = x[..., :0]  # nothing but a length
        return kept

    def spectrum(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Basis]:
        t, basis, values = state["trace"].unsqueeze(-1), {}, []
        for name in ("left", "right"):
            length, kept = state[name].shape[1:]
            if kept:
                s, basis[name] = eigh(state[name])
            else:
                s = (t / length).expand(-1, length)
            values.append(s)
        safe = torch.where(t == 0, 1, t)
        return (values[0].unsqueeze(-1) * (values[1] / safe).unsqueeze(-2)).flatten(1), basis

    def rotate(self, V: Tensor, basis: Mapping[str, Tensor]) -> Tensor:
        x = V.reshape(len(V), V.shape[1] if V.ndim > 1 else 1, -1)
        x = basis["left"].mT @ x if "left" in basis else x
        return (x @ basis["right"] if "right" in basis else x).flatten(1)

    def back(self, x: Tensor, basis: Mapping[str, Tensor], like: Tensor) -> Tensor:
        x = x.reshape(len(like), like.shape[1] if like.ndim > 1 else 1, -1)
        x = basis["left"] @ x if "left" in basis else x
        return (x @ basis["right"].mT if "right" in basis else x).reshape(like.shape)


@dataclass(frozen=True)
class SketchMoment(Moment):
    """M ≈ Sᵀ S with `rank` rows (frequent directions, arXiv 1501.01711, with forgetting): 0 ≼ M - SᵀS ≼ what was cut off.
    Q acts within the span of S and is 0 off it, where a budget sees no power. Training moments only: they are ≽ 0.

    >>> SketchMoment(rank=1).spectrum(SketchMoment(rank=1).estimate(torch.tensor([[3.0, 4.0]])))[0].round()
    tensor([[25.]])
    """

    rank: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"SketchMoment: rank must be at least 1, got {self.rank}")

    def parts(self, G: Tensor, H: Tensor) -> State:
        return {"sketch": G.flatten(1).unsqueeze(1).expand(-1, self.rank, -1) * 0}

    def observe(self, G: Tensor, state: State, other: Tensor | None = None) -> None:
        if other is not None:
            raise ValueError(
                "SketchMoment is for training moments; a cross moment may be indefinite: KroneckerMoment()"
            )
        state["seen"] = state["seen"] + 1
        t = state["seen"]
        rate = (1 / t if self.beta == 1 else (1 - self.beta) / (1 - self.beta**t))[:, None, None]
        rows = torch.cat([(1 - rate).sqrt() * state["sketch"], rate.sqrt() * G.flatten(1).unsqueeze(1)], 1)
        state["sketch"] = _shrunk(rows, self.rank)

    def estimate(self, G: Tensor, other: Tensor | None = None) -> State:
        if other is not None:
            raise ValueError(
                "SketchMoment is for training moments; a cross moment may be indefinite: KroneckerMoment()"
            )
        return {"sketch": _shrunk(G.flatten(1).unsqueeze(0) / len(G) ** 0.5, self.rank)}

    def spectrum(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Basis]:
        s, rows = _rows(state["sketch"])
        return s, {"rows": rows}

    def rotate(self, V: Tensor, basis: Mapping[str, Tensor]) -> Tensor:
        return (basis["rows"] @ V.flatten(1).unsqueeze(-1)).squeeze(-1)

    def back(self, x: Tensor, basis: Mapping[str, Tensor], like: Tensor) -> Tensor:
        return (x.unsqueeze(-2) @ basis["rows"]).reshape(like.shape)


def _rows(sketch: Tensor) -> tuple[Tensor, Tensor]:  # (n, r, d) -> (n, r), (n, r, d)
    """Eigenvalues of SᵀS in descending order and orthonormal eigenvectors, from the small matrix S Sᵀ; 0 rows for 0."""
    s, u = eigh(sketch @ sketch.mT)
    s, u = s.flip(-1).clamp_min(0), u.flip(-1)
    live = s > 64 * sketch.shape[1] * torch.finfo(s.dtype).eps * s[..., :1]
    rows = (u.mT @ sketch) * torch.where(live, torch.where(live, s, 1).rsqrt(), 0).unsqueeze(-1)
    return s * live, rows


def _shrunk(rows: Tensor, rank: int) -> Tensor:  # (n, r, d) -> (n, rank, d)
    """The first `rank` directions, all made smaller by the first that is left out."""
    s, v = _rows(rows)
    if rows.shape[1] > rank:
        s, v = (s[:, :rank] - s[:, rank : rank + 1]).clamp_min(0), v[:, :rank]
    sketch = s.sqrt().unsqueeze(-1) * v
    return torch.nn.functional.pad(sketch, (0, 0, 0, rank - sketch.shape[1]))
