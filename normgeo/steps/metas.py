"""Meta updates: how a logarithmic step size β follows the derivative z of the loss in it."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["Meta", "MetaAdam", "MetaLion", "MetaSGD"]


@dataclass(frozen=True)
class Meta(ABC):
    """β ← β + change(z). `names` are tensors of z's shape that it remembers, from 0.

    >>> class Sign(Meta):
    ...     def change(self, z, state, t): return -self.rate * z.sign()
    >>> Sign(rate=0.5).change(torch.tensor(3.0), {}, torch.tensor(1.0))
    tensor(-0.5000)
    """

    names: ClassVar[tuple[str, ...]] = ()

    rate: float = 1e-3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"{type(self).__name__}: rate must be a finite number > 0, got {self.rate}")

    @abstractmethod
    def change(self, z: Tensor, state: dict[str, Tensor], t: Tensor) -> Tensor:
        """What is added to β in the t-th step, t = 1, 2, ...; it keeps its memory in `state`."""


@dataclass(frozen=True)
class MetaSGD(Meta):
    """β ← β - rate·z. The only one that feels the scale of the loss.

    >>> MetaSGD(rate=0.1).change(torch.tensor(3.0), {}, torch.tensor(1.0))
    tensor(-0.3000)
    """

    def change(self, z: Tensor, state: dict[str, Tensor], t: Tensor) -> Tensor:
        return -self.rate * z


@dataclass(frozen=True)
class MetaLion(Meta):
    """β ← β - rate·sign(c·m + (1 - c)·z),  m ← ρ·m + (1 - ρ)·z: |Δβ| is `rate` or 0.

    >>> MetaLion(rate=0.1).change(torch.tensor(3.0), {"m": torch.tensor(0.0)}, torch.tensor(1.0))
    tensor(-0.1000)
    """

    rho: float = 0.99
    c: float = 0.9

    names: ClassVar[tuple[str, ...]] = ("m",)

    def change(self, z: Tensor, state: dict[str, Tensor], t: Tensor) -> Tensor:
        blend = self.c * state["m"] + (1 - self.c) * z
        state["m"] = self.rho * state["m"] + (1 - self.rho) * z
        return -self.rate * blend.sign()


@dataclass(frozen=True)
class MetaAdam(Meta):
    """β ← β - rate·m̂/√v̂ with Adam's averages (ρ, λ) and bias corrections of this step's m and v, held to |Δβ| ≤ rate. (Adam
    alone can move by (1-ρ)/√(1-λ) = 3.2 rates after a jump of z; print uses m and v from before the update, 0/0 in the
    first step: erratum X4-5.)

    >>> memory = {"m": torch.tensor(0.0), "v": torch.tensor(0.0)}
    >>> MetaAdam(rate=0.1).change(torch.tensor(3.0), memory, torch.tensor(1.0))
    tensor(-0.1000)
    """

    rho: float = 0.9
    lam: float = 0.999

    names: ClassVar[tuple[str, ...]] = ("m", "v")

    def change(self, z: Tensor, state: dict[str, Tensor], t: Tensor) -> Tensor:
        state["m"] = m = self.rho * state["m"] + (1 - self.rho) * z
        state["v"] = v = self.lam * state["v"] + (1 - self.lam) * z.square()
        correction = (1 - self.lam**t).sqrt() / (1 - self.rho**t)
        return -self.rate * torch.where(v > 0, correction * m / v.sqrt(), 0.0).clamp(-1, 1)
