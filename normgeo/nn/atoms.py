"""Atoms: modules that own one weight, with its norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normgeo.geometry import LINEAR, Factor, Graph, Node, bound, mass, register, typical
from normgeo.geometry.graph import ZERO
from normgeo.linalg import SVD
from normgeo.nn.algebra import Module
from normgeo.norms import RMS, L1ToRMS, Linf, Norm, RMSToLinf, RMSToRMS, Scaled, with_polar

__all__ = ["Atom", "Bias", "Embedding", "Gain", "Linear", "Positions"]


class Atom(Module):
    """A module that owns one parameter, `weight`, of size 1 in `norm` unless it starts at a fixed value."""

    role: str
    norm: Norm
    weight: nn.Parameter

    def __init__(
        self, shape: tuple[int, ...], role: str, norm: Norm, start: float | None, options: dict[str, Any]
    ) -> None:
        super().__init__()
        if not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"{type(self).__name__}: sizes must be whole numbers > 0, got {shape}")
        self.role, self.norm, self._start = role, norm, start
        self.weight = nn.Parameter(torch.empty(shape, **options))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        if self.weight.is_meta:
            return
        if self._start is not None:
            self.weight.fill_(self._start)
        else:
            self.weight.copy_(self.norm.init(self.weight.shape, dtype=self.weight.dtype, device=self.weight.device))

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self.weight.shape))}, norm={self.norm}, mass={self.mass:g}"


class Linear(Atom):
    """x ↦ W x without bias, W (out, in). ‖W‖ is RMS→RMS, so a unit weight keeps the RMS of its input at most as it is.

    `zero=True` starts at W = 0, the usual choice for the head of a classifier or language model.

    >>> Linear(784, 256).weight.shape
    torch.Size([256, 784])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        zero: bool = False,
        role: str = "linear",
        norm: Norm | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        options = {"dtype": dtype, "device": device}
        super().__init__((out_features, in_features), role, norm or RMSToRMS(), 0.0 if zero else None, options)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class Embedding(Atom):
    """Token ids ↦ rows of W (num, dim). ‖W‖ is the largest row RMS, so each row starts, and is updated, on its own.

    >>> Embedding(65, 128)(torch.tensor([[3, 5]])).shape
    torch.Size([1, 2, 128])
    """

    def __init__(
        self,
        num: int,
        dim: int,
        *,
        norm: Norm | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__((num, dim), "embedding", norm or L1ToRMS(), None, {"dtype": dtype, "device": device})

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight)


class Gain(Atom):
    """x ↦ γ ⊙ x, from γ = 1. ‖γ‖ = max|γᵢ|, since RMS(γ ⊙ x) ≤ max|γᵢ|·RMS(x). Channels of images: axis=-3.

    >>> Gain(3)(torch.ones(3))
    tensor([1., 1., 1.], grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        dim: int,
        *,
        axis: int = -1,
        norm: Norm | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__((dim,), "gain", norm or Linf(), 1.0, {"dtype": dtype, "device": device})
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x * along(self.weight, self.axis)


class Bias(Atom):
    """x ↦ x + b, from b = 0. ‖b‖ = RMS(b). It adds 1, the size of a unit bias, to the size that what follows sees.
    Channels of images: axis=-3.

    >>> Bias(3)(torch.ones(3))
    tensor([1., 1., 1.], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        dim: int,
        *,
        axis: int = -1,
        norm: Norm | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__((dim,), "bias", norm or RMS(), 0.0, {"dtype": dtype, "device": device})
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x + along(self.weight, self.axis)


class Positions(Atom):
    """Tokens (..., t, dim) ↦ each plus the row of W (context, dim) for its position; ‖W‖ is the largest row RMS. It adds 1,
    the size of a unit row, to the size that what follows sees.

    >>> Positions(8, 4)(torch.zeros(2, 5, 4)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        context: int,
        dim: int,
        *,
        norm: Norm | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__((context, dim), "embedding", norm or L1ToRMS(), None, {"dtype": dtype, "device": device})

    def forward(self, x: Tensor) -> Tensor:
        t, context = x.shape[-2], len(self.weight)
        if t > context:
            raise ValueError(f"Positions: {t} tokens are more than context={context}; build the model with more")
        return x + self.weight[:t]


@register(Linear)
def _(module: Linear, graph: Graph, x: Node) -> Node:
    x = features(module, graph, x, module.weight.shape[1])
    slot = slot_of(module.norm, RMSToRMS(), RMSToLinf())
    out = graph.op("linear", x, slots=slot, features=module.weight.shape[0], curvature=LINEAR)
    return used(module, graph, out, x, slot)


@register(Embedding)
def _(module: Embedding, graph: Graph, ids: Node) -> Node:
    slot = slot_of(module.norm, L1ToRMS())
    out = graph.op("embed", ids, slots=ZERO, size=slot, features=module.weight.shape[1], axis=-1, curvature=LINEAR)
    return used(module, graph, out, None, slot)


@register(Gain)
def _(module: Gain, graph: Graph, x: Node) -> Node:
    x = features(module, graph, x, module.weight.shape[0], module.axis)
    slot = slot_of(module.norm, Linf())
    out = graph.op("gain", x, slots=slot, features=module.weight.shape[0], curvature=LINEAR)
    return used(module, graph, out, x, slot)


@register(Bias)
def _(module: Bias, graph: Graph, x: Node) -> Node:
    x = features(module, graph, x, module.weight.shape[0], module.axis)
    slot = slot_of(module.norm, RMS())
    out = graph.op("bias", x, size=x.size + slot, features=module.weight.shape[0], curvature=LINEAR)
    return used(module, graph, out, None, slot)


@register(Positions)
def _(module: Positions, graph: Graph, x: Node) -> Node:
    x = features(module, graph, x, module.weight.shape[1])
    slot = slot_of(module.norm, L1ToRMS())
    out = graph.op("positions", x, size=x.size + slot, features=x.features, curvature=LINEAR)
    return used(module, graph, out, None, slot)


def slot_of(norm: Norm, *natural: Norm) -> Factor:
    """How large an operator in the unit ball of a norm can be: 1 in the natural norm of the atom or a larger one, 1/c in c
    times it, and anybody's guess in another."""
    inner, factor = (norm.inner, norm.factor) if isinstance(norm, Scaled) else (norm, 1.0)
    return bound(1 / factor) if any(_same(inner, each) for each in natural) else typical(1.0)


def _same(norm: Norm, natural: Norm) -> bool:
    """Whether two norms are one, however they compute polar factors."""
    return type(norm) is type(natural) and with_polar(norm, SVD()) == with_polar(natural, SVD())


def used(module: Atom, graph: Graph, out: Node, x: Node | None, slot: Factor) -> Node:
    """‖ΔW x‖ ≤ slot·‖ΔW‖·‖x‖."""
    size, mixed = (bound(1.0), ZERO) if x is None else (x.size, slot)
    place: dict[str, Any] = {"role": module.role, "norm": module.norm, "mass": mass(module)}
    graph.use(module.weight, out, input_norm=size, slot=slot, mixed=mixed, **place)
    return out


def features(module: nn.Module, graph: Graph, x: Node, wanted: int | None = None, axis: int = -1) -> Node:
    """x, which must have its features on this axis, and as many as are wanted."""
    name = f"{type(module).__name__} ({'.'.join(graph.path) or 'the model itself'})"
    x.layout.claim(axis, name)
    if wanted is not None and x.features not in (None, wanted):
        raise ValueError(f"{name} takes {wanted} features and follows an operation with {x.features}")
    return x


def along(weight: Tensor, axis: int) -> Tensor:
    """A vector as a tensor that broadcasts along an axis, counted from the end."""
    return weight.reshape(-1, *(1,) * (-axis - 1))
