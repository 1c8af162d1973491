"""‖W‖ = ρ: the size stays, the direction learns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.constraints.base import Rate
from normgeo.constraints.measured import Measured, along_leaves, check_radius
from normgeo.linalg import l2
from normgeo.norms.vectors import unit

__all__ = ["Sphere"]


@dataclass(frozen=True)
class Sphere(Measured):
    """W ← ρ·W/‖W‖, with ρ the `radius`, or the size that each leaf starts with. Size is the leaf's norm or `norm`; with
    `frobenius=True` it is ‖W‖₂ over all entries, whatever the shape, which is far cheaper for matrices.

    Invariant: ‖W‖ = ρ after every step, up to rounding. The gradient becomes that of the loss at ρ·W/‖W‖:
    G ← G - ⟨G, W⟩/‖W‖ · ∇‖W‖, which has ⟨G, W⟩ = 0 and for ‖·‖₂ is the projection on the tangent space. A momentum
    of such gradients need not be tangent where it is used; what it moves along W is undone.

    >>> import torch
    >>> sphere = Sphere(5.0, frobenius=True)
    >>> sphere.retract(torch.tensor([[0.6, 0.8]]), None, None, {})
    tensor([[3., 4.]])
    >>> sphere.tangent(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 1.0]]), {})
    tensor([[ 0.1600, -0.1200]])
    """

    radius: float | None = None
    frobenius: bool = False

    def __post_init__(self) -> None:
        if self.radius is not None:
            check_radius(type(self).__name__, self.radius)

    def init(self, W: Tensor) -> dict[str, Tensor]:
        if self.radius is not None:
            return {}
        size = self.size(W)
        if bool((size == 0).any()):
            raise ValueError(
                "Sphere(): a weight is 0 at the start and would stay 0; give a size, Sphere(1.0), or leave such leaves "
                'free: constraint={"head": Free(), "*": Sphere()}'
            )
        return {"radius": size.reshape(-1)}

    def tangent(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> Tensor:
        if self.frobenius and W.ndim > 1:
            direction = normal = unit(W, W.ndim - 1)
        else:
            size = self.size(W)
            direction, normal = W / torch.where(size == 0, 1, size), self.gradient(W)
        return G - along_leaves((G * direction).reshape(len(W), -1).sum(1), W) * normal

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        radius = self.radius if self.radius is not None else along_leaves(state["radius"], W)
        size = self.size(W)
        return W * (radius / torch.where(size == 0, 1, size))

    def size(self, W: Tensor) -> Tensor:
        return l2(W, W.ndim - 1) if self.frobenius else super().size(W)
