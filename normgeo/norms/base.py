"""The Norm: a convex set known by three functions that obey one set of laws."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from normgeo.linalg import Polar

if TYPE_CHECKING:
    from normgeo.norms.combinators import Scaled

__all__ = ["Norm", "gaussian", "trailing", "with_polar"]


class Norm(ABC):
    """A norm ‖·‖ on the last `ndim` axes; leading axes are a batch. Instances are frozen dataclasses: hashable values.

    Laws, checked for any instance by `normgeo.testing.check_norm`:
        ⟨g, dualize(g)⟩ = dual_norm(g),  norm(dualize(g)) ≤ 1,  ⟨g, w⟩ ≤ dual_norm(g)·norm(w),  dualize(0) = 0,
        norm(c·w) = |c|·norm(w),  dualize(c·g) = dualize(g) for c > 0,  a batch axis changes nothing.

    A slice that is dualized on its own (`independent`, the rows of an embedding table) moves at full speed however
    small its momentum is; rules are told about such axes so that they can drop what is stale.

    >>> class Taxicab(Norm):
    ...     ndim = 1
    ...     def norm(self, w): return w.abs().sum(-1)
    ...     def dual_norm(self, g): return g.abs().amax(-1)
    ...     def dualize(self, g): return torch.nn.functional.one_hot(g.abs().argmax(-1), g.shape[-1]) * g.sign()
    >>> Taxicab().dualize(torch.tensor([1.0, -3.0]))
    tensor([ 0., -1.])
    """

    @property
    @abstractmethod
    def ndim(self) -> int:
        """How many trailing axes the norm is about."""

    @property
    def independent(self) -> int:
        """How many of them, from the left, index slices that are dualized each on its own."""
        return 0

    @property
    def entrywise(self) -> bool:
        """Whether dualize makes every entry from that entry alone."""
        return False

    @property
    def euclidean(self) -> bool:
        """Whether dualize(g) = c·g/‖g‖₂ over all axes, with c > 0 that depends on the shape alone."""
        return False

    @abstractmethod
    def norm(self, w: Tensor) -> Tensor:  # (*b, *d) -> (*b,)
        """‖w‖."""

    @abstractmethod
    def dual_norm(self, g: Tensor) -> Tensor:  # (*b, *d) -> (*b,)
        """‖g‖* = max ⟨g, t⟩ over norm(t) ≤ 1."""

    @abstractmethod
    def dualize(self, g: Tensor) -> Tensor:  # (*b, *d) -> (*b, *d)
        """argmax ⟨g, t⟩ over norm(t) ≤ 1; the direction of steepest ASCENT of ⟨g, ·⟩, of unit size."""

    def project(self, w: Tensor) -> Tensor:  # (*b, *d) -> (*b, *d)
        """The nearest point (in ‖·‖₂) of the unit ball norm(w) ≤ 1."""
        raise NotImplementedError(
            f"{type(self).__name__} has no projection; define project(self, w) to use it where one is needed"
        )

    def on_matrices(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:  # (*b, *d) -> (*b, *d)
        """f: (*b, ..., m, n) -> (*b, ..., m, n) applied to those matrices of w whose largest singular value is the norm:
        ‖w‖ = max σ_max(X). Of vectors, they are columns; of tables, rows; a norm may have none."""
        raise NotImplementedError(
            f"{type(self).__name__} is not the largest singular value of matrices; use Ball or Sphere on such weights"
        )

    def on_rows(self, f: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:  # (*b, *d) -> (*b, *d)
        """f: (*b, ..., n) -> (*b, ..., n) applied to the rows of w, each what makes one entry of an output: the last axis;
        of a kernel all that an output channel has in one group."""
        return f(w)

    def init(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """A random point of norm 1, a natural initial weight: by default the dual of a Gaussian."""
        return self.dualize(gaussian(shape, generator, dtype, device)).to(dtype or torch.get_default_dtype())

    def __rmul__(self, factor: float) -> Scaled:
        """(c · N).norm(w) = c · N.norm(w)."""
        from normgeo.norms.combinators import Scaled

        return Scaled(self, float(factor))


N = TypeVar("N", bound=Norm)


def with_polar(norm: N, polar: Polar) -> N:
    """The same norm, wherever it needs a polar factor computed by `polar`; the mathematics does not change.

    >>> from normgeo.linalg import SVD
    >>> from normgeo.norms import RMSToRMS
    >>> with_polar(2 * RMSToRMS(), SVD())
    Scaled(inner=RMSToRMS(polar=SVD()), factor=2.0)
    """
    if not dataclasses.is_dataclass(norm):
        return norm
    changes: dict[str, object] = {}
    for field in dataclasses.fields(norm):
        value = getattr(norm, field.name)
        if isinstance(value, Polar):
            changes[field.name] = polar
        elif isinstance(value, Norm):
            changes[field.name] = with_polar(value, polar)
    return dataclasses.replace(norm, **changes)


def trailing(x: Tensor, ndim: int) -> Tensor:
    """x, checked to have `ndim` non-empty trailing axes and floating entries, in at least float32."""
    if x.ndim < ndim or not x.is_floating_point():
        raise ValueError(
            f"a norm on {ndim} axes needs a floating tensor with at least {ndim} axes, got {x.dtype} {tuple(x.shape)}"
        )
    if x.ndim and 0 in x.shape[x.ndim - ndim :]:
        raise ValueError(f"a norm needs at least one entry, got a tensor of shape {tuple(x.shape)}")
    return x.to(_work(x.dtype))


def _work(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def gaussian(
    shape: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Tensor:
    dtype = _work(dtype or torch.get_default_dtype())
    return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=device)
