"""Known optimizers as budgets: each is the best point of a budget within a family (a ray of operators, or a step)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from normgeo.linalg import eigh

__all__ = ["Recipe", "Setting", "registry"]


@dataclass(frozen=True)
class Setting:
    """What the optimizers of the registry look at: the gradients so far (T, d), the newest last, and what else they use.

    >>> setting = Setting.example(seed=1)
    >>> setting.gradients.shape, sum(setting.layers)
    (torch.Size([400, 12]), 12)
    """

    gradients: Tensor
    weights: Tensor
    curvature: Tensor
    """H ≻ 0, or a Fisher or Gauss-Newton matrix"""
    shape: tuple[int, int]
    """the weights as a matrix"""
    layers: tuple[int, ...]
    """the weights as layers, by their numbers of entries"""
    excess: float = 1.0
    """L - L*, the loss above its least value"""
    B: float = 2.3
    radius: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    damping: float = 0.01

    @staticmethod
    def example(seed: int = 0) -> Setting:
        """400 correlated gradients of 12 weights, 3 × 4, in two layers."""
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(401, 12, generator=draw, dtype=torch.float64)
        x = torch.randn(2, 12, 12, generator=draw, dtype=torch.float64)
        return Setting(
            gradients=(noise[1:] + 0.7 * noise[:-1]) * torch.logspace(0, -1, 12, dtype=torch.float64) + 0.05,
            weights=x[0, 0],
            curvature=x[1] @ x[1].mT / 12 + 0.1 * torch.eye(12, dtype=torch.float64),
            shape=(3, 4),
            layers=(5, 7),
        )

    @property
    def g(self) -> Tensor:  # (d,)
        """The newest gradient."""
        return self.gradients[-1]

    def one_pole(self, beta: float) -> Tensor:  # (T,)
        """(1-β)·βᵏ for the lags k = 0, 1, ..."""
        return (1 - beta) * beta ** torch.arange(len(self.gradients), dtype=self.g.dtype)

    def average(self, beta: float, power: int = 1) -> Tensor:  # (d,)
        """The exponential average of the gradients, or of their squares, from 0."""
        return self.one_pole(beta) @ self.gradients.flip(0) ** power

    def sides(self) -> tuple[Tensor, Tensor]:
        """Σ G Gᵀ and Σ Gᵀ G over the gradients as matrices, damped."""
        G = self.gradients.reshape(-1, *self.shape)
        left, right = torch.einsum("tij,tkj->ik", G, G), torch.einsum("tij,tik->jk", G, G)
        return tuple(x + self.damping * torch.eye(len(x)).to(x) for x in (left, right))  # type: ignore[return-value]

    def each_layer(self, x: Tensor) -> Tensor:  # (layers,) -> (d,)
        """One number per layer, for each of its entries."""
        return x.repeat_interleave(torch.tensor(self.layers))

    def sizes(self, x: Tensor) -> Tensor:  # (d,) -> (layers,)
        """‖x_ℓ‖ of each layer."""
        return torch.stack([part.norm() for part in x.split(self.layers)])


@dataclass(frozen=True)
class Recipe:
    """An optimizer θ̇ = η·ray as the saturated point of a budget. `ray` is an impulse response Q[k] for η = 1, (K, d) for
    diagonal operators and (K, d, d) for others, or with `on_steps` the step θ̇ (d,) itself; `cost` is what the budget
    measures, at most `limit`; `eta` the closed form of the η that reaches it.

    >>> gd = registry()[0]
    >>> gd.name, round(float(gd.use(Setting.example())), 6)
    ('GD', 1.0)
    """

    name: str
    moment: str
    budget: str
    restriction: str
    closed_form: str
    hyperparameters: str
    meaning: str
    ray: Callable[[Setting], Tensor]
    cost: Callable[[Setting, Tensor], Tensor]
    eta: Callable[[Setting], Tensor | float]
    on_steps: bool = False
    errata: tuple[str, ...] = ()
    """the printed mistakes that this row corrects, as in docs/errata.md"""

    def operator(self, at: Setting) -> Tensor:
        """η·ray: the impulse response (or the step) that saturates the budget."""
        return self.eta(at) * self.ray(at)

    def use(self, at: Setting) -> Tensor:  # ()
        """The share of the budget that it uses: 1."""
        return self.cost(at, self.operator(at)) / (1 if self.on_steps else at.B)

    def step(self, at: Setting, eta: float | None = None) -> Tensor:  # (d,)
        """θ̇ = Σ Q[k] g[n-k], for the η of the closed form or one's own; the weights move by -θ̇."""
        q = self.operator(at) if eta is None else eta * self.ray(at)
        if self.on_steps:
            return q
        past = at.gradients.flip(0)[: len(q)]
        return (q * past).sum(0) if q.ndim == 2 else torch.einsum("kij,kj->i", q, past)


# ---- rays


def _identity(at: Setting) -> Tensor:
    return torch.ones_like(at.g).unsqueeze(0)


def _momentum(at: Setting) -> Tensor:
    return at.one_pole(at.beta1).unsqueeze(1) * _identity(at)


def _nesterov(at: Setting) -> Tensor:
    taps = at.beta1 ** torch.arange(1, len(at.gradients) + 1, dtype=at.g.dtype)
    taps[0] = 1 + at.beta1
    return taps.unsqueeze(1) * _identity(at)


def _inverse(matrix: Callable[[Setting], Tensor]) -> Callable[[Setting], Tensor]:
    return lambda at: torch.linalg.inv(matrix(at)).unsqueeze(0)


def _adagrad_costs(at: Setting) -> Tensor:
    return at.gradients.square().sum(0).sqrt() + at.eps


def _rmsprop_costs(at: Setting) -> Tensor:
    return at.average(at.beta2, power=2).sqrt() + at.eps


def _adam_costs(at: Setting) -> Tensor:
    return (at.average(at.beta2, power=2) / (1 - at.beta2 ** len(at.gradients))).sqrt() + at.eps


def _over(costs: Callable[[Setting], Tensor]) -> Callable[[Setting], Tensor]:
    return lambda at: 1 / costs(at).unsqueeze(0)


def _adam(at: Setting) -> Tensor:
    return at.one_pole(at.beta1).unsqueeze(1) / (1 - at.beta1 ** len(at.gradients)) / _adam_costs(at)


def _adafactor_moments(at: Setting) -> Tensor:
    squares = at.average(at.beta2, power=2).reshape(at.shape)
    rows, columns = squares.sum(1), squares.sum(0)
    return (rows.unsqueeze(1) * columns / rows.sum()).flatten()


def _kfac(at: Setting) -> Tensor:
    """One layer: the Fisher matrix A ⊗ S of its factors, here the two sides of the gradients."""
    return torch.kron(*at.sides())


def _kron_power(at: Setting, p: float) -> Tensor:
    return torch.kron(*(_power(side, p) for side in at.sides()))


def _power(a: Tensor, p: float) -> Tensor:
    s, u = eigh(a)
    return (u * s**p) @ u.mT


def _damped(at: Setting) -> Tensor:
    return at.curvature + at.damping * torch.eye(len(at.g)).to(at.g)


def _fisher(at: Setting) -> Tensor:
    return at.gradients.mT @ at.gradients / len(at.gradients) + at.damping * torch.eye(len(at.g)).to(at.g)


def _layer_momentum(at: Setting) -> Tensor:
    return at.one_pole(at.beta1).unsqueeze(1) / at.each_layer(at.sizes(at.weights))


def _trust_ratio(at: Setting) -> Tensor:
    u = at.average(at.beta1)
    return u * at.each_layer(at.sizes(at.weights) / at.sizes(u))


def _lion(at: Setting) -> Tensor:
    """sign(β₁·m + (1-β₁)·g), m the average up to the gradient before."""
    before = at.one_pole(at.beta2)[:-1] @ at.gradients[:-1].flip(0)
    return (at.beta1 * before + (1 - at.beta1) * at.g).sign()


# ---- costs


def _squares(at: Setting, q: Tensor) -> Tensor:
    """Σ_k ‖Q[k]‖²_F."""
    return q.square().sum()


def _priced(costs: Callable[[Setting], Tensor]) -> Callable[[Setting, Tensor], Tensor]:
    """Σ_j c_j Σ_k q_j[k]²."""
    return lambda at, q: (costs(at) * q.square()).sum()


def _metric(w: Callable[[Setting], Tensor]) -> Callable[[Setting, Tensor], Tensor]:
    """Σ_k tr(Q[k] W Q[k])."""
    return lambda at, q: torch.einsum("kij,jl,kli->", q, w(at), q)


def _by_layers(at: Setting, q: Tensor) -> Tensor:
    """Σ_ℓ ‖θ_ℓ‖² Σ_k ‖Q_ℓ[k]‖²_F."""
    return (at.each_layer(at.sizes(at.weights)) * q).square().sum()


# ---- closed forms of η


def _gain(beta: float, steps: int) -> float:
    """√(Σ_k ((1-β)βᵏ)²) over so many lags; (1-β)/√(1-β²) for all."""
    return (1 - beta) * math.sqrt((1 - beta ** (2 * steps)) / (1 - beta**2))


def _eta_adam(at: Setting) -> Tensor:
    t = len(at.gradients)
    return (at.B / (1 / _adam_costs(at)).sum()).sqrt() * (1 - at.beta1**t) / _gain(at.beta1, t)


def _eta_over(costs: Callable[[Setting], Tensor]) -> Callable[[Setting], Tensor]:
    return lambda at: (at.B / (1 / costs(at)).sum()).sqrt()


def _eta_inverse(matrix: Callable[[Setting], Tensor]) -> Callable[[Setting], Tensor]:
    return lambda at: (at.B / torch.linalg.inv(matrix(at)).trace()).sqrt()


def _eta_nesterov(at: Setting) -> float:
    b = at.beta1
    return math.sqrt(at.B / len(at.g) / ((1 + b) ** 2 + b**4 / (1 - b**2)))


def _eta_kfac(at: Setting) -> Tensor:
    left, right = (torch.linalg.inv(side).trace() for side in at.sides())
    return (at.B / (left * right)).sqrt()


def _box(at: Setting, step: Tensor) -> Tensor:
    return step.abs().max() / at.radius


def registry() -> tuple[Recipe, ...]:
    """The optimizers as budgets: what they are told (moment), what they may do (budget), to which family they keep, and η.

    >>> [recipe.name for recipe in registry() if "diag" in recipe.restriction][:3]
    ['AdaGrad', 'RMSProp', 'Adam, AdamW']
    """
    operator, frobenius = "Σ_tr = E[g gᵀ]", "‖Q‖²_F ≤ B"
    dynamic = "lags R[k] = E[g[n] g[n-k]ᵀ]"
    return (
        Recipe(
            "GD", operator, frobenius, "Q = η·I", "η = √(B/d)", "η", "the proportional allocation in one number",
            _identity, _squares, lambda at: math.sqrt(at.B / len(at.g)), errata=("X0-8",),
        ),
        Recipe(
            "SGD", f"{operator}, minibatch", frobenius, "Q = η·I", "η = √(B/d)", "η",
            "noise changes the estimate of the moment, not the program",
            _identity, _squares, lambda at: math.sqrt(at.B / len(at.g)), errata=("X0-8",),
        ),
        Recipe(
            "Momentum (heavy ball)", dynamic, "Σ_k ‖Q[k]‖²_F ≤ B", "Q(z) = η(1-β)/(1-βz⁻¹)·I",
            "η = √(B(1-β²)/d)/(1-β)", "η, β (pole)", "a one-pole fit to the lags of the gradient",
            _momentum, _squares,
            lambda at: math.sqrt(at.B / len(at.g)) / _gain(at.beta1, len(at.gradients)), errata=("X0-7", "X0-20"),
        ),
        Recipe(
            "Nesterov", dynamic, "Σ_k ‖Q[k]‖²_F ≤ B", "Q(z) = η(1+β-βz⁻¹)/(1-βz⁻¹)·I",
            "η = √(B/d)/√((1+β)² + β⁴/(1-β²))", "η, β", "momentum with a zero at β/(1+β): the newest gradient counts more",
            _nesterov, _squares, _eta_nesterov, errata=("X0-21",),
        ),
        Recipe(
            "AdaGrad", operator, "Σ cⱼqⱼ² ≤ B, c = √Σg² + ε", "Q = η·diag(1/c)", "η = √(B/Σ 1/c)", "η, ε",
            "coordinates priced by all of their past", _over(_adagrad_costs), _priced(_adagrad_costs),
            _eta_over(_adagrad_costs), errata=("X0-5", "X0-20"),
        ),
        Recipe(
            "RMSProp", operator, "Σ cⱼqⱼ² ≤ B, c = √v + ε, v = EMA(g²)", "Q = η·diag(1/c)", "η = √(B/Σ 1/c)", "η, β₂, ε",
            "coordinates priced by their recent past", _over(_rmsprop_costs), _priced(_rmsprop_costs),
            _eta_over(_rmsprop_costs), errata=("X0-5", "X0-15", "X0-20"),
        ),
        Recipe(
            "Adam, AdamW", f"{dynamic}, diagonal", "Σ cⱼ Σ_k qⱼ[k]² ≤ B, c = √v̂ + ε",
            "Q(z) = η(1-β₁)/(1-β₁z⁻¹)·diag(1/c)", "η = √(B(1-β₁²)/Σ 1/c)/(1-β₁)", "η, β₁, β₂, ε",
            "a one-pole filter times prices; the best q for these prices would grow with √v",
            _adam, _priced(_adam_costs), _eta_adam, errata=("X0-5", "X0-14", "X0-15", "X0-20", "X0-24"),
        ),
        Recipe(
            "Adam, validation-aware", "sym E[g_val[n] g_tr[n-k]ᵀ], diagonal", "Σ cⱼ Σ_k qⱼ[k]² ≤ B, c = √v̂ + ε",
            "as Adam", "η as Adam; β₁ = argmax √(1-β²)·Σ_k βᵏ·Σⱼ g_val,ⱼ[n]·g_tr,ⱼ[n-k]/cⱼ", "η, β₁, β₂, ε",
            "the same set of operators, asked about another loss; this moment may be indefinite",
            _adam, _priced(_adam_costs), _eta_adam, errata=("X0-1",),
        ),
        Recipe(
            "LARS, LAMB", "u = m (LARS), or Adam's step (LAMB)", "‖θ̇_ℓ‖ ≤ τ‖θ_ℓ‖ for every layer", "θ̇_ℓ ∝ u_ℓ",
            "θ̇_ℓ = τ‖θ_ℓ‖·u_ℓ/‖u_ℓ‖", "τ", "a trust region for each layer, as large as its weights",
            _trust_ratio, lambda at, step: (at.sizes(step) / at.sizes(at.weights)).max() / at.radius,
            lambda at: at.radius, on_steps=True, errata=("X0-19", "X0-20"),
        ),
        Recipe(
            "K-FAC", "Fisher F_ℓ ≈ A_ℓ ⊗ S_ℓ", "Σ_ℓ tr(Q_ℓ F_ℓ Q_ℓ) ≤ B", "Q_ℓ = η·A_ℓ⁻¹ ⊗ S_ℓ⁻¹",
            "η = √(B/Σ_ℓ tr(A_ℓ⁻¹)·tr(S_ℓ⁻¹))", "η, damping, period", "a ray in the ellipsoid of the Fisher matrix",
            _inverse(_kfac), _metric(_kfac), _eta_kfac, errata=("X0-4", "X0-9"),
        ),
        Recipe(
            "Shampoo", "L = ΣGGᵀ, R = ΣGᵀG", "tr(Q (L^½ ⊗ R^½) Q) ≤ B", "Q = η·L^-¼ ⊗ R^-¼", "η = √(B/d)",
            "η, damping, period", "the price of a direction is the root of its evidence; order k: exponents 1/k and -1/2k",
            lambda at: _kron_power(at, -0.25).unsqueeze(0), _metric(lambda at: _kron_power(at, 0.5)),
            lambda at: math.sqrt(at.B / len(at.g)), errata=("X0-4", "X0-11"),
        ),
        Recipe(
            "Newton, Gauss-Newton", "H or GᵀG", "tr(Q H Q) ≤ B", "Q = η·(H + λI)⁻¹", "η = √(B/tr H⁻¹)", "η, λ",
            "a ray; the best symmetric Q solves HQ + QH = c·M", _inverse(_damped), _metric(_damped),
            _eta_inverse(_damped), errata=("X0-9", "X0-10", "X0-20"),
        ),
        Recipe(
            "signSGD", "g", "‖θ̇‖_∞ ≤ τ", "none", "θ̇ = τ·sign(g), Q = τ·diag(1/|g|)", "τ",
            "the trust region of the largest entry; power τ‖g‖₁", lambda at: at.g.sign(), _box,
            lambda at: at.radius, on_steps=True, errata=("X0-12",),
        ),
        Recipe(
            "Lion", "β₁·m + (1-β₁)·g, m = EMA(g; β₂)", "‖θ̇‖_∞ ≤ τ", "none", "θ̇ = τ·sign(β₁m + (1-β₁)g)", "τ, β₁, β₂",
            "sign descent on two averages", _lion, _box, lambda at: at.radius, on_steps=True, errata=("X0-18",),
        ),
        Recipe(
            "Polyak", "g and the loss", "‖θ̇‖₂ ≤ (L - L*)/‖g‖₂", "θ̇ ∝ g", "θ̇ = (L - L*)/‖g‖²·g", "L*",
            "as far as the tangent needs to reach L*; ‖g‖²/gᵀHg is exact line search (Cauchy)",
            lambda at: at.g, lambda at, step: step.norm() * at.g.norm() / at.excess,
            lambda at: at.excess / at.g.square().sum(), on_steps=True, errata=("X0-22",),
        ),
        Recipe(
            "Colored GD", operator, "tr(Q P⁻¹ Q) ≤ B", "Q = η·P", "η = √(B/tr P)", "η, P",
            "gradient descent in a metric that is given", lambda at: at.curvature.unsqueeze(0),
            _metric(lambda at: torch.linalg.inv(at.curvature)), lambda at: (at.B / at.curvature.trace()).sqrt(),
            errata=("X0-9",),
        ),
        Recipe(
            "Natural gradient", "Fisher F = E[g gᵀ]", "tr(Q F Q) ≤ B", "Q = η·F⁻¹", "η = √(B/tr F⁻¹)", "η, damping",
            "a ray in the ellipsoid of the Fisher matrix", _inverse(_fisher), _metric(_fisher), _eta_inverse(_fisher),
            errata=("X0-4", "X0-9", "X0-20"),
        ),
        Recipe(
            "Adafactor", "v̂ᵢⱼ = rᵢcⱼ/Σr, EMAs of row and column sums of G²", frobenius, "Q = η·diag(v̂^-½)",
            "η = √(B/Σ 1/v̂)", "η, β₂", "prices from row and column sums only",
            lambda at: _adafactor_moments(at).rsqrt().unsqueeze(0), _squares,
            lambda at: (at.B / (1 / _adafactor_moments(at)).sum()).sqrt(), errata=("X0-17",),
        ),
        Recipe(
            "LayerNorm + momentum", f"{dynamic}, per layer", "Σ_ℓ ‖θ_ℓ‖²·Σ_k ‖Q_ℓ[k]‖²_F ≤ B",
            "Q_ℓ(z) = η(1-β)/(1-βz⁻¹)·I/‖θ_ℓ‖", "η = √(B(1-β²)/Σ d_ℓ)/(1-β)", "η, β",
            "layers priced by their weights; the best scalars are S_ℓ/(d_ℓ‖θ_ℓ‖²)",
            _layer_momentum, _by_layers,
            lambda at: math.sqrt(at.B / sum(at.layers)) / _gain(at.beta1, len(at.gradients)), errata=("X0-19", "X0-20"),
        ),
    )  # fmt: skip
