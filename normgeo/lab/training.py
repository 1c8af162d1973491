"""The training loop: the same batches for every contender, and a run that can be stopped anywhere and continued."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from normgeo.lab.contenders import Contender, Many
from normgeo.lab.errors import Diverged
from normgeo.lab.problems import Problem

__all__ = ["Curve", "Training"]


@dataclass
class Curve:
    """What one contender did."""

    name: str
    setting: str
    steps: list[int] = field(default_factory=list)
    """number of steps behind each entry of `train`"""
    train: list[float] = field(default_factory=list)
    """mean loss of the batches since the entry before, in nats"""
    validated: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    """on the same data as `validation`, for problems that have one"""
    seconds: float = 0.0
    """time in training steps"""
    examples_per_second: float = 0.0
    """targets, so tokens for text"""

    def final_train(self, share: float = 0.1) -> float:
        """Mean training loss over the last share of the run."""
        ends = self.steps
        weights = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        last = [
            (w, loss) for w, end, loss in zip(weights, ends, self.train, strict=True) if end > (1 - share) * ends[-1]
        ]
        return sum(w * loss for w, loss in last) / sum(w for w, _ in last)


class Training:
    """One contender's run. `advance` takes one step; `state` and `load_state` carry it over a restart bit by bit."""

    def __init__(self, contender: Contender, problem: Problem, device: torch.device, validations: int = 10) -> None:
        self.problem, self.device, self.validations = problem, device, validations
        self.model = problem.model().to(device)
        compile = (problem.compile,) if contender.compiles else ()
        self.optimizer: Many = contender.make(self.model, *compile)
        self.curve = Curve(contender.name, contender.setting)
        self.step = 0
        self._losses: list[Tensor] = []

    @property
    def done(self) -> bool:
        return self.step >= self.problem.steps

    def advance(self) -> None:
        """One training step; every so often a point of the curve, and a validation at each tenth (or so) of the run."""
        started = time.perf_counter()
        x, y = (each.to(self.device) for each in self.problem.batch(self.step))
        self._losses.append(self._descend(x, y))
        self.step += 1
        if self.step % max(1, self.problem.steps // 100) == 0 or self.done:
            self._record()
        self.curve.seconds += time.perf_counter() - started
        self.curve.examples_per_second = self.step * y.numel() / self.curve.seconds
        if self.step % max(1, self.problem.steps // self.validations) == 0 or self.done:
            self.model.eval()
            with self.optimizer.averaged():
                score = self.problem.score(self.model, self.device, final=self.done)
            self.model.train()
            self._check(score.loss)
            self.curve.validated.append(self.step)
            self.curve.validation.append(score.loss)
            if score.accuracy is not None:
                self.curve.accuracy.append(score.accuracy)

    def _descend(self, x: Tensor, y: Tensor) -> Tensor:
        """A step of the optimizer, and the loss before it."""

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = self.problem.loss(self.model, x, y)
            if "hvp" not in needs:
                loss.backward()
            return loss

        if (needs := self.optimizer.needs) & {"loss", "closure", "hvp"}:
            return self.optimizer.step(closure).detach()
        loss = closure()
        self.optimizer.step()
        return loss.detach()

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
            raise Diverged(f"--lr: {what}; try a smaller --lr" if ours else f"--compare: {what}; leave it out")

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs, as tensors and plain data."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curve": asdict(self.curve),
            "step": self.step,
            "losses": self._losses,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve = Curve(**state["curve"])
        self.step = state["step"]
        self._losses = list(state["losses"])
