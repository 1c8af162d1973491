"""Weight decay, a pull towards 0 that turns the radius of the update into a ball for the weights: in all its couplings.

    W ← W - η·r·D - d·W,    d =     η·λ    Decay             s·λ    DecoupledDecay
                                  s·η·λ    CorrectedDecay    η·λ/√v  ScheduledDecay

with s = η/lr₀ the schedule; `L2Penalty` adds λ·W to the gradient instead. As ‖W‖ ≤ (1 - d)‖W‖ + η·r, weights that start in
the ball ‖W‖ ≤ η·r/d stay in it while d ≤ 1, and those outside approach it by the factor 1 - d a step.

In bfloat16, a decay d below 2⁻⁹ rounds away entry by entry; `Ball` does not depend on such small moves.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.constraints.base import Constraint, Pull, Rate
from normgeo.constraints.measured import along_leaves

__all__ = ["CorrectedDecay", "Decay", "DecoupledDecay", "L2Penalty", "ScheduledDecay"]


@dataclass(frozen=True)
class Decay(Pull):
    """W ← (1 - η·λ)·W - η·r·D, λ the strength, as in AdamW.

    Invariant: while η·λ ≤ 1, weights that start inside the ball ‖W‖ ≤ r/λ stay there, r being the radius of the leaf.
    Directions that are independent in time leave entries of RMS √(η/(λ(2 - η·λ))) times that of r·D, so that the size of
    the weights stays the same if η → c·η goes with λ → c·λ. The default strength is the measured best, at lr 0.2, over
    ten epochs of one training set (docs/results.md); text that is read once wants none.

    >>> import torch
    >>> old, rate = torch.ones(1), Rate(torch.tensor(0.5), torch.tensor(1.0))
    >>> Decay(0.1).retract(old - 0.2, old, rate, {})
    tensor([0.7500])
    """

    strength: float = 0.045

    def __post_init__(self) -> None:
        check_strength(type(self).__name__, self.strength)

    def pull(self, rate: Rate) -> Tensor:
        return self.strength * rate.eta


@dataclass(frozen=True)
class DecoupledDecay(Pull):
    """W ← (1 - s·λ)·W - η·r·D with the schedule s = η/lr₀, so the decay does not change with the lr.

    lr₀ is the lr that the group was made with. Invariant: while s·λ ≤ 1, the ball ‖W‖ ≤ lr₀·r/λ. Independent directions
    leave η/√(sλ(2 - sλ)) times the RMS of r·D, so the same size at c·η needs c²·λ.
    Source: Wortsman et al., arXiv 2309.14322; sign as in erratum X1-3.

    >>> import torch
    >>> old, rate = torch.ones(1), Rate(torch.tensor(0.01), torch.tensor(1.0))
    >>> DecoupledDecay(0.1).retract(old, old, rate, {})
    tensor([0.9000])
    """

    strength: float

    def __post_init__(self) -> None:
        check_strength(type(self).__name__, self.strength)

    def pull(self, rate: Rate) -> Tensor:
        return self.strength * rate.relative


@dataclass(frozen=True)
class CorrectedDecay(Pull):
    """W ← (1 - s·η·λ)·W - η·r·D: the strength follows the schedule s = η/lr₀, so that λ_t/η_t, and with it the balance of
    gradient and weight in normalised layers, stays constant while η falls.

    For all linear layers but the output; plain `Decay` for the rest. lr₀, the lr that the group was made with, should be
    the largest: with the initial one of a warm-up, 0, the strength would be infinite (erratum X2-13). Invariant: while
    s ≥ s_min and s·η·λ ≤ 1, the ball ‖W‖ ≤ r/(s_min·λ). Source: AdamC, Defazio, arXiv 2506.02285.

    >>> import torch
    >>> old, rate = torch.ones(1), Rate(torch.tensor(0.5), torch.tensor(0.2))
    >>> CorrectedDecay(0.1).retract(old, old, rate, {})
    tensor([0.9900])
    """

    strength: float

    def __post_init__(self) -> None:
        check_strength(type(self).__name__, self.strength)

    def pull(self, rate: Rate) -> Tensor:
        return self.strength * rate.relative * rate.eta


@dataclass(frozen=True)
class ScheduledDecay(Constraint):
    """W ← (1 - d)·W - η·r·D, d = min(1, η·λ/√v), v the bias-corrected average over time (β) of the mean square of the
    leaf's gradient: where gradients are large the decay is small, so it does not drive them up late in training.

    Invariant: while √v ≤ g and η·λ ≤ g, the ball ‖W‖ ≤ r·g/λ. d changes with the scale of the loss, unlike D.
    Source: stable or scheduled weight decay (AdamS), Xie et al., arXiv 2011.11152; there the mean is over the network.

    >>> import torch
    >>> decay, old = ScheduledDecay(0.1), torch.ones(1, 2)
    >>> state = decay.init(old)
    >>> _ = decay.tangent(old, torch.full((1, 2), 2.0), state)
    >>> decay.retract(old, old, Rate(torch.tensor(1.0), torch.tensor(1.0)), state)
    tensor([[0.9500, 0.9500]])
    """

    strength: float
    beta: float = 0.999

    def __post_init__(self) -> None:
        check_strength(type(self).__name__, self.strength)
        if not 0 <= self.beta < 1:
            raise ValueError(f"ScheduledDecay: beta must be in [0, 1), got {self.beta}")

    def init(self, W: Tensor) -> dict[str, Tensor]:
        return {"square": W.new_zeros(len(W)), "weight": W.new_zeros(len(W))}

    def tangent(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> Tensor:
        square = G.reshape(len(G), -1).square().mean(1)
        state["square"] = torch.lerp(square, state["square"], self.beta)
        state["weight"] = torch.lerp(torch.ones_like(square), state["weight"], self.beta)
        return G

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        v = along_leaves(state["square"] / state["weight"], W)
        return W - torch.where(v > 0, rate.eta * self.strength * v.rsqrt(), 0).clamp_max(1) * old


@dataclass(frozen=True)
class L2Penalty(Pull):
    """G ← G + λ·W, the gradient of λ/2·‖W‖₂² added to the loss, before momentum. For directions of unit size this is no
    decay: it turns D, and acts only where λ·W is not small beside G.

    Invariant: with a norm that is a multiple of ‖·‖₂ (`RMS`, `L2`, `Frobenius`), no momentum and ‖G‖₂ ≤ g, the ball
    ‖W‖₂ ≤ g/λ + max η·r‖D‖₂. Other norms and momentum have none.

    >>> import torch
    >>> L2Penalty(0.1).tangent(torch.ones(1), torch.zeros(1), {})
    tensor([0.1000])
    """

    strength: float

    def __post_init__(self) -> None:
        check_strength(type(self).__name__, self.strength)

    def tangent(self, W: Tensor, G: Tensor, state: dict[str, Tensor]) -> Tensor:
        return G + self.strength * W

    def pull(self, rate: Rate) -> None:
        return None


def check_strength(name: str, strength: float) -> None:
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"{name}: strength must be a finite number ≥ 0, got {strength}")
