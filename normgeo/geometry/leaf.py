"""The Leaf: one weight of the network, or one block of a fused weight, and all that its update needs to know."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from einops import rearrange
from torch import Tensor

from normgeo.geometry.factor import Known
from normgeo.norms import Norm

__all__ = ["Leaf", "View"]


@dataclass(frozen=True)
class View:
    """How a norm sees a stored tensor: an einops pattern, and for fused weights the index of one block on the first axis.

    >>> import torch
    >>> qkv = torch.arange(12.0).reshape(6, 2)
    >>> View("(three d) i -> three d i", (("three", 3),), block=1).read(qkv)
    tensor([[4., 5.],
            [6., 7.]])
    """

    pattern: str
    sizes: tuple[tuple[str, int], ...] = ()
    block: int | None = None
    span: tuple[int, int, int] | None = None
    """(axis, start, stop) of what is left: blocks of unequal sizes"""

    def read(self, stored: Tensor) -> Tensor:
        """The tensor that the norm sees; it may share memory with the stored one."""
        return self._part(rearrange(stored, self.pattern, **dict(self.sizes)))

    def write(self, stored: Tensor, seen: Tensor) -> None:
        """Put what the norm sees back in place."""
        whole = rearrange(stored, self.pattern, **dict(self.sizes))
        self._part(whole).copy_(seen)
        if whole.untyped_storage().data_ptr() != stored.untyped_storage().data_ptr():
            left, right = self.pattern.split("->")
            stored.copy_(rearrange(whole, f"{right} -> {left}", **dict(self.sizes)))

    def _part(self, whole: Tensor) -> Tensor:
        part = whole if self.block is None else whole[self.block]
        return part if self.span is None else part.narrow(self.span[0], self.span[1], self.span[2] - self.span[1])

    def __str__(self) -> str:
        block = "" if self.block is None else f" [{self.block}]"
        return self.pattern + block + ("" if self.span is None else f" [{self.span[1]}:{self.span[2]}]")


@dataclass(frozen=True)
class Leaf:
    """A weight's place in the modular norm. coefficient s = (M/m)·x·μ, radius r = 1/s, modular norm = max s·‖w‖.

    >>> from normgeo.norms import RMSToRMS
    >>> leaf = Leaf("up.weight", "up.weight", (4, 2), "linear", RMSToRMS(), mass=1.0, sensitivity=0.5, radius=2.0)
    >>> leaf.reach, leaf.radius * leaf.norm.norm(leaf.norm.init(leaf.shape)).round().item()
    (2.0, 2.0)
    """

    name: str
    """the parameter's name, with a suffix like [q] for a block of a fused parameter"""
    parameter: str
    """name of the parameter, without the prefixes of wrappers"""
    shape: tuple[int, ...]
    """as the norm sees it"""
    role: str
    """how the weight is used: linear, embedding, head, gain, bias, ..."""
    norm: Norm
    mass: float = 1.0
    """m: its share in the change that one step may cause is m/M"""
    input_norm: float = 1.0
    """x: how large what it multiplies can be"""
    sensitivity: float = 1.0
    """μ: how much a change of what it produces changes the output of the network"""
    radius: float = 1.0
    """r: the largest norm of its change in a step of size 1"""
    known: Known = "bound"
    """how well x and μ are known"""
    source: str = "declared"
    """where they come from"""
    view: View | None = None
    trainable: bool = field(default=True)
    at: float | None = None
    """the norm that the weight had where x and μ were traced; they hold for that weight"""

    @property
    def reach(self) -> float:
        """1/(x·μ): the radius if this leaf had all the mass, r·M/m."""
        return 1 / (self.input_norm * self.sensitivity)

    def read(self, stored: Tensor) -> Tensor:
        """The parameter (or its gradient) as the norm sees it."""
        return stored if self.view is None else self.view.read(stored)

    def write(self, stored: Tensor, seen: Tensor) -> None:
        """Put a tensor as the norm sees it back into the parameter."""
        if self.view is None:
            stored.copy_(seen)
        else:
            self.view.write(stored, seen)

    @property
    def coefficient(self) -> float:
        """s = 1/r; infinite for a leaf of mass 0."""
        return 1 / self.radius if self.radius else math.inf
