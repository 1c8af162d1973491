"""Inputs that many tests share."""

import inspect
from types import ModuleType

import torch
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 2**16)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exported(room: ModuleType, base: type) -> list[type]:
    """The concrete classes of a kind that a room exports."""
    found = (getattr(room, name) for name in room.__all__)
    return [c for c in found if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)]
