"""Singular values and eigenvalues that pass NaN and Inf on as NaN, where LAPACK would raise."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["eigh", "eigvalsh", "svd", "svdvals"]


def eigh(x: Tensor) -> tuple[Tensor, Tensor]:  # (*b, n, n) -> (*b, n), (*b, n, n)
    """Eigenvalues in ascending order and eigenvectors of symmetric matrices; all NaN for those with a NaN or Inf.

    On the CPU LAPACK can give up in float32, or give NaN without a word: it did on second moments of rarely seen rows
    (entries from 1e-5 down to 1e-15). Then float64 is asked.

    >>> eigh(torch.full((2, 2), torch.nan))[0]
    tensor([nan, nan])
    """
    values, vectors = _symmetric(torch.linalg.eigh, x)
    return values, vectors


def eigvalsh(x: Tensor) -> Tensor:  # (*b, n, n) -> (*b, n)
    """The eigenvalues of `eigh` alone, at less than half its price, and as safe.

    >>> eigvalsh(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    tensor([1., 3.])
    """
    (values,) = _symmetric(lambda x: (torch.linalg.eigvalsh(x),), x)
    return values


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


def _symmetric(decompose: Callable[[Tensor], Sequence[Tensor]], x: Tensor) -> Sequence[Tensor]:
    """What `decompose` gives: values (*b, n), then vectors, if any; asked in float64 where LAPACK fails."""
    if x.device.type == "cpu":
        try:
            found = decompose(x)
            if bool(found[-1].detach().sum().isfinite()):  # one pass, and nothing is stored
                return found
        except torch.linalg.LinAlgError:
            pass
    finite, poison = _apart(x)
    values, *vectors = decompose(finite.double() if x.device.type == "cpu" else finite)
    return [values.to(x.dtype) + poison.squeeze(-1), *(u.to(x.dtype) + poison for u in vectors)]
