"""Singular values bent below ρ by an odd polynomial, just enough to undo the largest step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.constraints.base import Rate
from normgeo.constraints.measured import Measured, along_leaves, check_radius, largest

__all__ = ["SoftCap"]


@dataclass(frozen=True)
class SoftCap(Measured):
    """X ← X - α·X XᵀX, then X ← X + α·X XᵀX: every singular value goes from x to p(x) = y + αy³, y = x - αx³.

    The coupling. Let the weights be within b before the step; then after it within k = b + η·r·overshoot. With t = αk²,

        p(k)/k = (1 - t)(1 + t(1 - t)²) = 1 - f(t),   f(t) = t·(1 - (1 - t)³),   p'(x) = (1 + 3αy²)(1 - 3αx²),

    so for t ≤ 1/3 p rises on [0, k] and no value passes p(k): t is the root of f(t) = 1 - ρ/k, or 1/3 if that is larger,
    when p(k) = .765·k. b starts as the norm of the weight and becomes max(ρ, p(k)).

    Invariant: ‖W‖ ≤ b up to rounding (1e-6·b in float32; up to .02·b was seen in bfloat16, where errors add up), and b = ρ
    from the start for weights that start inside and steps of η·r ≤ .307·ρ; else b comes back to ρ by .765 a step. For
    iterates that write W - η·r·D with ‖D‖ ≤ `overshoot`: 1 for "tight" and "exact" precision, 1.03 for "fast"; a `norm` of
    your own must be one in which that holds. Values x below ρ shrink too, by about 3α²x⁵.

    Source: Newhouse et al., arXiv 2507.13338. A published implementation takes the smallest root without asking whether p
    rises, and divides the step by √(out/in) where the weight is divided already, so tall layers outgrow their cap.

    >>> import torch
    >>> from normgeo.norms import Spectral
    >>> cap, W = SoftCap(1.0).bind(Spectral()), torch.eye(2)[None]
    >>> cap.retract(1.1 * W, W, Rate(torch.tensor(0.1), torch.tensor(1.0)), cap.init(W)).round(decimals=4)
    tensor([[[1., 0.],
             [0., 1.]]])
    """

    radius: float
    overshoot: float = 1.0

    def __post_init__(self) -> None:
        check_radius(type(self).__name__, self.radius)
        if not self.overshoot >= 1:
            raise ValueError(f"SoftCap: overshoot must be ≥ 1, got {self.overshoot}")

    def init(self, W: Tensor) -> dict[str, Tensor]:
        return {"bound": self.measure().norm(W).clamp_min(self.radius)}

    def retract(self, W: Tensor, old: Tensor, rate: Rate, state: dict[str, Tensor]) -> Tensor:
        k = along_leaves(state["bound"], W) + largest(rate.eta, W) * rate.radius * self.overshoot
        t = _root(1 - self.radius / k)
        state["bound"] = (k * (1 - t) * (1 + t * (1 - t) ** 2)).clamp_min(self.radius).reshape(-1)
        alpha = t / k**2

        def bend(x: Tensor) -> Tensor:
            a = alpha.reshape(-1, *(1,) * (x.ndim - 1))
            y = x - a * _cube(x)
            return y + a * _cube(y)

        return self.measure().on_matrices(bend, W)


def _root(f: Tensor) -> Tensor:
    """The t in [0, 1/3] with t(1 - (1 - t)³) = f, from above; 1/3 if there is none.

    f is convex on [0, 1/2], so Newton's method from a point below the root, √(f/3), lands above it and then falls to it.
    """
    f = f.clamp_min(0)
    t = (f / 3).sqrt()
    for _ in range(4):
        rest = 1 - t
        slope = 1 - rest**3 + 3 * t * rest**2
        t = (t - (t * (1 - rest**3) - f) / torch.where(slope > 0, slope, 1)).clamp(0, 1 / 3)
    return t


def _cube(x: Tensor) -> Tensor:  # X XᵀX
    return x @ (x.mT @ x) if x.shape[-2] >= x.shape[-1] else (x @ x.mT) @ x
