"""X ← a X + b (XXᵀ)X + c (XXᵀ)²X, from X = G/‖G‖_F: each singular value x moves to a x + b x³ + c x⁵, U and V stay."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from normgeo.linalg.coefficients import Schedule, about_one, evaluate, polar_express
from normgeo.linalg.hardware import multiplies_bfloat16_fast
from normgeo.linalg.polar import Polar
from normgeo.linalg.scale import exponent, host_sees, in_range, l2_in_range, shift
from normgeo.linalg.symmetric import gram, polynomial, residual

__all__ = ["FAST", "SMALLEST_MIXED", "TIGHT", "NewtonSchulz", "PolarExpress", "in_dtype"]

Work = torch.dtype | Literal["mixed"] | None

# The Gram form starts afresh after steps 2, 5, 8, ...: rounding turns eigenvalues 0 of R = XXᵀ negative and every step
# makes them a² times larger. With the first restart alone, ten steps of DEEPSEEK in float32 err by .9.
FIRST_RESTART, BETWEEN_RESTARTS = 2, 3

# Rounding G/‖G‖_F to bfloat16 moves its singular values by 2⁻¹⁰·(m^-½ + n^-½): 2e-4 for sides of 64, 6e-4 for sides of 8.
SMALLEST_MIXED = 64


@dataclass(frozen=True)
class NewtonSchulz(Polar):
    """X ← a X + b (XXᵀ)X + c (XXᵀ)²X with the (a, b, c) of each step from `linalg.coefficients`, or your own; a step may
    also be of degree 9, with five coefficients.

    Short schedules trade accuracy for steps: they do not reach 1 and some overshoot. Of singular values of G/‖G‖_F in
    [1e-3, 1] (docs/polar.md has the whole table, and how much descent the worst gradient gets):

        KELLER, 5 steps      in [.470, 1.203]        CANS, 5 steps       in [.880, 1.121]
        YOU, 5 steps         in [.474, 1.146]        DEEPSEEK, 10 steps  in [.9999, 1.0006]
        15 * CUBIC           in [.416, 1]            10 * QUINTIC        in [.498, 1]

    `dtype` is the work dtype; None keeps the input's, or float32 for inputs of 16 bits; "mixed" is explained at
    `PolarExpress`. Whatever it is, the last step is taken in powers of E = I - XXᵀ, which is small by then, and added up in
    float32: so 16 bits cost .2 % at most in the final singular values. CANS needs 32 bits: in bfloat16 a constant G would
    go to 1e11. Cost: 4 m²n + 2 m³ flops a step for sides m ≤ n, 4 m²n where c = 0, 4 m²n + 4 m³ for degree 9; a tall X is
    multiplied from the right, so nothing is transposed. `gram=True` is explained at `PolarExpress`.

    >>> from normgeo.linalg import coefficients
    >>> NewtonSchulz(coefficients.DEEPSEEK)(torch.tensor([[0.0, 3.0], [-0.2, 0.0]])).round(decimals=2)
    tensor([[ 0.,  1.],
            [-1.,  0.]])
    """

    schedule: Schedule
    dtype: Work = None
    gram: bool = False

    def __post_init__(self) -> None:
        if not self.schedule or any(len(step) not in (3, 5) for step in self.schedule):
            raise ValueError(
                "NewtonSchulz needs one (a, b, c) a step, such as schedule=5 * ((3.4445, -4.775, 2.0315),), or five "
                f"coefficients; got {self.schedule}"
            )
        if any(len(step) == 5 and not step[4] for step in self.schedule):
            raise ValueError(f"NewtonSchulz: the last of five coefficients must not be 0, got {self.schedule}")
        if self.gram and self.dtype == torch.bfloat16:
            raise ValueError("the Gram form diverges in bfloat16; write dtype=torch.float16 or gram=False")
        # Rounding may leave ‖X‖ at 1 + eps/2, and from there a polynomial without margin goes to infinity in a few steps.
        coarsest = torch.bfloat16 if self.dtype == "mixed" else self.dtype or torch.float32
        edge = 1 + torch.finfo(coarsest).eps
        if not abs(evaluate(self.schedule, edge)) <= 2:
            raise ValueError(
                f"this schedule has no margin for the rounding of {self.dtype}: it sends {edge:.8g} to "
                f"{evaluate(self.schedule, edge):.2g}; write dtype=torch.float32, or take polar_express with safety=1.01"
            )
        _ = self._forms  # computed here, where torch.compile does not look

    def __call__(self, g: Tensor) -> Tensor:
        *batch, m, n = g.shape
        x = _unit(g).reshape(-1, m, n)
        work, dtype = self.work(x), x.dtype
        gram = self.gram and 2 * max(m, n) >= 3 * min(m, n) and self._gram_serves(x, work)
        if gram and len(self._forms[-1]) == 3:
            x = _gram_form(x.to(work), self.schedule).to(dtype)
        elif gram:
            x = _plain_form(_gram_form(x.to(work), self.schedule[:-1]), self._forms[-1:], dtype)
        else:
            x = _plain_form(x.to(work), self._forms, dtype)
        return x.reshape(*batch, m, n).to(g.dtype)

    def _gram_serves(self, x: Tensor, work: torch.dtype) -> bool:
        """For "mixed": where products stay in float32, and are not so small that their number counts."""
        return self.dtype != "mixed" or (work == torch.float32 and min(x.shape[-2:]) >= SMALLEST_MIXED)

    @cached_property
    def _forms(self) -> Schedule:
        """The schedule, with the steps of degree 9 and the last one about E = 0, for E = I - XXᵀ: where they are steep, at
        the largest values, rounding is then small."""
        *steps, last = self.schedule
        return (*(step if len(step) == 3 else about_one(step) for step in steps), about_one(last))

    def work(self, x: Tensor) -> torch.dtype:
        """The dtype in which the products of x (in float32 at least) are made."""
        if self.dtype != "mixed":
            return self.dtype or x.dtype
        pays = x.dtype == torch.float32 and min(x.shape[-2:]) >= SMALLEST_MIXED and multiplies_bfloat16_fast(x.device)
        return torch.bfloat16 if pays else x.dtype


@dataclass(frozen=True)
class PolarExpress(Polar):
    """X ← a X + b (XXᵀ)X + c (XXᵀ)²X from X = G/‖G‖_F, with the optimal (a, b, c) of each step.

    Singular values of G/‖G‖_F in [lower, 1] land close to 1, smaller ones fall short of it and none overshoots `ceiling`:
    in [.994, 1] after 6 steps with lower=1e-3, in [.75, 1] after 5. `steps` is their number, or the degree of each: a step
    of degree 9 takes four products where degree 5 takes three. Source: arXiv 2505.16932, safety as printed there.

    `dtype` is the work dtype; None keeps the input's, or float32 for inputs of 16 bits. "mixed" multiplies in bfloat16
    where the device does that faster, if no side is below 64, and adds up the last step in float32: rounding is then a
    perturbation of G, by about ‖G‖_F·(m^-½ + n^-½)/1000 in the spectral norm, and leaves .2 % in the singular values of
    the result. Elsewhere, and for float64, it is None. Cost: 4 m²n + 2 m³ flops a step for m ≤ n.

    `gram=True`, wherever n ≥ 1.5 m, runs the iteration on R = XXᵀ and collects Q, the product of its polynomials; X ← Q X
    after steps 2, 5, 8, ... and at the end. That is .72 of the flops at n = 4 m and 6 steps. Meant for float32 and float16
    on CUDA. Largest error against the SVD's U p(Σ) Vᵀ on CPU, 6 steps, from Gaussian spectra to logarithmic ones down to
    1e-10: 1e-4 in float32, .25 in float16, both as without it; overshoot 1e-6 and 3e-3. bfloat16 is refused. A last step of
    degree 9 is taken on X itself. With "mixed": only where products stay in float32, for sides of 64 at least.

    >>> x = PolarExpress()(torch.diag(torch.tensor([1.0, 0.1, 0.01])))
    >>> bool(((x.diagonal() > 0.99) & (x.diagonal() <= 1)).all())
    True
    """

    steps: int | tuple[int, ...] = 6
    safety: float = 1.01
    dtype: Work = None
    gram: bool = False
    lower: float = 1e-3
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        degrees = self.steps if isinstance(self.steps, tuple) else (5,) * self.steps
        if not degrees or set(degrees) - {5, 9} or not self.safety >= 1:
            raise ValueError(
                "PolarExpress needs steps ≥ 1 (or degrees 5 and 9, one a step) and safety ≥ 1, "
                f"got steps={self.steps}, safety={self.safety}"
            )
        _ = self._iteration  # computed here, where torch.compile does not look

    def __call__(self, g: Tensor) -> Tensor:
        return self._iteration(g)

    @property
    def schedule(self) -> Schedule:
        """The coefficients of each step."""
        return self._iteration.schedule

    @cached_property
    def _iteration(self) -> NewtonSchulz:
        schedule = polar_express(self.steps, self.safety, self.lower, self.ceiling)
        return NewtonSchulz(schedule, self.dtype, self.gram)

    def work(self, x: Tensor) -> torch.dtype:
        """The dtype in which the products of x (in float32 at least) are made."""
        return self._iteration.work(x)


# Of the sequences of 19 products that reach 1, the one with the fewest of m × n. `lower` is below the promised 1e-3,
# `safety` above what was published and `ceiling` below 1, because of what rounding to bfloat16 does: there 1800 gradients,
# from Gaussian to sparse and of low rank, land in [.9924, 1.0003]. Where all entries are equal, so are their errors, and
# add up: [.985, 1.009]; with safety=1.02 some of these diverge.
TIGHT = PolarExpress((5, 9, 9, 9, 9), safety=1.04, dtype="mixed", gram=True, lower=6e-4, ceiling=0.996)
FAST = PolarExpress((5, 5, 5, 9), dtype="mixed", gram=True, lower=4e-3)


def in_dtype(dtype: torch.dtype, params: Iterable[Tensor] = ()) -> PolarExpress:
    """`TIGHT` with all products in `dtype`, in the Gram form but for bfloat16. On CPU float16, which is emulated there,
    becomes float32, and a line says so.

    >>> in_dtype(torch.float32).dtype
    torch.float32
    """
    if not dtype.is_floating_point:
        raise ValueError(f"products of polar factors are made in a floating dtype such as torch.float32, got {dtype}")
    if dtype == torch.float16 and any(p.device.type == "cpu" for p in params):
        warnings.warn("CPUs emulate float16: polar factors are computed in float32", RuntimeWarning, stacklevel=3)
        dtype = torch.float32
    return replace(TIGHT, dtype=dtype, gram=dtype != torch.bfloat16)  # in which it would diverge


def _unit(g: Tensor) -> Tensor:
    """G/‖G‖_F, 0 for 0, in float32 at least."""
    x = g.float() if g.dtype in (torch.bfloat16, torch.float16) else g
    if host_sees(x):
        size = l2_in_range(x, 2)
        if not in_range(size):
            x = shift(x, -exponent(x, 2))
            size = l2_in_range(x, 2).clamp_min(torch.finfo(x.dtype).tiny)
        return x / size
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # squares in float64 neither under- nor overflow
    size = torch.linalg.vector_norm(x.flatten(-2), dim=-1, dtype=wide)[..., None, None]  # along one axis it is faster
    return x * size.reciprocal().clamp_max(torch.finfo(x.dtype).max).to(x.dtype)


def _plain_form(x: Tensor, forms: Schedule, dtype: torch.dtype) -> Tensor:  # (b, m, n) -> (b, m, n)
    eye = torch.eye(min(x.shape[-2:]), dtype=x.dtype, device=x.device)
    *steps, (a, *q) = forms
    for each, *p in steps:
        r = gram(x) if len(p) == 2 else residual(x, eye)
        x = _apply(x, polynomial(r, p), each) if any(p[1:]) else _apply(x, r, each, p[0])
    z = polynomial(residual(x, eye), q)
    product = torch.bmm(z, x) if x.shape[-2] <= x.shape[-1] else torch.bmm(x, z)
    return product.to(dtype).add_(x, alpha=a)


def _gram_form(x: Tensor, schedule: Schedule) -> Tensor:  # (b, m, n) -> (b, m, n)
    """With P = aI + Z, Z = bR + cR² + ...: Q ← P Q and R ← P R P, then X ← Q X; all factors commute."""
    wide = x.shape[-2] <= x.shape[-1]
    eye = torch.eye(min(x.shape[-2:]), dtype=x.dtype, device=x.device)
    for start, stop in pairwise(sorted({0, *range(FIRST_RESTART, len(schedule), BETWEEN_RESTARTS), len(schedule)})):
        q = r = gram(x)
        for k in range(start, stop):
            a, *coefficients = schedule[k]
            z = polynomial(r, coefficients)
            if k + 1 < stop:
                pr = torch.baddbmm(r, z, r, beta=a)
                r = torch.baddbmm(pr, pr, z, beta=a)
            q = z + a * eye if k == start else torch.baddbmm(q, z, q, beta=a)
        x = torch.bmm(q, x) if wide else torch.bmm(x, q)
    return x


def _apply(x: Tensor, p: Tensor, a: float, b: float = 1) -> Tensor:
    """a X + b P X, or a X + b X P where X is tall."""
    if x.shape[-2] <= x.shape[-1]:
        return torch.baddbmm(x, p, x, beta=a, alpha=b)
    return torch.baddbmm(x, x, p, beta=a, alpha=b)
