"""Lag curves: how long gradients agree with themselves, and the momentum that makes most of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from normgeo.budgets.dynamic.family import LONGEST, best_ray
from normgeo.rules.base import State

__all__ = ["AdamLags", "LagCurve", "best_momentum", "saturating_lr"]


@dataclass(frozen=True)
class LagCurve:
    """S[k] = average over t of ⟨g_t, g_{t-k}⟩, k = 0, ..., lags, for n gradients x (n, d) at a time; the average forgets
    with the weight `memory` on the past, and every lag has its own bias correction (print starts all from 0: X0-13).

    `center` takes out the mean gradient, as it was before g_t. Then S is the correlation of the noise alone; without it a
    constant gradient counts, S[k] → ‖ḡ‖², and the best momentum is as long as the lags allow. `against` are gradients of
    validation data in place of g_t: ⟨g_val, g_{t-k}⟩, the power on held-out loss.

    >>> curve = LagCurve(lags=2)
    >>> state = curve.init(torch.zeros(1, 1))
    >>> for g in (1.0, 2.0, 4.0): curve.update(torch.tensor([[g]]), state)
    >>> curve.read(state)
    tensor([[7.0503, 5.0151, 4.0000]])
    """

    lags: int = 20
    memory: float = 0.99
    center: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.lags, int) and self.lags >= 1 and 0 <= self.memory < 1):
            raise ValueError(f"{type(self).__name__} needs a whole number lags ≥ 1 and memory in [0, 1)")

    def init(self, x: Tensor) -> State:
        n, d = x.shape
        state = {"past": x.new_zeros(n, self.lags, d), "curve": x.new_zeros(n, self.lags + 1), "t": x.new_zeros(n)}
        return {**state, "mean": x.new_zeros(n, d)} if self.center else state

    def update(self, x: Tensor, state: State, against: Tensor | None = None, metric: Tensor | None = None) -> None:
        """See the gradients x of the next step. `metric` (n, d) weighs the inner product."""
        if self.center:
            before = state["mean"] / self._weight(state["t"]).clamp_min(1 - self.memory)[:, None]
            before = torch.where(state["t"][:, None] > 0, before, x)  # the first is its own mean
            state["mean"] = self.memory * state["mean"] + (1 - self.memory) * x
            x, against = x - before, None if against is None else against - before
        past = torch.cat([x[:, None], state["past"]], 1)
        now = x if against is None else against
        products = torch.einsum("nd,nkd->nk", now if metric is None else now * metric, past)
        known = torch.arange(self.lags + 1, device=x.device) <= state["t"][:, None]
        state["curve"] = torch.where(known, torch.lerp(products, state["curve"], self.memory), state["curve"])
        state["past"], state["t"] = past[:, :-1], state["t"] + 1

    def read(self, state: State) -> Tensor:  # (n, lags + 1)
        """S, 0 at lags that have not been seen yet."""
        seen = state["t"][:, None] - torch.arange(self.lags + 1, device=state["t"].device)
        return torch.where(seen > 0, state["curve"] / self._weight(seen).clamp_min(1 - self.memory), 0.0)

    def _weight(self, steps: Tensor) -> Tensor:
        return 1 - self.memory ** steps.clamp_min(0)


@dataclass(frozen=True)
class AdamLags:
    """Lag curves T[k] = average of Σ_j g_t,j·g_{t-k,j}/c_j with c = √v for each candidate β₂, v an average of g² with that
    β₂, and the best pair:  J(β₁, β₂) = √((1 - β₁²)/Σ_j 1/c_j)·Σ_k β₁^k·T[k].

    Every β₂ has its own v (print has one, so J would not depend on β₂: X0-14), T is averaged, and c is scaled to geometric
    mean 1 over the entries that have had a gradient, because J grows like c^-½ and would choose whichever v is smallest
    (X0-15).

    >>> tuner, x = AdamLags(candidates=(0.9, 0.99)), torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    >>> state = tuner.init(x)
    >>> for _ in range(30): tuner.update(x, state)
    >>> beta1, beta2, power = tuner.best(state)
    >>> bool(beta1 > 0.9)
    True
    """

    candidates: tuple[float, ...] = (0.9, 0.99, 0.999)
    lags: int = 20
    memory: float = 0.99

    def __post_init__(self) -> None:
        if not self.candidates or not all(0 <= beta < 1 for beta in self.candidates):
            raise ValueError("AdamLags: candidates are weights on the past, at least one, all in [0, 1)")
        self._curve  # noqa: B018  says what is wrong with the rest

    @property
    def _curve(self) -> LagCurve:
        return LagCurve(self.lags, self.memory)

    def init(self, x: Tensor) -> State:
        n, d = x.shape
        out = {"v": x.new_zeros(n, len(self.candidates), d), "metric": x.new_zeros(n, len(self.candidates))}
        for i in range(len(self.candidates)):
            out.update({f"{name}.{i}": tensor for name, tensor in self._curve.init(x).items()})
        return out

    def update(self, x: Tensor, state: State, against: Tensor | None = None) -> None:
        """See the gradients x (n, d) of the next step."""
        t = state["t.0"] + 1
        for i, beta in enumerate(self.candidates):
            state["v"][:, i] = v = beta * state["v"][:, i] + (1 - beta) * x.square()
            live = v > 0  # entries that never had a gradient have no cost to weigh
            log_c = torch.where(live, v / (1 - beta**t)[:, None], 1).log() / 2
            middle = log_c.sum(1, keepdim=True) / live.sum(1, keepdim=True).clamp_min(1)
            weights = torch.where(live, (middle - log_c).exp(), 0)  # 1/c with geometric mean 1
            its = {name: state[f"{name}.{i}"] for name in ("past", "curve", "t")}
            self._curve.update(x, its, against, weights)
            state.update({f"{name}.{i}": tensor for name, tensor in its.items()})
            state["metric"][:, i] = weights.sum(1)

    def best(self, state: State) -> tuple[Tensor, Tensor, Tensor]:  # each (n,)
        """β₁, β₂ and J at the best pair."""
        betas, powers = [], []
        for i in range(len(self.candidates)):
            its = {name: state[f"{name}.{i}"] for name in ("past", "curve", "t")}
            beta, power = best_momentum(self._curve.read(its))
            betas.append(beta)
            powers.append(power / state["metric"][:, i].clamp_min(torch.finfo(power.dtype).tiny).sqrt())
        power, index = torch.stack(powers).max(0)
        candidates = torch.stack([power.new_full((), beta) for beta in self.candidates])
        return torch.stack(betas).gather(0, index[None])[0], candidates[index], power


def best_momentum(S: Tensor) -> tuple[Tensor, Tensor]:  # (*b, K + 1) -> (*b,), (*b,)
    """β* = argmax over [0, .999] of J(β) = √(1 - β²)·Σ_k β^k·S[k], and J(β*): of all geometric memories of one size in ℓ²
    over the lags, the one with the most power ⟨g, M⟩. 0 for white noise and where no β has power; S[k] = ρ^k gives ρ.

    From 512 values of log(1 - β) and a parabola through the best three: β is within 1e-4 of ρ for S = ρ^k, ρ ≤ .97.
    Source: Corollary 5 of *Optimizing optimizers for fast gradient-based learning*.

    >>> beta, power = best_momentum(0.8 ** torch.arange(100.0))
    >>> round(beta.item(), 4), round(power.item(), 4)
    (0.8, 1.6667)
    """
    u, memories = _grid(S.shape[-1], S.dtype, S.device)
    log_forget, power = best_ray(lambda x: _memories(x, S.shape[-1]), S, u, memories)
    return torch.where(power > 0, 0 - torch.expm1(log_forget), 0.0), power


def saturating_lr(beta: Tensor, budget: float, dim: Tensor | float) -> Tensor:
    """η* = √(B·(1 - β²)/d)/(1 - β): with it m ← β·m + (1 - β)·g, Δw = -η·m uses the budget η²·d·(1-β)²·Σ β^2k = B exactly.
    For Adam d is Σ_j 1/c_j. Directions of unit size (duality maps) do not see it. Erratum X0-15 names what c must be.

    >>> round(saturating_lr(torch.tensor(0.6), budget=4.0, dim=4).item(), 4)
    2.0
    """
    return (budget * (1 - beta.square()) / dim).sqrt() / (1 - beta)


def _memories(log_forget: Tensor, length: int) -> Tensor:  # (*b,) -> (*b, length)
    """√(1 - β²)·β^k, k = 0, 1, ...: of size 1 in ℓ²."""
    beta = -torch.expm1(log_forget)[..., None]
    return (1 - beta.square()).clamp_min(0).sqrt() * beta ** torch.arange(length, dtype=beta.dtype, device=beta.device)


@lru_cache(maxsize=8)
def _grid(length: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    u = torch.linspace(0, 1, 512, dtype=dtype, device=device) * math.log(LONGEST)
    return u, _memories(u, length)
