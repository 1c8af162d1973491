"""Sizes that neither underflow nor overflow: divide by a power of two first, which is exact."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = ["exponent", "host_sees", "in_range", "l2", "l2_in_range", "shift"]


def exponent(x: Tensor, ndim: int) -> Tensor:  # (*b, *d) -> (*b, 1, ..., 1)
    """e with 2^(e-1) ≤ max|x| < 2^e over the last `ndim` axes (0 where x = 0), as int32.

    >>> exponent(torch.tensor([3.0, -0.5]), ndim=1)
    tensor([2], dtype=torch.int32)
    """
    x, axes = x.detach(), tuple(range(-ndim, 0))
    largest = torch.maximum(x.amax(axes, keepdim=True), -x.amin(axes, keepdim=True))  # |x| would be one more array
    return torch.frexp(largest).exponent


def shift(x: Tensor, e: Tensor | int) -> Tensor:
    """x · 2^e, exact unless the result itself leaves the range of the dtype.

    The factor is applied in two halves because 2^e alone overflows float32 when x is denormal.

    >>> shift(torch.tensor([2.0**-140]), 140)
    tensor([1.])
    """
    e = torch.as_tensor(e, device=x.device)
    half = torch.div(e, 2, rounding_mode="floor")
    one = torch.ones_like(e, dtype=x.dtype)
    # Not ldexp(x, e) itself: its derivative is 0 for negative integer e in torch 2.13.
    return x * torch.ldexp(one, half) * torch.ldexp(one, e - half)


def l2(x: Tensor, ndim: int) -> Tensor:  # (*b, *d) -> (*b, 1, ..., 1)
    """‖x‖₂ over the last `ndim` axes, kept as axes of length 1; the squares can neither underflow nor overflow.

    >>> l2(torch.tensor([3e-30, 4e-30]), ndim=1)
    tensor([5.0000e-30])
    """
    if host_sees(x) and in_range(size := l2_in_range(x, ndim)):
        return size
    e = exponent(x, ndim)
    return shift(l2_in_range(shift(x, -e), ndim), e)


def l2_in_range(x: Tensor, ndim: int) -> Tensor:  # (*b, *d) -> (*b, 1, ..., 1)
    """‖x‖₂ over the last `ndim` axes, as the norm of norms, for squares that stay in range: in one sum, float32 errs by
    .9 % for 4096 × 4096 equal entries, 2.8 % for 50257 × 768.

    >>> l2_in_range(torch.ones(2, 4, 4), ndim=2).flatten()
    tensor([4., 4.])
    """
    size = x.abs() if ndim == 0 else x
    for axis in range(-1, -ndim - 1, -1):
        size = torch.linalg.vector_norm(size, dim=axis, keepdim=True)
    return size


def in_range(sizes: Tensor) -> bool:
    """Whether float32 could add up the squares of vectors of these sizes: what underflows is below 2⁻⁴⁶ of the sum.

    >>> in_range(torch.tensor([1.0, 1e9])), in_range(torch.tensor([1.0, 0.0]))
    (True, False)
    """
    sizes = sizes.detach()
    return float(sizes.min()) > 2.0**-40 and float(sizes.max()) < 2.0**40


def host_sees(x: Tensor) -> bool:
    """Whether the host may look into x: nothing is waited for, and x has values, not those of a trace or of a `vmap` alone.
    Then what is rarely needed can be left out.

    >>> host_sees(torch.ones(2)), host_sees(torch.ones(2, device="meta"))
    (True, False)
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.numel():
        return False
    return _get_current_dispatch_mode() is None and not torch._C._functorch.is_functorch_wrapped_tensor(x)
