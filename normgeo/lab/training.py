"""The training loop: the same batches for every contender, and a run that can be stopped anywhere and continued."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normgeo.lab.contenders import Contender, Many
from normgeo.lab.corpus import Corpus
from normgeo.lab.errors import UserError
from normgeo.nn import GPT

__all__ = ["Curve", "Settings", "Training", "evaluate"]

VALIDATION_WINDOWS = 2048  # at the end; an eighth of it on the way


@dataclass(frozen=True)
class Settings:
    """The size of the model and of the run."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    context: int = 64
    batch: int = 32
    steps: int = 500
    warmup: int = 20
    lr: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "context", "batch", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: must be a whole number ≥ 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise UserError(
                f"--heads: {self.heads} heads do not divide --width {self.width}; choose heads that divide it"
            )
        if self.width // self.heads % 2:
            raise UserError(
                f"--heads: heads of {self.width // self.heads} features cannot be turned in pairs by rotary positions; "
                f"choose --width and --heads with an even width per head"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed: must be at least 0 and less than 2^63, got {self.seed}")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"--lr: must be a finite number > 0, got {self.lr}")
        if not 0 <= self.warmup < self.steps:
            raise UserError(f"--warmup: must be at least 0 and less than --steps {self.steps}, got {self.warmup}")

    def model(self, vocabulary: int) -> nn.Module:
        """The network, drawn from the seed."""
        torch.manual_seed(self.seed)
        return GPT(vocabulary, self.context, self.width, self.heads, self.depth)


@dataclass
class Curve:
    """What one contender did."""

    name: str
    setting: str
    steps: list[int] = field(default_factory=list)
    """number of steps behind each entry of `train`"""
    train: list[float] = field(default_factory=list)
    """mean loss of the batches since the entry before, nats per byte"""
    validated: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0
    """time in training steps"""
    tokens_per_second: float = 0.0


class Training:
    """One contender's run. `advance` takes one step; `state` and `load_state` carry it over a restart bit by bit."""

    def __init__(self, contender: Contender, settings: Settings, corpus: Corpus, device: torch.device) -> None:
        self.settings, self.corpus, self.device = settings, corpus, device
        self.model = settings.model(len(corpus.vocabulary)).to(device)
        self.optimizer: Many = contender.make(self.model)
        self.curve = Curve(contender.name, contender.setting)
        self.step = 0
        self.batches = torch.Generator().manual_seed(settings.seed)
        self._losses: list[Tensor] = []

    @property
    def done(self) -> bool:
        return self.step >= self.settings.steps

    def advance(self) -> None:
        """One training step; every so often a point of the curve, and a validation at each tenth of the run."""
        started = time.perf_counter()
        x, y = self._batch()
        loss = functional.cross_entropy(self.model(x).flatten(0, 1), y.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._losses.append(loss.detach())
        self.step += 1
        if self.step % max(1, self.settings.steps // 100) == 0 or self.done:
            self._record()
        self.curve.seconds += time.perf_counter() - started
        tokens = self.step * self.settings.batch * self.settings.context
        self.curve.tokens_per_second = tokens / self.curve.seconds
        if self.step % max(1, self.settings.steps // 10) == 0 or self.done:
            self.curve.validated.append(self.step)
            windows = VALIDATION_WINDOWS if self.done else VALIDATION_WINDOWS // 8
            loss_now = evaluate(self.model, self.corpus.validation, self.settings.context, self.device, windows)
            self._check(loss_now)
            self.curve.validation.append(loss_now)

    def _record(self) -> None:
        mean = float(torch.stack(self._losses).mean())
        self._losses = []
        self.curve.steps.append(self.step)
        self.curve.train.append(mean)
        self._check(mean)

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            what = f"the loss of {self.curve.name} ({self.curve.setting}) became {loss} at step {self.step}"
            ours = self.curve.name == "normgeo"
            raise UserError(f"--lr: {what}; try a smaller --lr" if ours else f"--compare: {what}; leave it out")

    def _batch(self) -> tuple[Tensor, Tensor]:  # (batch, context) twice
        context = self.settings.context
        starts = torch.randint(len(self.corpus.train) - context, (self.settings.batch,), generator=self.batches)
        windows = self.corpus.train[starts.unsqueeze(1) + torch.arange(context + 1)].to(self.device)
        return windows[:, :-1], windows[:, 1:]

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs, as tensors and plain data."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curve": asdict(self.curve),
            "step": self.step,
            "batches": self.batches.get_state(),
            "losses": self._losses,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve = Curve(**state["curve"])
        self.step = state["step"]
        self.batches.set_state(state["batches"].cpu())
        self._losses = list(state["losses"])


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor],
    ids: Tensor,
    context: int,
    device: torch.device | str = "cpu",
    windows: int = VALIDATION_WINDOWS,
) -> float:
    """Mean loss in nats over the text cut into windows of the context's length, or over `windows` evenly spaced ones
    if there are more.

    >>> flat = lambda ids: torch.zeros(*ids.shape, 4)
    >>> round(evaluate(flat, torch.zeros(100, dtype=torch.long), context=8), 4)
    1.3863
    """
    starts = torch.arange(0, len(ids) - context, context)
    if len(starts) > windows:
        starts = starts[torch.linspace(0, len(starts) - 1, windows).long()]
    total = 0.0
    for chunk in starts.split(128):
        cut = ids[chunk.unsqueeze(1) + torch.arange(context + 1)].to(device)
        logits = model(cut[:, :-1])
        total += float(functional.cross_entropy(logits.flatten(0, 1), cut[:, 1:].flatten(), reduction="sum"))
    return total / (len(starts) * context)
