"""Modules that declare their geometry. Real torch modules, composed with @ + * / ** or by name with Sequential."""

from normgeo.nn.activations import Abs, Mask, MeanSubtract, Product, Sigmoid, SiLU, Softmax, Tanh
from normgeo.nn.algebra import Module, Mul, Parallel, Sequential, Sum
from normgeo.nn.atoms import Bias, Embedding, Gain, Linear, Positions
from normgeo.nn.attention import Attention
from normgeo.nn.bonds import GELU, Add, Enumerate, Identity, LayerNorm, ReLU, RMSDivide, RMSNorm, Typical
from normgeo.nn.compounds import GPT, MLP, ScaledGELU, ScaledReLU, SelfAttention
from normgeo.nn.convolution import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from normgeo.nn.gated import AffineLayerNorm, GainedRMSNorm, GatedMLP, ResMLP, ScaledSiLU
from normgeo.nn.heads import HeadNorm, MergeHeads, Rotary, SplitHeads
from normgeo.nn.images import (
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    Flatten,
    GlobalAverage,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    TokenAverage,
    Tokens,
)
from normgeo.nn.residual import Stream, residual
from normgeo.nn.vision import ResCNN, ViT

__all__ = [
    "GELU",
    "GPT",
    "MLP",
    "Abs",
    "Add",
    "AffineLayerNorm",
    "Attention",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "Bias",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "Enumerate",
    "Flatten",
    "Gain",
    "GainedRMSNorm",
    "GatedMLP",
    "GlobalAverage",
    "HeadNorm",
    "Identity",
    "LayerNorm",
    "Linear",
    "Mask",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MeanSubtract",
    "MergeHeads",
    "Module",
    "Mul",
    "Parallel",
    "Positions",
    "Product",
    "RMSDivide",
    "RMSNorm",
    "ReLU",
    "ResCNN",
    "ResMLP",
    "Rotary",
    "ScaledGELU",
    "ScaledReLU",
    "ScaledSiLU",
    "SelfAttention",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SplitHeads",
    "Stream",
    "Sum",
    "Tanh",
    "TokenAverage",
    "Tokens",
    "Typical",
    "ViT",
    "residual",
]
