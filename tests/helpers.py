"""Inputs that many tests share."""

import inspect
import re
from types import ModuleType

import torch
from hypothesis import strategies as st
from torch import Tensor

import normgeo as ng

seeds = st.integers(0, 2**16)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def published_gpt(vocabulary: int, context: int, width: int, heads: int, depth: int) -> ng.nn.Module:
    """The GPT of Large et al. (arXiv 2405.14813), composed here from modules: positions learned, residuals averaged."""
    nn, share = ng.nn, 1 / (2 * depth)

    def block() -> ng.nn.Module:
        qkv = nn.Parallel(**{name: nn.Linear(width, width) for name in "qkv"})
        attention = nn.Linear(width, width) @ nn.Mul(1 / 3) @ nn.Attention(heads) @ qkv @ nn.LayerNorm()
        mlp = nn.Linear(4 * width, width) @ nn.ScaledGELU() @ nn.Linear(width, 4 * width) @ nn.LayerNorm()
        return nn.residual(share, mlp) @ nn.residual(share, attention)

    embed = 0.5 * nn.Embedding(vocabulary, width) + 0.5 * (nn.Embedding(context, width) @ nn.Enumerate())
    blocks = nn.Sequential(*(block() for _ in range(depth))).tare(5)
    return nn.Linear(width, vocabulary) @ nn.LayerNorm() @ blocks @ embed.tare(1)


def exported(room: ModuleType, base: type) -> list[type]:
    """The concrete classes of a kind that a room exports."""
    found = (getattr(room, name) for name in room.__all__)
    return [c for c in found if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)]


def called(part: object) -> str:
    """What a test of a part is called: its repr without addresses, which differ between processes."""
    return re.sub(r"<function (\S+) at \w+>", r"\1", repr(part))


def drawn(model):
    """In float64, with every weight at norm 1, those that start at 0 too."""
    model = model.double()
    with torch.no_grad():
        for leaf in ng.compile(model).leaves:
            weight = dict(model.named_parameters())[leaf.parameter]
            weight.copy_(leaf.norm.init(weight.shape, dtype=torch.float64))
            weight.div_(leaf.norm.norm(weight).clamp_min(1))
    return model


class Watching(ng.steps.StepSize):
    """The step size 1, and in `seen` what `look` finds in the stats of every step."""

    def __init__(self, look, **needs):
        self.look, self.needs, self.seen = look, needs, []

    def value(self, stats, state):
        self.seen.append(self.look(stats))
        return torch.tensor(1.0)
