"""Which implementations run: those with a forward derivative, while it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["differentiable"]

RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
GROUPED = {"_grouped_mm", "grouped_mm"}


@contextmanager
def differentiable() -> Iterator[None]:
    """Within it attention, recurrent layers, transformer layers in evaluation mode and grouped matrix products run in
    implementations that have forward derivatives (and derivatives of derivatives); afterwards all is as before. Flash
    attention, oneDNN's LSTM, cuDNN's recurrent layers, torch's fused transformer layers and `grouped_mm` have none.

    >>> lstm, x = torch.nn.LSTM(3, 3), torch.ones(2, 1, 3)
    >>> with differentiable():
    ...     torch.func.jvp(lambda x: lstm(x)[0], (x,), (x,))[1].shape
    torch.Size([2, 1, 3])
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _Plain():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Plain(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name in GROUPED:
            return _grouped(*args, **kwargs)
        if name not in RECURRENT:
            return func(*args, **kwargs)
        # Only here: without oneDNN convolutions would be twice as slow.
        libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
        before = [library.enabled for library in libraries]
        try:
            for library in libraries:
                library.enabled = False
            return func(*args, **kwargs)
        finally:
            for library, enabled in zip(libraries, before, strict=True):
                library.enabled = enabled


def _grouped(
    a: Tensor,
    b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """torch's grouped_mm, product by product: group i is rows (a flat), columns (b flat) or a part of the sum (both)."""
    if a.ndim == b.ndim == 3:
        out = a @ b
    else:
        assert offs is not None
        ends = offs.tolist()
        groups = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        if b.ndim == 3:
            rest = a.new_zeros(len(a) - ends[-1], b.shape[-1])
            out = torch.cat([*(a[group] @ b[i] for i, group in enumerate(groups)), rest])
        elif a.ndim == 3:
            rest = b.new_zeros(a.shape[-2], b.shape[-1] - ends[-1])
            out = torch.cat([*(a[i] @ b[:, group] for i, group in enumerate(groups)), rest], -1)
        else:
            out = torch.stack([a[:, group] @ b[group] for group in groups])
    out = out if bias is None else out + bias
    return out if out_dtype is None else out.to(out_dtype)
