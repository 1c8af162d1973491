"""Compounds: networks as functions that compose modules."""

import math

from torch import Tensor, nn

from normgeo.nn.algebra import Module, Mul, Parallel, Sequential
from normgeo.nn.atoms import Embedding, Linear
from normgeo.nn.attention import Attention
from normgeo.nn.bonds import GELU, LayerNorm, ReLU, Typical
from normgeo.nn.heads import HeadNorm, Rotary
from normgeo.nn.residual import Stream

__all__ = ["GPT", "MLP", "ScaledGELU", "ScaledReLU", "SelfAttention"]


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


def SelfAttention(  # noqa: N802
    width: int,
    heads: int,
    context: int | None,
    *,
    causal: bool = True,
    window: int | None = None,
    mask: Tensor | None = None,
) -> Module:
    """W · ⅓ attention(q, k, v) with q and k normalised per head and turned by position (unless context is None);
    logits are 8 times cosines. Who sees whom: see `Attention`.

    Each of the three slots of attention has typical sensitivity 1, hence the third. (The bound on those of q and k would
    be 8·√heads.) W starts at 0.

    >>> SelfAttention(8, 2, context=5).mass
    4.0
    """
    if width % heads:
        raise ValueError(
            f"SelfAttention: width {width} does not divide into {heads} heads; choose heads that divide it"
        )
    if context is not None and width // heads % 2:
        raise ValueError(
            f"SelfAttention: heads of {width // heads} features cannot be turned in pairs; choose an even width"
        )

    def turned() -> Module:
        turn = {} if context is None else {"turn": Rotary(heads, context)}
        return Sequential(map=Linear(width, width), norm=HeadNorm(heads), **turn)

    mix = Typical(Attention(heads, scale=8 * heads / width, causal=causal, window=window, mask=mask), 1.0)
    qkv = Parallel(q=turned(), k=turned(), v=Linear(width, width))
    return Sequential(qkv=qkv, mix=mix, third=Mul(1 / 3), out=Linear(width, width, zero=True))


def GPT(vocab_size: int, context: int, width: int, heads: int, depth: int) -> Module:  # noqa: N802
    """A causal language model: ids (batch, t ≤ context) ↦ logits (batch, t, vocab_size), without biases and gains.

    Token embedding, 2·depth residual layers (attention with rotary positions, MLP of width 4·width), normalisation, head.
    Outputs of blocks and the head start at 0. Masses: embedding 1, blocks 5, head 1; with the shares 1/(2·depth) of the
    stream the radii are 1/7 for embedding and head, 5/7 for q, k, v and 5/21 for the rest, at any depth. They are typical.
    Source of masses and radii: the GPT of Large et al., arXiv 2405.14813.

    >>> round(GPT(vocab_size=65, context=64, width=32, heads=4, depth=2).mass)
    7
    """
    if depth < 1:
        raise ValueError(f"GPT: depth must be ≥ 1, got {depth}")
    return Sequential(
        embed=Embedding(vocab_size, width),
        blocks=transformer_blocks(width, heads, depth, context),
        norm=LayerNorm(),
        head=Linear(width, vocab_size, zero=True, role="head"),
    )


def transformer_blocks(width: int, heads: int, depth: int, context: int | None, *, causal: bool = True) -> Module:
    """`depth` pairs of attention and MLP on a stream, of mass 5 together."""
    share = 1 / (2 * depth)

    def block() -> Module:
        attention = SelfAttention(width, heads, context, causal=causal)
        mlp = Sequential(up=Linear(width, 4 * width), act=ScaledGELU(), down=Linear(4 * width, width, zero=True))
        return Sequential(
            attention=Stream(attention @ LayerNorm(), share),
            mlp=Stream(mlp @ LayerNorm(), share),
        )

    return Sequential(*(block() for _ in range(depth))).tare(5)
