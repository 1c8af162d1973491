"""The polar factor U Vᵀ of G = U Σ Vᵀ: exact by SVD, or by odd polynomials that push every singular value to 1."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.linalg.decompose import svd
from normgeo.linalg.scale import exponent, shift

__all__ = ["SVD", "Polar"]


class Polar(ABC):
    """A way to compute U Vᵀ: batched over leading axes, zero to zero, the same answer for any scale of the input.

    >>> class Cubic(Polar):
    ...     def __call__(self, g):
    ...         x = g / g.norm()
    ...         for _ in range(20): x = 1.5 * x - 0.5 * x @ x.mT @ x
    ...         return x
    >>> Cubic()(2 * torch.eye(2))
    tensor([[1., 0.],
            [0., 1.]])
    """

    @abstractmethod
    def __call__(self, g: Tensor) -> Tensor:  # (*b, m, n) -> (*b, m, n)
        """The polar factor of each trailing matrix."""


@dataclass(frozen=True)
class SVD(Polar):
    """U Vᵀ from a full decomposition, over the singular values above 4·max(m, n)·eps·σ₁; those below are noise.

    >>> SVD()(torch.tensor([[0.0, 3.0], [-2.0, 0.0]]))
    tensor([[ 0.,  1.],
            [-1.,  0.]])
    """

    def __call__(self, g: Tensor) -> Tensor:
        x = shift(g, -exponent(g, 2))
        if x.dtype in (torch.bfloat16, torch.float16):
            x = x.float()
        u, s, vt = svd(x)
        cut = 4 * max(g.shape[-2:]) * torch.finfo(x.dtype).eps * s[..., :1]
        return ((u * (s > cut).unsqueeze(-2)) @ vt).to(g.dtype)
