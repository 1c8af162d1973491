"""Problems with networks as others wrote them: GPT-2 and Llama of transformers, and a ResNet in plain torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normgeo.lab.errors import UserError
from normgeo.lab.problems import Pictures, Text
from normgeo.plan import Plan, compile

__all__ = ["FAMILIES", "ResNet18", "ResNetPictures", "TransformerText", "heads_of"]

FAMILIES = ("gpt2", "llama")
HEAD = 16
"""features of a head, at every width"""


def heads_of(width: int) -> int:
    """How many heads a transformer of this width gets, unless told otherwise.

    >>> heads_of(64), heads_of(256)
    (4, 16)
    """
    return max(1, width // HEAD)


@dataclass(frozen=True)
class TransformerText(Text):
    """A language model of transformers with its own initialisation, on a text; without dropout."""

    family: str = "gpt2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if find_spec("transformers") is None:
            raise UserError(f'--studies: {self.family} comes from transformers; pip install "transformers>=5"')

    @property
    def name(self) -> str:
        return f"{self.family} {self.settings.width} × {self.settings.depth}"

    def model(self) -> nn.Module:
        transformers: Any = import_module("transformers")
        s, vocabulary = self.settings, len(self.corpus.vocabulary)
        torch.manual_seed(s.seed)
        tokens = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None}
        if self.family == "gpt2":
            sizes = {"n_positions": s.context, "n_embd": s.width, "n_layer": s.depth, "n_head": s.heads}
            dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            gpt2: nn.Module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**tokens, **sizes, **dropout))
            return gpt2
        config = transformers.LlamaConfig(
            **tokens,
            hidden_size=s.width,
            intermediate_size=11 * s.width // 4,
            num_hidden_layers=s.depth,
            num_attention_heads=s.heads,
            max_position_embeddings=s.context,
        )
        llama: nn.Module = transformers.LlamaForCausalLM(config)
        return llama

    def compile(self, model: nn.Module, **options: Any) -> Plan:
        return compile(model, (self.batch(0)[0],), **options)

    def logits(self, model: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = model(x, use_cache=False).logits
        return out


class Basic(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        shortcut = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.shortcut: nn.Module = shortcut if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """He et al. (arXiv:1512.03385): a stem, eight blocks of two convolutions in four widths from `width` on, a linear head.

    >>> ResNet18(width=4)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, width: int = 16, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        widths = [width << k for k in (0, 0, 1, 2, 3)]
        pairs = [(Basic(a, b, 1 + (a < b)), Basic(b, b, 1)) for a, b in itertools.pairwise(widths)]
        self.blocks = nn.Sequential(*(block for pair in pairs for block in pair))
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn(self.conv(x))), 3, 2, 1)
        return self.fc(functional.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


@dataclass(frozen=True)
class ResNetPictures(Pictures):
    """ResNet-18 on images."""

    width: int = 16
    batch_size: int = 128
    steps: int = 200

    def __post_init__(self) -> None:
        if len(self.data.shape) not in (2, 3):
            raise UserError(
                f"--images: an example of {self.data.name} has the shape {self.data.shape}; give images (h, w) or (h, w, c)"
            )

    @property
    def name(self) -> str:
        return f"ResNet-18 {self.width}"

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return ResNet18(self.width, self._size[2], classes=int(self.data.y_train.max()) + 1)

    def compile(self, model: nn.Module, **options: Any) -> Plan:
        return compile(model, (self.batch(0)[0][:4],), **options)
