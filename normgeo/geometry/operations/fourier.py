"""Fourier transforms."""

from __future__ import annotations

import math

from normgeo.geometry.factor import typical
from normgeo.geometry.reading import Meaning, Operation, of_weights
from normgeo.geometry.registry import operation

FORWARD = {f"fft_{kind}{axes}" for kind in ("fft", "rfft", "hfft") for axes in ("", "2", "n")}
INVERSE = {f"fft_{kind}{axes}" for kind in ("ifft", "irfft", "ihfft") for axes in ("", "2", "n")}
DEFAULT = {"2": (-2, -1), "n": None}
POWER = {None: 1, "backward": 1, "ortho": 0, "forward": -1}


@operation(*FORWARD, *INVERSE)
def transform(op: Operation) -> Meaning:
    """A unitary map times √points forward and 1/√points back, unless norm= says otherwise."""
    if (weight := of_weights(op)) is not None:
        return weight
    x, y = op.call.inputs[0].shape, op.call.outputs[0].shape
    dim = op.argument(2, "dim", DEFAULT.get(op.name[-1], -1))
    axes = range(len(x)) if dim is None else (dim,) if isinstance(dim, int) else dim
    points = math.prod(max(x[i], y[i]) for i in axes)
    power = POWER[op.argument(3, "norm")] * (1 if op.name in FORWARD else -1)
    return op.result(*op.nodes, slots=typical(points ** (power / 2)))


@operation("fft_fftshift", "fft_ifftshift")
def shift(op: Operation) -> Meaning:
    return of_weights(op) or op.result(*op.nodes)
