"""Problems: a network, its batches and how it is judged, the same for every optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from normgeo.lab.corpus import Corpus
from normgeo.lab.errors import UserError
from normgeo.nn import GPT, MLP, ViT
from normgeo.plan import Plan, compile

__all__ = ["Classes", "Classify", "Pictures", "Problem", "Score", "Settings", "Text", "evaluate", "labelled_file"]

VALIDATION_WINDOWS = 2048  # at the end; an eighth of it on the way


@dataclass(frozen=True)
class Score:
    """How good a network is on data held out."""

    loss: float
    accuracy: float | None = None


class Problem(ABC):
    """What is trained, on what. Everything in it follows from the seed."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def steps(self) -> int: ...

    @property
    @abstractmethod
    def seed(self) -> int: ...

    @abstractmethod
    def model(self) -> nn.Module:
        """The network, drawn from the seed."""

    @abstractmethod
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step; they depend on the seed and the step alone, so that a run can go on anywhere."""

    @abstractmethod
    def score(self, model: nn.Module, device: torch.device, *, final: bool) -> Score:
        """On data held out; a sample of it will do on the way."""

    def compile(self, model: nn.Module, **options: Any) -> Plan:
        """The plan of its network."""
        return compile(model, **options)

    def logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """What the network says of x."""
        out: Tensor = model(x)
        return out

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy in nats."""
        return functional.cross_entropy(self.logits(model, x).flatten(0, -2), y.flatten())


# ---- text


@dataclass(frozen=True)
class Settings:
    """The size of a character GPT and of its run."""

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


@dataclass(frozen=True)
class Text(Problem):
    """A character GPT on a text."""

    settings: Settings
    corpus: Corpus

    def __post_init__(self) -> None:
        self.corpus.check(self.settings.context)

    @property
    def name(self) -> str:
        return f"GPT {self.settings.width} × {self.settings.depth}"

    @property
    def steps(self) -> int:
        return self.settings.steps

    @property
    def seed(self) -> int:
        return self.settings.seed

    def model(self) -> nn.Module:
        s = self.settings
        torch.manual_seed(s.seed)
        return GPT(len(self.corpus.vocabulary), s.context, s.width, s.heads, s.depth)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:  # (batch, context) twice
        context = self.settings.context
        generator = np.random.default_rng((self.seed, step))
        starts = torch.from_numpy(generator.integers(len(self.corpus.train) - context, size=self.settings.batch))
        windows = self.corpus.train[starts.unsqueeze(1) + torch.arange(context + 1)]
        return windows[:, :-1], windows[:, 1:]

    def score(self, model: nn.Module, device: torch.device, *, final: bool) -> Score:
        windows = VALIDATION_WINDOWS if final else VALIDATION_WINDOWS // 8
        logits = partial(self.logits, model)
        return Score(evaluate(logits, self.corpus.validation, self.settings.context, device, windows))


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


# ---- vectors with labels


@dataclass(frozen=True)
class Classes:
    """Vectors (n, features) with labels (n,); `shape` is that of an example in the file."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    shape: tuple[int, ...] = ()


def labelled_file(path: Path, option: str = "--classes") -> Classes:
    """An .npz with x_train, y_train, x_test, y_test; bytes are read as pixels, and features brought to RMS 1 in the mean
    over the training set."""
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path) as file:
            missing = [name for name in names if name not in file]
            arrays = [] if missing else [file[name] for name in names]
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: cannot read {path}: {error}; give the path of an .npz file") from error
    if missing:
        raise UserError(f"{option}: {path} has no {', '.join(missing)}; give an .npz with {', '.join(names)}")
    x_train, y_train, x_test, y_test = (torch.from_numpy(a) for a in arrays)
    shape = tuple(x_train.shape[1:])
    x_train, x_test = (x.flatten(1).float() for x in (x_train, x_test))
    if arrays[0].dtype == np.uint8:
        mean = x_train.mean(0)
        x_train, x_test = x_train - mean, x_test - mean
    scale = x_train.square().mean().sqrt()
    return Classes(path.name, x_train / scale, y_train.long(), x_test / scale, y_test.long(), shape)


@dataclass(frozen=True)
class Classify(Problem):
    """An MLP of three linear maps on labelled vectors."""

    data: Classes
    width: int = 256
    depth: int = 3
    batch_size: int = 256
    steps: int = 1950
    seed: int = 0

    @property
    def name(self) -> str:
        return f"MLP {self.width}"

    @cached_property
    def _per_epoch(self) -> int:
        return len(self.data.x_train) // self.batch_size

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        classes = int(self.data.y_train.max()) + 1
        return MLP(self.data.x_train.shape[1], self.width, classes, self.depth)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, self._per_epoch)
        order = _order(len(self.data.x_train), self.seed, epoch)
        order = order[place * self.batch_size : (place + 1) * self.batch_size]
        return self.data.x_train[order], self.data.y_train[order]

    @torch.no_grad()
    def score(self, model: nn.Module, device: torch.device, *, final: bool) -> Score:
        x, y = self.data.x_test.to(device), self.data.y_test.to(device)
        logits = self.logits(model, x)
        return Score(float(functional.cross_entropy(logits, y)), float((logits.argmax(-1) == y).float().mean()))


@dataclass(frozen=True)
class Pictures(Classify):
    """A vision transformer on images (h, w) or (h, w, channels), in patches of a quarter of their height."""

    width: int = 64
    depth: int = 2
    heads: int = 4
    batch_size: int = 64
    steps: int = 500

    def __post_init__(self) -> None:
        if len(self.data.shape) not in (2, 3):
            raise UserError(
                f"--images: an example of {self.data.name} has the shape {self.data.shape}; give images (h, w) or (h, w, c)"
            )
        if self.width % (2 * self.heads):
            raise UserError(f"--problems: a width of {self.width} is not {self.heads} heads of even width")

    @property
    def name(self) -> str:
        return f"ViT {self.width} × {self.depth}"

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        h, w, channels = self._size
        patch = max(1, h // 4)
        classes = int(self.data.y_train.max()) + 1
        tokens = (h // patch) * (w // patch)
        return ViT(channels, patch, tokens, self.width, self.heads, self.depth, classes)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:  # (batch, channels, h, w), (batch,)
        x, y = super().batch(step)
        return self._images(x), y

    @torch.no_grad()
    def score(self, model: nn.Module, device: torch.device, *, final: bool) -> Score:
        many = len(self.data.x_test) if final else len(self.data.x_test) // 8
        x, y = self.data.x_test[:many], self.data.y_test[:many].to(device)
        logits = torch.cat([model(self._images(part).to(device)) for part in x.split(500)])
        return Score(float(functional.cross_entropy(logits, y)), float((logits.argmax(-1) == y).float().mean()))

    @property
    def _size(self) -> tuple[int, int, int]:
        h, w, channels = (*self.data.shape, 1)[:3]
        return h, w, channels

    def _images(self, x: Tensor) -> Tensor:  # (batch, features) -> (batch, channels, h, w)
        return x.unflatten(1, self._size).movedim(-1, 1)


@lru_cache(maxsize=1)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    """In which order an epoch goes through n examples; kept for the other steps of that epoch."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))
