"""Compounds: networks as functions that compose modules."""

import math

from torch import nn

from normgeo.nn.algebra import Module, Mul, Parallel, Sequential, Sum
from normgeo.nn.atoms import Embedding, Linear
from normgeo.nn.attention import Attention
from normgeo.nn.bonds import GELU, Enumerate, Identity, LayerNorm, ReLU, Typical

__all__ = ["GPT", "MLP", "ScaledGELU", "ScaledReLU", "SelfAttention", "residual"]


def ScaledReLU() -> Module:  # noqa: N802
    """√2·ReLU: keeps the RMS of a Gaussian. Sensitivity 1 typically, √2 as a bound.

    >>> ScaledReLU().sensitivity
    1.0
    """
    return Typical(math.sqrt(2) * ReLU(), 1.0)


def ScaledGELU() -> Module:  # noqa: N802
    """√2·GELU. Sensitivity 1 typically, 1.60 as a bound.

    >>> ScaledGELU().sensitivity
    1.0
    """
    return Typical(math.sqrt(2) * GELU(), 1.0)


def residual(share: float, block: Module) -> Module:
    """x ↦ (1 - share)·x + share·block(x): total sensitivity 1 if that of the block is 1.

    >>> list(dict(residual(0.5, Sequential(mlp=Linear(4, 4))).named_parameters()))
    ['residue.mlp.weight']
    """
    return Sum(skip=(1 - share) * Identity(), residue=share * block)


def MLP(in_features: int, width: int, out_features: int, depth: int = 3) -> Module:  # noqa: N802
    """`depth` linear maps with √2·ReLU between them; the last starts at 0.

    >>> MLP(784, 256, 10).mass
    3.0
    """
    if depth < 2:
        raise ValueError(f"MLP: depth counts linear maps and must be ≥ 2, got {depth}")
    layers: list[nn.Module] = [Linear(in_features, width), ScaledReLU()]
    for _ in range(depth - 2):
        layers += [Linear(width, width), ScaledReLU()]
    return Sequential(*layers, Linear(width, out_features, zero=True, role="head"))


def SelfAttention(width: int, heads: int) -> Module:  # noqa: N802
    """W · ⅓ attention(Q x, K x, V x): the three slots of attention have sensitivity 1 each, hence the third.

    >>> SelfAttention(8, 2).mass
    4.0
    """
    if width % heads:
        raise ValueError(
            f"SelfAttention: width {width} does not divide into {heads} heads; choose heads that divide it"
        )
    qkv = Parallel(q=Linear(width, width), k=Linear(width, width), v=Linear(width, width))
    return Sequential(qkv=qkv, mix=Attention(heads), third=Mul(1 / 3), out=Linear(width, width))


def GPT(vocab_size: int, context: int, width: int, heads: int, depth: int) -> Module:  # noqa: N802
    """A causal language model: ids (batch, t ≤ context) ↦ logits (batch, t, vocab_size), without biases and gains.

    Each of the 2·depth residual layers mixes 1 - 1/(2·depth) of its input with 1/(2·depth) of its block, so the
    sensitivity of the whole stream is 1 at any depth. Masses: embeddings 1, blocks 5, head 1. The head starts at 0.
    Source: the GPT of Large et al., arXiv 2405.14813, with the factor ⅓ on the output of attention.

    >>> round(GPT(vocab_size=65, context=64, width=32, heads=4, depth=2).mass)
    7
    """
    if depth < 1:
        raise ValueError(f"GPT: depth must be ≥ 1, got {depth}")
    share = 1 / (2 * depth)

    def block() -> Module:
        mlp = Sequential(up=Linear(width, 4 * width), act=ScaledGELU(), down=Linear(4 * width, width))
        return Sequential(
            attention=residual(share, SelfAttention(width, heads) @ LayerNorm()),
            mlp=residual(share, mlp @ LayerNorm()),
        )

    embed = Sum(
        token=Sequential(table=Embedding(vocab_size, width), scale=Mul(0.5)),
        position=Sequential(index=Enumerate(), table=Embedding(context, width), scale=Mul(0.5)),
    )
    return Sequential(
        embed=embed.tare(1),
        blocks=Sequential(*(block() for _ in range(depth))).tare(5),
        norm=LayerNorm(),
        head=Linear(width, vocab_size, zero=True, role="head"),
    )
