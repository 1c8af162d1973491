"""Writes docs/scaling.md: `python docs/generate_scaling.py`.

Owners, entries sent and floating-point operations come from the functions that the optimizer calls: `assign`, `Exchange`,
`boxes` and `polar_flops`, for every rank, on the shapes of published models. Nothing is communicated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.tensor import Shard

from normgeo.optim.balance import assign, polar_flops
from normgeo.optim.exchange import Exchange
from normgeo.optim.layout import boxes
from normgeo.optim.stack import at_a_time

TARGET = Path(__file__).with_name("scaling.md")
RANKS = (8, 64, 256, 1024)
BYTES = 4  # of momentum, and of what is sent: float32

Shape = tuple[int, int]


@dataclass(frozen=True)
class Llama:
    """Llama 3 (arXiv 2407.21783, table 3)."""

    name: str
    layers: int
    width: int
    inner: int
    key_heads: int = 8
    head: int = 128
    words: int = 128256

    @property
    def matrices(self) -> dict[Shape, int]:
        """Shape -> how many of the matrices that are dualized as a whole; embedding and head go row by row."""
        keys = self.key_heads * self.head
        one = [(self.width, self.width)] * 2 + [(keys, self.width)] * 2  # q, o; k, v
        one += [(self.inner, self.width)] * 2 + [(self.width, self.inner)]  # gate, up; down
        return Counter(one * self.layers)

    @property
    def rows(self) -> int:
        return 2 * self.words * self.width

    @property
    def weights(self) -> int:
        return self.rows + sum(m * n * count for (m, n), count in self.matrices.items())


MODELS = (Llama("8B", 32, 4096, 14336), Llama("70B", 80, 8192, 28672), Llama("405B", 126, 16384, 53248))


@dataclass(frozen=True)
class Standing:
    """One of the ranks, as the exchange knows it."""

    size: int
    me: int


@dataclass(frozen=True)
class Load:
    """One step on R ranks."""

    ranks: int
    flops: float
    """of the busiest rank"""
    balance: float
    """mean over busiest"""
    sent: float
    """entries, mean"""
    most: int
    """entries, busiest rank"""
    held: int
    """entries of whole matrices on the rank that has most of one stack at a time"""


def load(model: Llama, ranks: int) -> Load:
    """`fully_shard` over all ranks: rows of every matrix are cut."""
    tasks = [shape for shape, count in model.matrices.items() for _ in range(count)]
    owners = assign([polar_flops(shape) for shape in tasks], ranks)
    work, sent, held = [0.0] * ranks, [0] * ranks, [0] * ranks
    for shape, its in _stacks(tasks, owners, ranks):
        parts = boxes(shape, (ranks,), [Shard(0)])
        counts = Counter(its)
        known: dict[tuple[int, int], int] = {}
        for rank in range(ranks):
            work[rank] += counts[rank] * polar_flops(shape)
            held[rank] = max(held[rank], counts[rank] * shape[0] * shape[1])
            alike = (counts[rank], parts[rank].entries)  # ranks that own as many and have as much send as much
            if alike not in known:
                known[alike] = Exchange(Standing(ranks, rank), parts, its, shape, torch.device("cpu")).sent
            sent[rank] += known[alike]
    busiest = max(work)
    return Load(ranks, busiest, sum(work) / ranks / busiest, sum(sent) / ranks, max(sent), max(held))


def _stacks(tasks: list[Shape], owners: list[int], ranks: int) -> Iterator[tuple[Shape, list[int]]]:
    for shape in dict.fromkeys(tasks):
        its = [owner for task, owner in zip(tasks, owners, strict=True) if task == shape]
        size = at_a_time(shape, ranks)
        yield from ((shape, its[i : i + size]) for i in range(0, len(its), size))


def page() -> str:
    head = ["ranks", "momentum", "sent", "busiest", "least", "gather all", "TFLOP", "balance", "whole at once"]
    sections = []
    for model in MODELS:
        whole = sum(m * n * count for (m, n), count in model.matrices.items())
        rows = []
        for ranks in RANKS:
            one = load(model, ranks)
            least = 2 * (ranks - 1) / ranks * whole / ranks
            every = (ranks - 1) / ranks * whole
            cells = [_gigabytes(model.weights / ranks), *map(_gigabytes, (one.sent, one.most, least, every))]
            rows.append([str(ranks), *cells, f"{one.flops / 1e12:,.0f}", f"{one.balance:.2f}", _gigabytes(one.held)])
        count = sum(model.matrices.values())
        title = f"## {model.name}: {model.weights / 1e9:.1f}·10⁹ weights, {count} matrices"
        sections.append(f"{title}\n\n{_table(head, rows)}")
    return TEXT.format(sections="\n\n".join(sections))


def _gigabytes(entries: float) -> str:
    return f"{entries * BYTES / 1e9:.3g}" if entries * BYTES < 1e12 else f"{entries * BYTES / 1e9:,.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


TEXT = """# Scaling

Made by `python docs/generate_scaling.py`: what a step of the optimizer costs per rank under `fully_shard` on R ranks,
for the shapes of Llama 3. Owners and volumes are those that the optimizer would use, computed for every rank by its
own functions; nothing here was run on so many machines. What was run: gloo on CPU, 2 and 4 processes (`normgeo bench
distributed` counts their bytes, in docs/results.md).

GB per rank and step, float32:

- momentum: the state that stays on the rank, (weights)/R. Weights and gradients are the wrapper's.
- sent: by the two all-to-alls, mean over ranks; busiest: by the rank that sends most. An owner receives as much as it
  sends.
- least: 2·(R-1)/R·N/R for the N entries of all matrices. Whoever dualizes a matrix lacks (R-1)/R of it, and as much
  of the result is wanted elsewhere, so no exact method with one owner per matrix sends less.
- gather all: what each rank receives if all gather all matrices.
- TFLOP: polar factors of the busiest rank, six quintic steps of 4·m²n + 2·m³; balance: mean over busiest.
- whole at once: the most that a rank holds of one stack of equal shapes in whole matrices; the result takes as much
  again. Up to three stacks are under way at a time.

{sections}

## Reading it

- **All-to-all is R/2 times cheaper than all-gather**, and its volume per rank falls with R. The wrapper's own does
  not: a step of `fully_shard` gathers weights twice and scatters gradients once, 3·N·(R-1)/R entries per rank
  whatever R is.
- **The balance is limited by whole matrices.** With fewer matrices than ranks some have nothing to do, and the time
  is that of the largest matrix. For 405B on 1024 ranks that is 4 % of the network's own work (6 operations per weight
  and token, 4 million tokens a step: 9500 TFLOP per rank). Where it is too much, use tensor parallelism inside
  `fully_shard` or replicas of shards; the optimizer follows the mesh, but a matrix is never cut for its polar factor.
- **Embedding and head** have norms by row: cut between rows, they are dualized where they are, and send nothing.
- **Vectors** (biases, RMS) meet on one rank like matrices; entrywise norms (gains) send nothing. Every step also
  reduces one byte per parameter, so that all ranks agree on NaN, and one per leaf, which counts what moved.
- **Latency.** Two collectives per stack (leaves of one shape, dtype and placement), three stacks under way at a time.
  A stack is at most R leaves, or as many as bring 256 MB of whole leaves to each rank.
- **Data-parallel copies** (`ranks=`): results travel, (R-1)/R·N entries received per rank, as in one all-gather;
  worth it where TFLOP/R at the machine's speed saves more than that costs. For 8B on 8 ranks at 400 TFLOP/s and 200
  GB/s, 800 TFLOP or 2 s of polar factors become .25 s, for 24 GB or .12 s of traffic.
- **Parts that see whole weights** (see the guide) keep whole leaves with their state on every rank. They are not for
  100B weights.
"""

if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
