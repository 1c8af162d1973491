"""A Triton kernel for b·R + c·X Xᵀ: the tiles on and below the diagonal, of which the latter are written twice, once
transposed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["symmetric"]

TILE, DEPTH = 128, 64
# With 4 warps registers spill, in 2 stages products wait for memory. These take 64 to 96 KB of shared memory.
OPTIONS = {"num_warps": 8, "num_stages": 3}


@triton.jit
def _kernel(x, r, out, m, n, xb, xm, xn, b, c, ADDS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr):  # type: ignore[no-untyped-def]
    # Program p of a matrix is the tile (i, j), j ≤ i, counted along rows of the triangle: p = i(i + 1)/2 + j.
    p = tl.program_id(0)
    i = ((tl.sqrt(8.0 * p + 1.0) - 1.0) / 2.0).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > p, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= p, i + 1, i)
    j = p - i * (i + 1) // 2
    matrix = tl.program_id(1).to(tl.int64)
    rows, columns, inner = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE), tl.arange(0, DEPTH)
    # A matrix may have 2³¹ entries, so that only steps along it, and not places in it, are numbers of 32 bits.
    x += matrix * xb
    left = x + rows[:, None].to(tl.int64) * xm + inner[None, :] * xn
    right = x + columns[None, :].to(tl.int64) * xm + inner[:, None] * xn
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, n, DEPTH):
        ahead = n - start
        total = tl.dot(
            tl.load(left, mask=(rows[:, None] < m) & (inner[None, :] < ahead), other=0.0),
            tl.load(right, mask=(columns[None, :] < m) & (inner[:, None] < ahead), other=0.0),
            total,
            input_precision="ieee",
        )
        left += DEPTH * xn
        right += DEPTH * xn
    total *= c
    where = matrix * m * m + rows[:, None].to(tl.int64) * m + columns[None, :]
    inside = (rows[:, None] < m) & (columns[None, :] < m)
    if ADDS:
        total += b * tl.load(r + where, mask=inside, other=0.0).to(tl.float32)
    value = total.to(out.dtype.element_ty)
    if i == j:  # what is above the diagonal is that below it here too: R may be symmetric but for rounding
        tl.store(out + where, tl.where(rows[:, None] >= columns[None, :], value, tl.trans(value)), mask=inside)
    else:
        tl.store(out + where, value, mask=inside)
        mirrored = matrix * m * m + columns[:, None].to(tl.int64) * m + rows[None, :]
        tl.store(out + mirrored, tl.trans(value), mask=(columns[:, None] < m) & (rows[None, :] < m))


def symmetric(x: Tensor, r: Tensor | None = None, b: float = 0.0, c: float = 1.0) -> Tensor:  # (b, m, n) -> (b, m, m)
    """b·R + c·X Xᵀ, of R what is on and below the diagonal; sums in float32, the result in X's dtype and symmetric to
    the bit."""
    count, m, n = x.shape
    out = torch.empty(count, m, m, dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(m, TILE)
    added = out if r is None else r.contiguous()
    grid = (tiles * (tiles + 1) // 2, count)
    _kernel[grid](x, added, out, m, n, *x.stride(), b, c, ADDS=r is not None, TILE=TILE, DEPTH=DEPTH, **OPTIONS)
    return out
