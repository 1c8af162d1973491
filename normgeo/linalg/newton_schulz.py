"""X ← a X + b (XXᵀ)X + c (XXᵀ)²X, from X = G/‖G‖_F: each singular value x moves to a x + b x³ + c x⁵, U and V stay."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from normgeo.linalg.coefficients import Schedule, evaluate, polar_express
from normgeo.linalg.polar import Polar
from normgeo.linalg.scale import exponent, shift

__all__ = ["NewtonSchulz", "PolarExpress"]

# The Gram form starts afresh after steps 2, 5, 8, ...: rounding turns eigenvalues 0 of R = XXᵀ negative and every step
# makes them a² times larger. With the first restart alone, ten steps of DEEPSEEK in float32 err by .9.
FIRST_RESTART, BETWEEN_RESTARTS = 2, 3


@dataclass(frozen=True)
class NewtonSchulz(Polar):
    """X ← a X + b (XXᵀ)X + c (XXᵀ)²X with the (a, b, c) of each step from `linalg.coefficients`, or your own.

    Short schedules trade accuracy for steps: they do not reach 1 and some overshoot. Of singular values of G/‖G‖_F in
    [1e-3, 1] (docs/polar.md has the whole table, and how much descent the worst gradient gets):

        KELLER, 5 steps      in [.470, 1.203]        CANS, 5 steps       in [.880, 1.121]
        YOU, 5 steps         in [.474, 1.146]        DEEPSEEK, 10 steps  in [.9999, 1.0006]
        15 * CUBIC           in [.416, 1]            10 * QUINTIC        in [.498, 1]

    `dtype` is the work dtype; None keeps the input's, or float32 for inputs of 16 bits. CANS needs 32 bits: in bfloat16 a
    constant G would go to 1e11. Cost: 4 m²n + 2 m³ flops a step for sides m ≤ n, 4 m²n where c = 0; a tall X is
    multiplied from the right, so nothing is transposed. `gram=True` is explained at `PolarExpress`.

    >>> from normgeo.linalg import coefficients
    >>> NewtonSchulz(coefficients.DEEPSEEK)(torch.tensor([[0.0, 3.0], [-0.2, 0.0]])).round(decimals=2)
    tensor([[ 0.,  1.],
            [-1.,  0.]])
    """

    schedule: Schedule
    dtype: torch.dtype | None = None
    gram: bool = False

    def __post_init__(self) -> None:
        if not self.schedule or any(len(step) != 3 for step in self.schedule):
            raise ValueError(
                "NewtonSchulz needs one (a, b, c) a step, such as schedule=5 * ((3.4445, -4.775, 2.0315),); "
                f"got {self.schedule}"
            )
        if self.gram and self.dtype == torch.bfloat16:
            raise ValueError("the Gram form diverges in bfloat16; write dtype=torch.float16 or gram=False")
        # Rounding may leave ‖X‖ at 1 + eps/2, and from there a polynomial without margin goes to infinity in a few steps.
        edge = 1 + torch.finfo(self.dtype or torch.float32).eps
        if not abs(evaluate(self.schedule, edge)) <= 2:
            raise ValueError(
                f"this schedule has no margin for the rounding of {self.dtype}: it sends {edge:.8g} to "
                f"{evaluate(self.schedule, edge):.2g}; write dtype=torch.float32, or take polar_express with safety=1.01"
            )

    def __call__(self, g: Tensor) -> Tensor:
        *batch, m, n = g.shape
        x = _unit(g).reshape(-1, m, n)
        if self.dtype is not None:
            x = x.to(self.dtype)
        form = _gram_form if self.gram and 2 * max(m, n) >= 3 * min(m, n) else _plain_form
        return form(x, self.schedule).reshape(*batch, m, n).to(g.dtype)


@dataclass(frozen=True)
class PolarExpress(Polar):
    """X ← a X + b (XXᵀ)X + c (XXᵀ)²X from X = G/‖G‖_F, with the optimal (a, b, c) of each step.

    Singular values of G/‖G‖_F in [1e-3, 1] land in [.994, 1] after 6 steps (the default) and in [.75, 1] after 5;
    smaller ones fall short of 1 and are never overshot. `dtype` is the work dtype; None keeps the input's, or float32
    for inputs of 16 bits. Cost: 4 m²n + 2 m³ flops a step for m ≤ n. Source: arXiv 2505.16932, safety as printed there.

    `gram=True`, wherever n ≥ 1.5 m, runs the iteration on R = XXᵀ and collects Q, the product of its polynomials; X ← Q X
    after steps 2, 5, 8, ... and at the end. That is .72 of the flops at n = 4 m and 6 steps. Meant for float32 and float16
    on CUDA. Largest error against the SVD's U p(Σ) Vᵀ on CPU, 6 steps, from Gaussian spectra to logarithmic ones down to
    1e-10: 1e-4 in float32, .25 in float16, both as without it; overshoot 1e-6 and 3e-3. bfloat16 is refused.

    >>> x = PolarExpress()(torch.diag(torch.tensor([1.0, 0.1, 0.01])))
    >>> bool(((x.diagonal() > 0.99) & (x.diagonal() <= 1)).all())
    True
    """

    steps: int = 6
    safety: float = 1.01
    dtype: torch.dtype | None = None
    gram: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.safety >= 1:
            raise ValueError(
                f"PolarExpress needs steps ≥ 1 and safety ≥ 1, got steps={self.steps}, safety={self.safety}"
            )
        _ = self._iteration  # computed here, where torch.compile does not look

    def __call__(self, g: Tensor) -> Tensor:
        return self._iteration(g)

    @cached_property
    def _iteration(self) -> NewtonSchulz:
        return NewtonSchulz(polar_express(self.steps, self.safety), self.dtype, self.gram)


def _unit(g: Tensor) -> Tensor:
    """G/‖G‖_F, 0 for 0, in float32 at least."""
    x = shift(g, -exponent(g, 2))
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    # A nonzero x now has an entry of size at least 1/2, so the clamp only meets x = 0.
    return x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(0.25)


def _plain_form(x: Tensor, schedule: Schedule) -> Tensor:  # (b, m, n) -> (b, m, n)
    for a, b, c in schedule:
        r = _gram(x)
        x = _apply(x, torch.baddbmm(r, r, r, beta=b, alpha=c), a) if c else _apply(x, r, a, b)
    return x


def _gram_form(x: Tensor, schedule: Schedule) -> Tensor:  # (b, m, n) -> (b, m, n)
    """With P = aI + Z, Z = bR + cR²: Q ← P Q and R ← P R P, then X ← Q X; all factors commute."""
    wide = x.shape[-2] <= x.shape[-1]
    eye = torch.eye(min(x.shape[-2:]), dtype=x.dtype, device=x.device)
    for start, stop in pairwise([0, *range(FIRST_RESTART, len(schedule), BETWEEN_RESTARTS), len(schedule)]):
        q = r = _gram(x)
        for k in range(start, stop):
            a, b, c = schedule[k]
            z = torch.baddbmm(r, r, r, beta=b, alpha=c) if c else b * r
            if k + 1 < stop:
                pr = torch.baddbmm(r, z, r, beta=a)
                r = torch.baddbmm(pr, pr, z, beta=a)
            q = z + a * eye if k == start else torch.baddbmm(q, z, q, beta=a)
        x = torch.bmm(q, x) if wide else torch.bmm(x, q)
    return x


def _gram(x: Tensor) -> Tensor:
    """XXᵀ or XᵀX, whichever is smaller."""
    return torch.bmm(x, x.mT) if x.shape[-2] <= x.shape[-1] else torch.bmm(x.mT, x)


def _apply(x: Tensor, p: Tensor, a: float, b: float = 1) -> Tensor:
    """a X + b P X, or a X + b X P where X is tall."""
    if x.shape[-2] <= x.shape[-1]:
        return torch.baddbmm(x, p, x, beta=a, alpha=b)
    return torch.baddbmm(x, x, p, beta=a, alpha=b)
