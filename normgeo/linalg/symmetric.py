"""Products that are symmetric by nature, X Xᵀ and polynomials of R: large ones by half of their blocks, on CPU by products
of the library, on CUDA by a kernel where it is measured to be faster than the library."""

from __future__ import annotations

import importlib.util
import statistics
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from normgeo.linalg.scale import host_sees

__all__ = ["gram", "polynomial", "residual"]

# Below this side the library won wherever it was measured (.7 of its time at 1024 on an H100), so nobody is asked.
SMALLEST = 2048
ROUNDS = 5

# On CPU blocks pay from so many multiplications for each thread: 256 × 256 × 1024 for one, 512 × 512 × 512 for two.
PER_THREAD = 2**26


def gram(x: Tensor) -> Tensor:  # (b, m, n) -> (b, k, k)
    """XXᵀ or XᵀX, whichever is smaller."""
    return _fastest(_wide(x), None, 0.0, 1.0)


def residual(x: Tensor, eye: Tensor) -> Tensor:  # (b, m, n), (k, k) -> (b, k, k)
    """E = I - XXᵀ (XᵀX), rounded only after the subtraction."""
    x = _wide(x)
    if _blocks_pay(x):
        return _by_blocks(x, eye.repeat(len(x), 1, 1), 1.0, -1.0)
    return torch.baddbmm(eye, x, x.mT, alpha=-1)


def polynomial(r: Tensor, q: Sequence[float]) -> Tensor:  # (b, k, k) -> (b, k, k)
    """q₁R + q₂R², or q₁R + q₂R² + q₃R³ + q₄R⁴ with q₄ ≠ 0 by two products, for a symmetric R.

    The latter is q₄S² + wS + vR with S = R² + tR, t = q₃/2q₄: where q vanishes at both ends of an interval, so does S
    nearly, and large coefficients of alternating signs do not multiply the rounding of large powers.
    """
    if len(q) == 2:
        return _fastest(r, r, *q) if q[1] else q[0] * r
    t = q[2] / (2 * q[3])
    w = q[1] - q[3] * t * t
    v = q[0] - w * t
    s = _fastest(r, r, t, 1.0)
    if abs(w) < abs(v):
        return _fastest(s, _plus(r, s, w / v), v, q[3])
    return _fastest(s, _plus(s, r, v / w if w else 0), w, q[3])


def _plus(a: Tensor, b: Tensor, c: float) -> Tensor:
    """a + c·b. With `alpha`, torch.add rounds the last entries of a bfloat16 tensor on CPU in another way than the others:
    a matrix would depend on its place in a batch."""
    if a.dtype == torch.bfloat16 and a.device.type == "cpu":
        return torch.addcmul(a, b, a.new_ones(()), value=c)
    return torch.add(a, b, alpha=c)


def _wide(x: Tensor) -> Tensor:
    return x if x.shape[-2] <= x.shape[-1] else x.mT


def _fastest(x: Tensor, r: Tensor | None, b: float, c: float) -> Tensor:
    """b·R + c·X² for symmetric X, or XXᵀ if there is no R."""
    large = x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and x.shape[-2] >= SMALLEST
    if large and _kernel_pays(x, r is not None):
        from normgeo.linalg.syrk import symmetric

        return symmetric(x, r, b, c)
    if _blocks_pay(x):
        out = x.new_empty(len(x), x.shape[-2], x.shape[-2]) if r is None else r.clone()
        return _by_blocks(x, out, b, c)
    return _library(x, r, b, c)


def _library(x: Tensor, r: Tensor | None, b: float, c: float) -> Tensor:
    return torch.bmm(x, x.mT) if r is None else torch.baddbmm(r, x, x, beta=b, alpha=c)


def _blocks_pay(x: Tensor) -> bool:
    """However many there are: what a matrix becomes must not depend on who shares its stack."""
    k, n = x.shape[-2:]
    return k >= 256 and k * k * n >= PER_THREAD * torch.get_num_threads() and host_sees(x)


def _by_blocks(x: Tensor, out: Tensor, b: float, c: float) -> Tensor:  # (b, k, n), (b, k, k) -> (b, k, k)
    """b·out + c·XXᵀ in place of `out`: rows of blocks as far as the diagonal, and above it their transpose."""
    k = x.shape[-2]
    block = min((k + 1) // 2, 256)
    for i in range(len(x)):
        for start in range(0, k, block):
            stop = start + block
            out[i, start:stop, :stop].addmm_(x[i, start:stop], x[i, :stop].T, beta=b, alpha=c)
            if start:
                out[i, :start, start:stop] = out[i, start:stop, :start].T
    return out


_pays: dict[tuple[object, ...], bool] = {}


def _kernel_pays(x: Tensor, adds: bool) -> bool:
    """Measured once for each shape, dtype and device, outside of graphs; no while somebody traces or records."""
    key = (x.shape[-2:], x.dtype, x.device, adds)
    if key not in _pays:
        if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
            return False
        _pays[key] = _measure(x, adds)
    return _pays[key]


def _measure(x: Tensor, adds: bool) -> bool:
    if importlib.util.find_spec("triton") is None:
        _say_once("triton is not installed; symmetric products take the library's kernels: pip install 'normgeo[gpu]'")
        return False
    from normgeo.linalg.syrk import symmetric

    r = torch.zeros(*x.shape[:-1], x.shape[-2], dtype=x.dtype, device=x.device) if adds else None
    try:
        return _time(lambda: symmetric(x, r, 1.0, 1.0)) < _time(lambda: _library(x, r, 1.0, 1.0))
    except Exception as error:  # of the compiler, the driver or this chip: all the same to the caller
        _say_once(f"the symmetric kernel does not run here ({type(error).__name__}: {error}); taking the library's")
        return False


def _time(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(ROUNDS):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def _say_once(line: str) -> None:
    if line not in _said:
        _said.add(line)
        warnings.warn(line.splitlines()[0], RuntimeWarning, stacklevel=2)


_said: set[str] = set()
