"""All singular values equal: steepest descent along the Stiefel manifold, under the spectral norm.

For X (m, k) with XᵀX = I the tangents are the A with XᵀA + AᵀX = 0. The best of them,

    max ⟨G, A⟩  over  σ_max(A) ≤ 1, A tangent   =   min over symmetric Λ of ‖G + XΛ‖ (nuclear)   =   min φ(Λ)

(the multipliers of the tangency). With K = skew(XᵀG), C = Gᵀ(I - XXᵀ)G and Z = K + Λ (Λ takes up the symmetric part of
XᵀG) all happens among k×k matrices: φ(Λ) = tr N^½ with N = ZᵀZ + C, and A = (XZ + G - XXᵀG)·N^-½. With P = N^-½ held
fixed, 2φ ≤ tr(NP) + tr P⁻¹ is least where ΛP + PΛ = PK - KP; in the eigenbasis of N, with pᵢ = 1/√wᵢ and K̃ = VᵀKV,

    Λ̃ᵢⱼ = K̃ᵢⱼ·(pᵢ - pⱼ)/(pᵢ + pⱼ) = K̃ᵢⱼ·(√wⱼ - √wᵢ)/(√wⱼ + √wᵢ),

so φ falls at every round, and nothing depends on the scale of G. For square X, C = 0, K commutes with N, and Λ = 0 is the
answer at once: A = X·polar(skew(XᵀG)).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from normgeo.constraints.base import Rate
from normgeo.constraints.measured import Measured, check_radius
from normgeo.linalg import SHARP, Polar, eigh

__all__ = ["Stiefel", "steepest_tangent"]


@dataclass(frozen=True)
class Stiefel(Measured):
    """W ← ρ·polar(W), in units of the leaf's norm: all singular values at ρ. The constraint owns the direction: the
    steepest among the tangents of norm 1 (`steepest_tangent`), so a step of η changes the weight by η·r as elsewhere.

    Invariant: |σᵢ - ρ| ≤ 1e-5·ρ after every step, for any start of full rank; what starts at 0 jumps there with its
    first step. Wide matrices have orthogonal rows, tall ones columns; vectors and rows of tables are matrices with one
    singular value, so embeddings get unit rows. Source: manifold Muon, Bernstein, Modular Manifolds (2025), with another
    solver.

    >>> import torch
    >>> from normgeo.norms import Spectral
    >>> Stiefel().bind(Spectral()).retract(torch.tensor([[[0.0, 2.0], [-1.0, 0.0]]]), None, None, {}).round(decimals=4)
    tensor([[[ 0.,  1.],
             [-1.,  0.]]])
    """

    radius: float = 1.0
    rounds: int = 8
    polar: Polar = field(default=SHARP, repr=False)

    def __post_init__(self) -> None:
        check_radius(type(self).__name__, self.radius)

    def direct(self, M: Tensor, W: Tensor, state: dict[str, Tensor]) -> Tensor:
        frames: list[Tensor] = []
        norm = self.measure()

        def frame(x: Tensor) -> Tensor:
            frames.append(self.polar(x))
            return x

        norm.on_matrices(frame, W)
        each = iter(frames)
        return norm.on_matrices(lambda g: steepest_tangent(next(each), g, self.rounds), M)

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        return self.radius * self.measure().on_matrices(self.polar, W)


def steepest_tangent(x: Tensor, g: Tensor, rounds: int = 8) -> Tensor:  # (*b, m, k), (*b, m, k) -> (*b, m, k)
    """argmax ⟨G, A⟩ over σ_max(A) ≤ 1 tangent to the Stiefel manifold at X (XᵀX = I; XXᵀ = I for wide X).

    Exact for square X. Else ⟨G, A⟩ was at least .88 of the best after 0 rounds, .95 after 8 (sides up to 512, Gaussian G,
    G of rank 2 and G near X); for dense G it goes on to converge linearly. XᵀA + AᵀX = 0 and σ_max(A) ≤ 1 hold to
    1e-6 after any number of rounds. Computed in float64: N has the squares of the singular values.

    >>> x, g = torch.eye(2), torch.tensor([[5.0, 1.0], [-1.0, 7.0]])
    >>> steepest_tangent(x, g).round(decimals=4)
    tensor([[ 0.,  1.],
            [-1.,  0.]])
    """
    if x.shape[-2] < x.shape[-1]:
        return steepest_tangent(x.mT, g.mT, rounds).mT
    dtype, x, g = g.dtype, x.double(), g.double()
    s = x.mT @ g
    k, off = (s - s.mT) / 2, g - x @ s
    c = off.mT @ off
    z = k
    for _ in range(rounds):
        sizes, v = _roots(z, c)
        above, below = sizes.unsqueeze(-2), sizes.unsqueeze(-1)
        total = above + below
        share = (above - below) / torch.where(total == 0, 1, total)
        z = k + v @ ((v.mT @ k @ v) * share) @ v.mT
    sizes, v = _roots(z, c)
    live = sizes > 4 * sizes.shape[-1] * torch.finfo(sizes.dtype).eps ** 0.5 * sizes[..., -1:]
    inverse = torch.where(live, 1 / torch.where(live, sizes, 1), 0).unsqueeze(-2)
    a = (x @ z + off) @ ((v * inverse) @ v.mT)
    h = x.mT @ a
    a = a - x @ (h + h.mT) / 2
    return (a / _roots(a, 0)[0][..., -1:, None].clamp_min(1)).to(dtype)


def _roots(z: Tensor, c: Tensor | int) -> tuple[Tensor, Tensor]:
    """Square roots of the eigenvalues of ZᵀZ + C in ascending order, and the eigenvectors."""
    values, vectors = eigh(z.mT @ z + c)
    return values.clamp_min(0).sqrt(), vectors
