"""Whole matrices from shards and back: every leaf of a stack is dualized on one rank, by all-to-all in and out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

from normgeo.optim.layout import Box
from normgeo.optim.ranks import Ranks, talking

__all__ = ["Exchange", "Task", "in_turn"]

T = TypeVar("T")
Task = Generator[None, None, T]
"""work that yields when it has asked other ranks for something, and goes on when somebody resumes it"""


class Exchange:
    """D = f(M) for f on whole leaves. Each rank has its `boxes` part of M (n, *shape) and of D; leaf i is put together at
    rank `owners[i]`, which applies f. Per rank and step, of N entries on R ranks in even shards,

        sent = 2·(R-1)/R · N/R    against  (R-1)·N/R  for all ranks to gather all leaves,

    and where every rank has all of M already, (R-1)·N/R, of the results. No f can do with less: half of that is the
    entries that an owner lacks, the other half the results that are wanted elsewhere.
    """

    def __init__(
        self, ranks: Ranks, boxes: Sequence[Box], owners: Sequence[int], shape: Sequence[int], device: torch.device
    ) -> None:
        self.ranks, self.shape, self.n = ranks, tuple(shape), len(owners)
        me = ranks.me
        self._boxes, self._here = list(boxes), boxes[me]
        whose: list[list[int]] = [[] for _ in boxes]
        for leaf, owner in enumerate(owners):
            whose[owner].append(leaf)
        self._of = [torch.tensor(its, dtype=torch.long, device=device) for its in whose]
        counts = [len(its) for its in whose]
        self._mine, self._count = self._of[me], counts[me]
        holders: dict[Box, list[int]] = {}
        for rank, box in enumerate(boxes):
            holders.setdefault(box, []).append(rank)

        def sends(rank: int, owner: int) -> bool:
            """Each part of a leaf comes from one rank: from the owner itself if it can. Replicas take turns, so that no
            copy of the network serves all owners."""
            its = holders[boxes[rank]]
            return rank == (owner if boxes[owner] == boxes[rank] else its[owner % len(its)])

        # Entries that go from rank to rank: shards to owners, and results to all that have a shard.
        self._to = [count * self._here.entries * sends(me, o) for o, count in enumerate(counts)]
        self._from = [counts[me] * box.entries * sends(r, me) for r, box in enumerate(boxes)]
        self._back_to = [counts[me] * box.entries for box in boxes]
        self._back_from = [count * self._here.entries for count in counts]
        self._whole_everywhere = list(holders) == [Box((0,) * len(shape), self.shape)]

    @property
    def sent(self) -> int:
        """The entries that this rank sends to others in one exchange."""
        ways = (self._to, self._back_to)
        return sum(entries for way in ways for rank, entries in enumerate(way) if rank != self.ranks.me)

    def __call__(self, f: Callable[[Tensor], Tensor], M: Tensor) -> Task[Tensor]:  # (n, *part) -> (n, *part)
        owned = M[self._mine] if self._whole_everywhere else (yield from self._gather(M))
        D = f(owned).to(M.dtype) if self._count else owned
        return (yield from self._scatter(D))

    def _gather(self, M: Tensor) -> Task[Tensor]:  # (n, *part) -> (owned, *shape)
        parts = [M[its].flatten() for its, entries in zip(self._of, self._to, strict=True) if entries]
        received = yield from self._all_to_all(_joined(parts, M), self._to, self._from)
        whole = M.new_empty((self._count, *self.shape))
        for box, part in zip(self._boxes, received.split(self._from), strict=True):
            if part.numel():
                whole[(slice(None), *box.slices)] = part.view(self._count, *box.size)
        return whole

    def _scatter(self, D: Tensor) -> Task[Tensor]:  # (owned, *shape) -> (n, *part)
        parts = [D[(slice(None), *box.slices)].flatten() for box in self._boxes] if self._count else []
        received = yield from self._all_to_all(_joined(parts, D), self._back_to, self._back_from)
        out = D.new_empty((self.n, *self._here.size))
        for its, part in zip(self._of, received.split(self._back_from), strict=True):
            if part.numel():
                out[its] = part.view(-1, *self._here.size)
        return out

    def _all_to_all(self, x: Tensor, to: list[int], of: list[int]) -> Task[Tensor]:
        out = x.new_empty(sum(of))
        with talking(self.ranks):
            work = distributed.all_to_all_single(out, x, of, to, group=self.ranks.group, async_op=True)
        yield
        with talking(self.ranks):
            work.wait()
        return out


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat(list(parts)) if parts else like.new_empty(0)


def in_turn(tasks: Iterable[Task[T]], ahead: int = 3) -> Iterator[T]:
    """The results of the tasks, in order. While one waits for other ranks, up to `ahead` of them are under way, so that
    communication and work overlap; all ranks start and resume them in the same order. A task that waits for nobody is
    done before the next one starts.

    >>> def task(name, waits):
    ...     for i in range(waits): print(name, i); yield
    ...     return name
    >>> list(in_turn([task("a", 0), task("b", 1), task("c", 1)]))
    b 0
    c 0
    ['a', 'b', 'c']
    """
    waiting = iter(tasks)
    running: deque[tuple[Task[T], list[T]]] = deque()
    exhausted = False
    while True:
        while not exhausted and len(running) < ahead and not (running and running[0][1]):
            task = next(waiting, None)
            if task is None:
                exhausted = True
            else:
                running.append((task, _advanced(task)))
        if not running:
            return
        while not running[0][1]:
            for task, result in running:
                if not result:
                    result.extend(_advanced(task))
        yield running.popleft()[1][0]


def _advanced(task: Task[T]) -> list[T]:
    """The result in a list of one, or nothing yet."""
    try:
        next(task)
    except StopIteration as done:
        return [done.value]
    return []
