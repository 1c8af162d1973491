"""Singular values and eigenvalues that pass NaN and Inf on as NaN, where LAPACK would raise."""

import torch
from torch import Tensor

__all__ = ["eigh", "svd", "svdvals"]


def eigh(x: Tensor) -> tuple[Tensor, Tensor]:  # (*b, n, n) -> (*b, n), (*b, n, n)
    """Eigenvalues in ascending order and eigenvectors of symmetric matrices; all NaN for those with a NaN or Inf.

    On the CPU LAPACK can give up in float32, or give NaN without a word: it did on second moments of rarely seen rows
    (entries from 1e-5 down to 1e-15). Then float64 is asked.

    >>> eigh(torch.full((2, 2), torch.nan))[0]
    tensor([nan, nan])
    """
    found = _lapack(x) if x.device.type == "cpu" else None
    if found is not None:
        return found
    x, poison = _apart(x)
    values, vectors = torch.linalg.eigh(x.double() if x.device.type == "cpu" else x)
    return values.to(x.dtype) + poison.squeeze(-1), vectors.to(x.dtype) + poison


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (*b, m, n) -> (*b, m, k), (*b, k), (*b, k, n)
    """The reduced decomposition; all NaN in U and Σ for matrices with a NaN or Inf.

    >>> u, s, vt = svd(torch.full((2, 2), torch.inf))
    >>> s
    tensor([nan, nan])
    """
    x, poison = _apart(x)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    return u + poison, s + poison.squeeze(-1), vt


def svdvals(x: Tensor) -> Tensor:  # (*b, m, n) -> (*b, k)
    """The singular values in descending order, all NaN for matrices with a NaN or Inf.

    >>> svdvals(torch.tensor([[torch.nan]]))
    tensor([nan])
    """
    x, poison = _apart(x)
    return torch.linalg.svdvals(x) + poison.squeeze(-1)


def _apart(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with 0 where it is not finite, and 0 or NaN (*b, 1, 1) to add to what comes out."""
    return torch.where(x.isfinite(), x, 0), (x * 0).sum((-2, -1), keepdim=True)


def _lapack(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """None where it fails."""
    try:
        values, vectors = torch.linalg.eigh(x)
    except torch.linalg.LinAlgError:
        return None
    return (values, vectors) if bool(vectors.isfinite().all()) else None
