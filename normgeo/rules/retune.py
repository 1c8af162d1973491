"""Momentum and lr of torch's own optimizers, set anew in training from the lag curves of their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normgeo.rules.base import State
from normgeo.rules.lags import AdamLags, LagCurve, best_momentum, saturating_lr

__all__ = ["Retune"]


class Retune:
    """Every `every` steps, sets each parameter group of a torch optimizer to the best of its lag curve and its budget B:

    SGD          momentum = dampening = β*, lr = √(B·(1 - β*²)/d)/(1 - β*), d the number of weights
    Adam, AdamW  betas = (β₁*, β₂*), lr = √(B·(1 - β₁*²)/W)/(1 - β₁*), W = Σ_j 1/√v_j with the v of β₂*

    so that the filter from gradients to steps has the size B in the metric of the optimizer. Until the first time, `every`
    steps of calibration, the optimizer is as it was made. Call `step` between backward and the optimizer's step; `against`
    are gradients of validation data, parameter by parameter, for the power on held-out loss.

    A curve takes at most `entries` entries of each parameter, evenly spread; `lags`, `memory`, `center` are those of
    `LagCurve` (Adam's curve is not centred), `most` bounds β, since steady gradients ask for the longest memory there is.
    An entry that is NaN or Inf counts as 0. Source: Algorithms 1 and 2 of *Optimizing optimizers for fast gradient-based
    learning*, with errata X0-13 to X0-15.

    >>> w = torch.zeros(3, requires_grad=True)
    >>> opt = torch.optim.SGD([w], lr=0.1, momentum=0.9, dampening=0.9)
    >>> retune = Retune(opt, budget=0.01, every=2)
    >>> for g in torch.randn(4, 3, generator=torch.Generator().manual_seed(0)):
    ...     w.grad = g; retune.step(); opt.step()
    >>> opt.param_groups[0]["lr"] != 0.1
    True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        budget: float,
        every: int = 100,
        lags: int = 20,
        memory: float = 0.99,
        center: bool = False,
        candidates: tuple[float, ...] = (0.9, 0.99, 0.999),
        most: float = 0.99,
        entries: int = 1024,
    ) -> None:
        if not (math.isfinite(budget) and budget > 0):
            raise ValueError(f"Retune: budget must be a finite number > 0, got {budget}")
        if every < 1 or entries < 1 or not 0 <= most < 1:
            raise ValueError("Retune needs whole numbers every ≥ 1 and entries ≥ 1, and most in [0, 1)")
        self.optimizer, self.budget, self.every, self.most, self.entries = optimizer, budget, every, most, entries
        self.curve, self.adam = LagCurve(lags, memory, center), AdamLags(candidates, lags, memory)
        for group in optimizer.param_groups:
            if "betas" not in group and "dampening" not in group:
                raise TypeError(f"Retune is for torch's SGD, Adam and AdamW, got {type(optimizer).__name__}")
            if group.get("nesterov"):
                raise ValueError("Retune: torch's SGD has no dampening with nesterov=True; leave nesterov out")
        self._steps = 0
        self._states: list[State] = []

    @torch.no_grad()
    def step(self, against: Sequence[Tensor] | None = None) -> None:
        """See the gradients of this step, and every so often set the groups."""
        groups = self.optimizer.param_groups
        rest = None if against is None else iter(against)
        self._steps += 1
        for number, group in enumerate(groups):
            params: list[Tensor] = group["params"]
            x = self._sample([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
            y = None if rest is None else self._sample([next(rest) for _ in params])
            curve = self.adam if "betas" in group else self.curve
            if number == len(self._states):
                self._states.append(curve.init(x))
            state = self._states[number]
            curve.update(x, state, y)
            if self._steps % self.every == 0:
                size = sum(p.numel() for p in params)
                group.update(self._adam(state, size) if "betas" in group else self._sgd(state, size))

    def state_dict(self) -> dict[str, Any]:
        """For `load_state_dict`, beside the optimizer's own."""
        return {"steps": self._steps, "states": [dict(state) for state in self._states]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where `saved` was made."""
        self._steps, self._states = saved["steps"], [dict(state) for state in saved["states"]]

    def _sgd(self, state: State, size: int) -> dict[str, float]:
        beta = best_momentum(self.curve.read(state))[0].clamp_max(self.most)
        return {"momentum": float(beta), "dampening": float(beta), "lr": float(self._lr(beta, size))}

    def _adam(self, state: State, size: int) -> dict[str, Any]:
        beta1, beta2, _ = self.adam.best(state)
        beta1 = beta1.clamp_max(self.most)
        v = state["v"][0, self.adam.candidates.index(min(self.adam.candidates, key=lambda b: abs(b - float(beta2))))]
        live = v[v > 0] / (1 - beta2 ** state["t.0"])
        total = live.rsqrt().sum() * size / v.numel()
        return {"betas": (float(beta1), float(beta2)), "lr": float(self._lr(beta1, total))}

    def _lr(self, beta: Tensor, dim: Tensor | float) -> Tensor:
        return saturating_lr(beta, self.budget, dim)

    def _sample(self, tensors: Sequence[Tensor]) -> Tensor:  # -> (1, d)
        flat = [each.reshape(-1) for each in tensors]
        x = torch.cat([each[:: -(-each.numel() // self.entries)] for each in flat])[None]
        return torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
