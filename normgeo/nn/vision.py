"""Compounds for images (batch, channels, h, w)."""

from normgeo.nn.activations import Abs
from normgeo.nn.algebra import Module, Mul, Sequential
from normgeo.nn.atoms import Linear, Positions
from normgeo.nn.bonds import LayerNorm
from normgeo.nn.compounds import transformer_blocks
from normgeo.nn.convolution import Conv2d
from normgeo.nn.images import GlobalAverage, TokenAverage, Tokens
from normgeo.nn.residual import residual

__all__ = ["ResCNN", "ViT"]


def ResCNN(in_channels: int, width: int, out_features: int, depth: int, kernel_size: int = 3) -> Module:  # noqa: N802
    """Images ↦ (batch, out_features): a convolution, `depth` averages (1 - 1/depth)·x + conv(|conv(x)|)/depth, the mean
    pixel, a linear map from 0. Every factor is a bound. Masses 1, 5, 1. Images of any size; odd kernels keep it.

    >>> ResCNN(3, 16, 10, depth=4).mass
    7.0
    """
    if depth < 1 or kernel_size % 2 == 0:
        raise ValueError(f"ResCNN: depth must be ≥ 1 and kernel_size odd, got {depth} and {kernel_size}")

    def conv(channels: int) -> Module:
        return Conv2d(channels, width, kernel_size, padding=kernel_size // 2)

    def block() -> Module:
        return residual(1 / depth, Sequential(first=conv(width), act=Abs(), second=conv(width)))

    return Sequential(
        stem=conv(in_channels),
        blocks=Sequential(*(block() for _ in range(depth))).tare(5),
        pool=GlobalAverage(),
        head=Linear(width, out_features, zero=True, role="head"),
    )


def ViT(  # noqa: N802
    in_channels: int, patch: int, tokens: int, width: int, heads: int, depth: int, out_features: int
) -> Module:
    """Images of at most `tokens` patches ↦ (batch, out_features): patches embedded by a convolution, learned positions,
    `depth` blocks of attention (every patch sees every other) and MLP, normalisation, mean token, head. Masses 1, 5, 4:
    with 1 for the head, as in `GPT`, its few rows kept the logits small, and 200 steps on Fashion-MNIST ended 4 % higher.
    Radii are typical. The vision transformer of arXiv 2010.11929 with a mean in place of the class token.

    >>> import torch
    >>> ViT(3, patch=4, tokens=16, width=16, heads=2, depth=2, out_features=10)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """
    if depth < 1:
        raise ValueError(f"ViT: depth must be ≥ 1, got {depth}")
    return Sequential(
        embed=Sequential(
            patch=Conv2d(in_channels, width, patch, stride=patch),
            tokens=Tokens(),
            positions=Positions(tokens, width),
            share=Mul(1 / 2),
        ).tare(1),
        blocks=transformer_blocks(width, heads, depth, context=None, causal=False),
        norm=LayerNorm(),
        pool=TokenAverage(),
        head=Linear(width, out_features, zero=True, role="head").tare(4),
    )
