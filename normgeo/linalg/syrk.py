"""A Triton kernel for b·R + c·X Xᵀ: the tiles on and below the diagonal, each written twice, once transposed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["symmetric"]

TILE, DEPTH = 128, 64


@triton.jit
def _kernel(x, r, out, m, n, xb, xm, xn, b, c, ADDS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]
    # Program p of a matrix is the tile (i, j), j ≤ i, counted along rows of the triangle: p = i(i + 1)/2 + j.
    p = tl.program_id(0)
    i = ((tl.sqrt(8.0 * p + 1.0) - 1.0) / 2.0).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > p, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= p, i + 1, i)
    j = p - i * (i + 1) // 2
    matrix = tl.program_id(1).to(tl.int64)
    rows, columns = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE)
    x += matrix * xb
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, n, DEPTH):
        inner = start + tl.arange(0, DEPTH)
        left = tl.load(
            x + rows[:, None] * xm + inner[None, :] * xn, mask=(rows[:, None] < m) & (inner[None, :] < n), other=0.0
        )
        right = tl.load(
            x + columns[None, :] * xm + inner[:, None] * xn,
            mask=(columns[None, :] < m) & (inner[:, None] < n),
            other=0.0,
        )
        total = tl.dot(left, right, total)
    total *= c
    where = matrix * m * m + rows[:, None].to(tl.int64) * m + columns[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < m)
    if ADDS:
        total += b * tl.load(r + where, mask=inside, other=0.0).to(tl.float32)
    value = total.to(out.dtype.element_ty)
    tl.store(out + where, value, mask=inside)
    mirrored = matrix * m * m + columns[:, None].to(tl.int64) * m + rows[None, :]
    tl.store(out + mirrored, tl.trans(value), mask=(columns[:, None] < m) & (rows[None, :] < m))


def symmetric(x: Tensor, r: Tensor | None = None, b: float = 0.0, c: float = 1.0) -> Tensor:  # (b, m, n) -> (b, m, m)
    """b·R + c·X Xᵀ, R symmetric; sums in float32, the result in X's dtype and symmetric to the bit."""
    count, m, n = x.shape
    out = torch.empty(count, m, m, dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(m, TILE)
    added = out if r is None else r.contiguous()
    grid = (tiles * (tiles + 1) // 2, count)
    _kernel[grid](
        x, added, out, m, n, *x.stride(), b, c, ADDS=r is not None, TILE=TILE, DEPTH=DEPTH, num_warps=8, num_stages=3
    )
    return out
