"""How long polar factors take with nothing around them, and how near they come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from normgeo.lab.speed_clock import left_out, median_seconds
from normgeo.linalg import FAST, TIGHT, NewtonSchulz, PolarExpress, in_dtype, symmetric
from normgeo.linalg.coefficients import KELLER
from normgeo.optim.place import most_entries

__all__ = ["POLARS", "REFERENCE", "Accuracy", "Iteration", "PolarTiming", "accuracies", "flops", "time_polars"]

Iteration = NewtonSchulz | PolarExpress
REFERENCE = "torch Muon"
POLARS: dict[str, Iteration] = {
    "normgeo tight": TIGHT,
    "normgeo fast": FAST,
    REFERENCE: NewtonSchulz(KELLER, torch.bfloat16),
}
LIBRARY = ", library alone"


@dataclass(frozen=True)
class PolarTiming:
    """Polar factors of `count` float32 matrices (m, n) at once, with nothing around them."""

    name: str
    count: int
    m: int
    n: int
    milliseconds: float
    gflops: float
    """of the plain iteration's arithmetic, 1e9 a second, whatever was done in its place"""


@dataclass(frozen=True)
class Accuracy:
    """The singular values of a polar factor P of float32 matrices G, for those of G/‖G‖_F in [1e-3, 1]."""

    name: str
    width: int
    least: float
    largest: float
    descent: float
    """the least ⟨G, P⟩/‖G‖* of the spectra tried"""


def time_polars(width: int, depth: int, device: torch.device, rounds: int = 9) -> list[PolarTiming]:
    """The stacks of a GPT's matrices, square and 1 : 4, by each policy; on CUDA also without the symmetric kernel where
    that may be taken, and in the Gram form in float16."""
    out = []
    for count, m, n in ((4 * depth, width, width), (depth, width, 4 * width)):
        x = torch.randn(min(count, max(1, most_entries(device) // (m * n))), m, n, device=device)
        policies: dict[str, Iteration] = {**POLARS, **(_policies(device) if device.type == "cuda" else {})}
        for name, polar in policies.items():
            with left_out(name):
                ways = {name: partial(polar, x)}
                if device.type == "cuda" and width >= symmetric.SMALLEST:
                    ways[name + LIBRARY] = partial(_without_kernel, polar, x)
                for way, run in ways.items():
                    seconds = median_seconds(run, device, rounds)
                    work = len(x) * flops(polar, m, n)
                    out.append(PolarTiming(way, len(x), m, n, 1e3 * seconds, work / seconds / 1e9))
    return out


def accuracies(width: int, device: torch.device, seed: int = 0) -> list[Accuracy]:
    """Each polar method on matrices, square and 1 : 2, with singular values that are Gaussian's, logarithmic down to 1e-3,
    half of them 1e-3, all but one 1e-3. Of what comes out, P, singular values are roots of those of PPᵀ, in float64."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(_normal(width, width, generator).to(device))[0] for _ in range(2))
    half = torch.ones(width, dtype=torch.float64) / max(width / 2, 1) ** 0.5
    half[width // 2 :] = 1e-3
    spike = torch.full((width,), 1e-3, dtype=torch.float64)
    spike[0] = 1
    spectra = (
        torch.linalg.svdvals(_normal(width, width, generator).to(device)),
        torch.logspace(0, -3, width).double(),
        half,
        spike,
    )
    wide = torch.linalg.qr(_normal(2 * width, width, generator).to(device))[0].mT
    out = []
    for name, polar in {**POLARS, **_policies(device)}.items():
        least, largest, descent = torch.inf, 0.0, torch.inf
        for s, right in product([spectrum.to(device) for spectrum in spectra], (v, wide)):
            g = (u * s) @ right
            p = polar(g.float()).double()
            sizes = torch.linalg.eigvalsh(p @ p.mT).flip(0).clamp_min(0).sqrt()[: int((s / s.norm() >= 0.999e-3).sum())]
            least, largest = min(least, float(sizes[-1])), max(largest, float(sizes[0]))
            descent = min(descent, float((g * p).sum() / s.sum()))
        out.append(Accuracy(name, width, least, largest, descent))
    return out


def flops(polar: Iteration, m: int, n: int) -> int:
    m, n = sorted((m, n))
    return sum(4 * m * m * n + 2 * m**3 * (len(step) // 2) for step in polar.schedule)


def _policies(device: torch.device) -> dict[str, Iteration]:
    """`precision` as a dtype."""
    dtypes = (torch.bfloat16, torch.float32) if device.type == "cpu" else (torch.bfloat16, torch.float16, torch.float32)
    return {f"precision={dtype}": in_dtype(dtype) for dtype in dtypes}


def _without_kernel(polar: Iteration, x: Tensor) -> Tensor:
    before, symmetric.SMALLEST = symmetric.SMALLEST, 2**62
    try:
        return polar(x)
    finally:
        symmetric.SMALLEST = before


def _normal(m: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(m, n, generator=generator, dtype=torch.float64)
