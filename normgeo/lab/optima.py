"""Problems whose best loss is known, in float64: they are judged by the gap to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from normgeo.lab.landscapes import curvature
from normgeo.lab.problems import Problem, Score
from normgeo.nn import Linear

__all__ = ["Bowl", "Logistic"]


@dataclass(frozen=True)
class Bowl(Problem):
    """½⟨W - A, H(W - A)⟩ of one square matrix W, from one random orthogonal matrix W to another, A; H mixes all entries,
    with eigenvalues from 1 down to 1/condition, evenly in their logarithm. No noise; the least loss is 0.

    >>> Bowl(width=4).score(Bowl(width=4).model(), torch.device("cpu"), final=True).loss > 0
    True
    """

    condition: int = 1000
    width: int = 16
    steps: int = 200
    seed: int = 0

    @property
    def name(self) -> str:
        return f"quadratic, condition {self.condition}"

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return Linear(self.width, self.width, dtype=torch.float64)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        return _bowl(self.condition, self.width, self.seed)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x is H and y is A."""
        away = (next(model.parameters()) - y).flatten()
        return away @ x @ away / 2

    @torch.no_grad()
    def score(self, model: nn.Module, device: torch.device, *, final: bool) -> Score:
        return Score(float(self.loss(model, *(each.to(device) for each in self.batch(0)))))


@lru_cache(maxsize=1)
def _bowl(condition: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    goal = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    return curvature(condition, width * width, generator), goal


@dataclass(frozen=True)
class Logistic(Problem):
    """Multinomial logistic regression on 1000 examples of 16 features whose sizes go from 1 down to 1/30, in batches of 50;
    labels of 10 classes are drawn from such a model, so that the least loss, by Newton's method, is attained.

    >>> problem = Logistic()
    >>> 0.1 < problem.score(problem.model(), torch.device("cpu"), final=True).loss < 2.3
    True
    """

    batch_size: int = 50
    steps: int = 200
    seed: int = 0

    @property
    def name(self) -> str:
        return "logistic regression"

    def model(self) -> nn.Module:
        return Linear(16, 10, zero=True, dtype=torch.float64)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        x, y, _ = _drawn(self.seed)
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + step)
        these = torch.randint(len(x), (self.batch_size,), generator=generator)
        return x[these], y[these]

    @torch.no_grad()
    def score(self, model: nn.Module, device: torch.device, *, final: bool) -> Score:
        """How far the loss over all examples is above the least."""
        x, y, least = _drawn(self.seed)
        logits = model(x.to(device)).cpu()
        loss = float(functional.cross_entropy(logits, y))
        return Score(loss - least, float((logits.argmax(-1) == y).double().mean()))


@lru_cache(maxsize=1)
def _drawn(seed: int) -> tuple[Tensor, Tensor, float]:
    """Examples, labels, and the least loss that a linear map reaches on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, 16, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, 16).double()
    teacher = 2 * torch.randn(16, 10, generator=generator, dtype=torch.float64)
    y = torch.multinomial((x @ teacher).softmax(-1), 1, generator=generator).squeeze(1)

    def loss(w: Tensor) -> Tensor:  # (10, 16) -> ()
        return functional.cross_entropy(x @ w.T, y)

    w, truth = torch.zeros(10, 16, dtype=torch.float64), functional.one_hot(y, 10).double()
    for _ in range(20):
        p = (x @ w.T).softmax(-1)
        spread = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        hessian = torch.einsum("nab,ni,nj->aibj", spread, x, x).reshape(160, 160) / len(x)
        gradient = (p - truth).T @ x / len(x)
        # Logits may shift together, so the Hessian is singular.
        step = torch.linalg.lstsq(hessian, gradient.reshape(160, 1), driver="gelsd").solution.reshape(10, 16)
        while loss(w - step) > loss(w) and step.norm() > 1e-12:
            step = step / 2
        w = w - step
        if gradient.norm() < 1e-12:
            break
    return x, y, float(loss(w))
