"""Constraints on the size of a weight, and the norm in which it is measured."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from normgeo.constraints.base import Constraint
from normgeo.norms import Norm

__all__ = ["Measured", "along_leaves", "check_radius", "largest"]


@dataclass(frozen=True)
class Measured(Constraint):
    """A constraint that measures weights: in `norm`, or in the leaf's own norm if there is none."""

    norm: Norm | None = field(default=None, kw_only=True)

    def bind(self, norm: Norm) -> Constraint:
        if self.norm is None:
            return replace(self, norm=norm)
        if self.norm.ndim != norm.ndim:
            raise ValueError(
                f"{self} measures {self.norm.ndim} axes, but a leaf with norm {norm} has {norm.ndim}; name the leaves "
                'that it is for: constraint={"blocks.*": ...}'
            )
        return self

    def measure(self) -> Norm:
        if self.norm is None:
            raise ValueError(f"{self} does not know its norm; write norm=..., or give it to plan.optimizer")
        return self.norm

    def size(self, W: Tensor) -> Tensor:  # (n, *shape) -> (n, 1, ..., 1)
        """‖W‖ of each leaf."""
        return along_leaves(self.measure().norm(W), W)

    def gradient(self, W: Tensor) -> Tensor:  # (n, *shape) -> (n, *shape)
        """N = ∇‖W‖, of dual norm 1, with ⟨N, W⟩ = ‖W‖."""
        with torch.enable_grad():
            x = W.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.measure().norm(x).sum(), x)
        return slope


def along_leaves(x: Tensor, W: Tensor) -> Tensor:  # (n,), (n, *shape) -> (n, 1, ..., 1)
    """One number per leaf, ready to multiply W."""
    return x.reshape(-1, *(1,) * (W.ndim - 1))


def largest(eta: Tensor, W: Tensor) -> Tensor:  # anything that broadcasts against W (n, *shape) -> (n, 1, ..., 1)
    """The largest step size of each leaf, where rows or weights have their own."""
    return along_leaves(eta.expand_as(W).reshape(len(W), -1).amax(1), W)


def check_radius(name: str, radius: float) -> None:
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"{name}: radius must be a finite number > 0, got {radius}")
