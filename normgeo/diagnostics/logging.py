"""What happens in training, told to whoever wants to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.hooks import RemovableHandle

from normgeo.optim import Optimizer

__all__ = ["Logger", "TensorBoard", "WandB", "watch"]


class Logger(Protocol):
    """Anything that can be called with the number of a step and names -> numbers.

    >>> class Printed:
    ...     def __call__(self, step, numbers): print(step, sorted(numbers))
    >>> logger: Logger = Printed()
    >>> logger(3, {"lr": 0.1})
    3 ['lr']
    """

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None: ...


def watch(optimizer: Optimizer, *loggers: Logger, every: int = 100) -> RemovableHandle:
    """After every so many steps tell the loggers lr (of each group), how many steps were skipped because of NaN or Inf, and
    size/NAME, the norm of each weight in its own norm. `.remove()` what this returns to stop. It waits for the device.

    >>> import torch, normgeo as ng
    >>> layer = ng.nn.Linear(4, 2, zero=True)
    >>> opt = ng.optimizer(layer, lr=0.5)
    >>> handle = watch(opt, lambda step, numbers: print(step, sorted(numbers)), every=2)
    >>> for _ in range(3):
    ...     layer.weight.grad = torch.eye(2, 4)
    ...     opt.step()
    2 ['lr', 'size/weight', 'skipped']
    """
    if every < 1:
        raise ValueError(f"watch: every must be a whole number ≥ 1, got {every}")
    steps = 0

    def tell(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps % every == 0:
            groups = optimizer.param_groups
            numbers = {f"lr/{i}" if len(groups) > 1 else "lr": float(group["lr"]) for i, group in enumerate(groups)}
            numbers["skipped"] = optimizer.skipped
            numbers |= {f"size/{name}": size for name, size in optimizer.sizes().items()}
            for logger in loggers:
                logger(steps, numbers)

    return optimizer.register_step_post_hook(tell)


@dataclass(frozen=True)
class TensorBoard:
    """A logger that writes scalars with a `torch.utils.tensorboard.SummaryWriter`.

    >>> class Writer:
    ...     def add_scalar(self, name, value, step): print(name, value, step)
    >>> TensorBoard(Writer())(3, {"lr": 0.1})
    lr 0.1 3
    """

    writer: Any

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)


@dataclass(frozen=True)
class WandB:
    """A logger that writes to a run of Weights & Biases, which `wandb.init(...)` returns. A run counts steps of its own, so
    ours goes beside the numbers, as "step".

    >>> class Run:
    ...     def log(self, numbers): print(numbers)
    >>> WandB(Run())(3, {"lr": 0.1})
    {'lr': 0.1, 'step': 3}
    """

    run: Any

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log({**numbers, "step": step})
