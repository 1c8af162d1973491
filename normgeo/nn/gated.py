"""More compounds of vectors: gated and residual MLPs, and normalisations with weights."""

from torch import nn

from normgeo.nn.activations import Abs, MeanSubtract, Product, SiLU
from normgeo.nn.algebra import Module, Mul, Parallel, Sequential
from normgeo.nn.atoms import Bias, Gain, Linear
from normgeo.nn.bonds import LayerNorm, RMSNorm, Typical
from normgeo.nn.compounds import ScaledGELU
from normgeo.nn.residual import residual

__all__ = ["AffineLayerNorm", "GainedRMSNorm", "GatedMLP", "ResMLP", "ScaledSiLU"]


def ScaledSiLU() -> Module:  # noqa: N802
    """5/3·SiLU: keeps the RMS of a Gaussian within 1 %. Sensitivity 1 typically, 1.84 as a bound.

    >>> ScaledSiLU().sensitivity
    1.0
    """
    return Typical(5 / 3 * SiLU(), 1.0)


def GainedRMSNorm(dim: int, eps: float = 1e-5) -> Module:  # noqa: N802
    """γ ⊙ x/√(RMS(x)² + ε), torch's RMSNorm with its weight.

    >>> list(dict(GainedRMSNorm(4).named_parameters()))
    ['gain.weight']
    """
    return Sequential(norm=RMSNorm(eps), gain=Gain(dim))


def AffineLayerNorm(dim: int, eps: float = 1e-5) -> Module:  # noqa: N802
    """γ ⊙ (x - mean)/√(var + ε) + b, torch's LayerNorm with its weight and bias.

    >>> list(dict(AffineLayerNorm(4).named_parameters()))
    ['gain.weight', 'bias.weight']
    """
    return Sequential(norm=LayerNorm(eps), gain=Gain(dim), bias=Bias(dim))


def GatedMLP(width: int, hidden: int, activation: str = "silu") -> Module:  # noqa: N802
    """W · ½ (U x ⊙ act(G x)): SwiGLU (arXiv 2002.05202) for "silu", GEGLU for "gelu"; activations scaled to keep sizes.

    The branches have typical sensitivity 1 each, hence the half. (As a bound a product of `hidden` entries has √hidden.)
    W starts at 0.

    >>> GatedMLP(8, 16).mass
    3.0
    """
    activations = {"silu": ScaledSiLU, "gelu": ScaledGELU}
    if activation not in activations:
        raise ValueError(f"GatedMLP: activation is one of {sorted(activations)}, got {activation!r}")
    gate = Sequential(map=Linear(width, hidden), act=activations[activation]())
    branches = Parallel(up=Linear(width, hidden), gate=gate)
    return Sequential(
        branches=branches, mix=Typical(Product(), 1.0), share=Mul(1 / 2), down=Linear(hidden, width, zero=True)
    )


def ResMLP(in_features: int, width: int, out_features: int, depth: int, block_depth: int = 2) -> Module:  # noqa: N802
    """A linear map, `depth` averages (1 - 1/depth)·x + block(x)/depth, a linear map from 0. A block is `block_depth` linear
    maps with |·| less its mean between them, so every factor is a bound. Masses 1, 5, 1; the residual MLP of Large et
    al., arXiv 2405.14813.

    >>> ResMLP(784, 128, 10, depth=4).mass
    7.0
    """
    if depth < 1 or block_depth < 1:
        raise ValueError(f"ResMLP: depths must be ≥ 1, got depth={depth}, block_depth={block_depth}")

    def block() -> Module:
        layers: list[nn.Module] = [Linear(width, width)]
        for _ in range(block_depth - 1):
            layers += [Abs(), MeanSubtract(), Linear(width, width)]
        return residual(1 / depth, Sequential(*layers))

    return Sequential(
        first=Linear(in_features, width),
        blocks=Sequential(*(block() for _ in range(depth))).tare(5),
        head=Linear(width, out_features, zero=True, role="head"),
    )
