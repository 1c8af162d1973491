"""Models as strangers write them, in plain torch: each with an input that compiles it."""

import torch
from torch import nn
from torch.nn import functional


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3)), (rows(4, 8),), {}


class Functional(nn.Module):
    """The same without layers: raw parameters, one stored (in, out)."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(16, 8) / 4)
        self.shift = nn.Parameter(torch.zeros(16))
        self.second = nn.Parameter(torch.randn(16, 3) / 4)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.relu(functional.linear(x, self.first) + self.shift) @ self.second * self.temperature


def raw():
    return Functional(), (rows(4, 8),), {}


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.ln1(x)).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary=65, context=16, width=32, heads=4, depth=2):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.ln, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln(x))


def gpt():
    return GPT(), (ids(),), {}


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=65, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config), (ids(),), {}


PLAIN = [mlp, raw, gpt]
TRANSFORMERS = [gpt2]


def rows(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def ids(vocabulary=65, length=12):
    return torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


def made(factory, seed=0):
    """The model of a factory and its example arguments; from the same weights each time."""
    torch.manual_seed(seed)
    return factory()
