"""Modules that declare their geometry. Real torch modules, composed with @ + * / ** or by name with Sequential."""

from normgeo.nn.algebra import Module, Mul, Parallel, Sequential, Sum
from normgeo.nn.atoms import Bias, Embedding, Gain, Linear
from normgeo.nn.attention import Attention
from normgeo.nn.bonds import GELU, Add, Enumerate, Identity, LayerNorm, ReLU, RMSNorm, Typical
from normgeo.nn.compounds import GPT, MLP, ScaledGELU, ScaledReLU, SelfAttention
from normgeo.nn.heads import HeadNorm, Rotary
from normgeo.nn.residual import Stream, residual

__all__ = [
    "GELU",
    "GPT",
    "MLP",
    "Add",
    "Attention",
    "Bias",
    "Embedding",
    "Enumerate",
    "Gain",
    "HeadNorm",
    "Identity",
    "LayerNorm",
    "Linear",
    "Module",
    "Mul",
    "Parallel",
    "RMSNorm",
    "ReLU",
    "Rotary",
    "ScaledGELU",
    "ScaledReLU",
    "SelfAttention",
    "Sequential",
    "Stream",
    "Sum",
    "Typical",
    "residual",
]
