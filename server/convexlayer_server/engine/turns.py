"""What waits for workers: whose turn it is, and how much of it goes at a time.

A worker takes the next piece of whoever was served least, and what can be computed together with it, whoever's it is.
Where several owners compute, pieces are short. Every owner is charged the time of workers that its pieces take.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Set
from typing import final

from ..fair_queue import FairQueue, Turn
from ..settings import Settings
from .estimates import LONG_S, Estimates
from .task import Piece, Task

__all__ = ["Turns"]

_PIECE_S = 0.1
"""What one piece of a task should take while nobody else computes; so fine is its progress."""

_SHARED_PIECE_S = 0.02
"""The same where others compute, too: so long they may have to wait for it."""

_UNKNOWN_ROWS, _MOST_ROWS = 8, 1024
"""Elements of a piece of which nothing is known, and of any."""

_MERGED_S, _LEAST_MERGED = 0.01, 2
"""Pieces merge up to this long, or this many unless they are long, for so many cost hardly more than one."""

_MERGED_BYTES = 2**22
"""Arrays of one merged batch: they are put together on the event loop, and larger ones gain nothing by it."""

_WORTH_KEEPING_S = 2e-3
"""From this long an element, a derivative from kept factors is worth more than one in a merged batch."""

_COMPUTING_S = 10.0
"""For how long an owner counts as one who computes after its last piece."""


@final
class Turns:
    """Tasks that wait, in a queue that is fair to every owner.

    Args:
        settings: ``batching`` and ``merged_rows``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: FairQueue[Task] = FairQueue()
        self._estimates = Estimates()
        self._computing: dict[str, float] = {}

    def __len__(self) -> int:
        """Tasks of which anything waits."""
        return len(self._queue)

    def owners(self) -> Set[str]:
        """Whose they are."""
        return self._queue.flows()

    def in_order(self) -> Iterator[Turn[Task]]:
        """Tasks, in the order in which they should be served; to be used before any change."""
        return self._queue.turns()

    def add(self, task: Task) -> None:
        """Let a task wait."""
        self._computing[task.owner] = time.monotonic()
        self._queue.push(task.owner, task, task.line)

    def remove(self, task: Task) -> None:
        """Let a task wait no longer."""
        self._queue.remove(task.owner, task, task.line)

    def put_back(self, piece: Piece, *, alone: bool = False, long: bool = False) -> None:
        """Have a piece done again, if anybody waits for it, before what came after it."""
        task = piece.task
        if task.future.done():
            return
        task.alone, task.long = task.alone or alone, task.long or long
        if not task.waiting:
            self._queue.push(task.owner, task, task.line, first=True)
        task.put_back(piece)

    def is_shared(self, owner: str, but: Collection[str] = ()) -> bool:
        """Whether others than an owner compute, too, these left out."""
        end, waiting = time.monotonic() - _COMPUTING_S, self._queue.flows()
        return any(
            other != owner and other not in but and (seen > end or other in waiting)
            for other, seen in self._computing.items()
        )

    def is_long(self, task: Task) -> bool:
        """Whether the least that can be done of a task is likely to keep others waiting."""
        return (task.long or self._estimates.is_long(task)) and self.is_shared(task.owner)

    def take(self, turn: Turn[Task]) -> tuple[Piece, float]:
        """The next piece of a task, and what its owner is charged for it beforehand."""
        each_s, shared = self._estimates.each_s(turn.item), self.is_shared(turn.flow)
        if each_s is None:
            return self._taken(turn, 1 if shared else _UNKNOWN_ROWS)
        piece_s = _SHARED_PIECE_S if shared else _PIECE_S
        return self._taken(turn, max(1, min(int(piece_s / max(each_s, 1e-9)), _MOST_ROWS)))

    def take_alike(self, first: Piece, kept: Collection[str]) -> list[tuple[Piece, float]]:
        """Whole tasks that go with a piece, as for ``take``.

        Args:
            first: the piece.
            kept: ids of the solved batches that the worker keeps.
        """
        taken: list[tuple[Piece, float]] = []
        if first.task.waiting or not self._may_merge(first.task, kept):
            return taken
        rows, size_bytes = first.rows, first.size_bytes * first.rows
        seconds = self._estimates.first_s(first.task) * rows
        for turn in self._queue.alike(first.task.line):
            task = turn.item
            rows += task.batch
            size_bytes += task.size_bytes * task.batch
            seconds += self._estimates.left_s(task)
            long = seconds > (LONG_S if len(taken) + 1 < _LEAST_MERGED else _MERGED_S)
            if task.cutter is not None and (rows > self._settings.merged_rows or size_bytes > _MERGED_BYTES or long):
                break
            if task.is_whole and self._may_merge(task, kept):
                taken.append(self._taken(turn, task.batch))
        return taken

    def learn(self, piece: Piece, seconds: float) -> None:
        """Take into account how long a piece took."""
        self._estimates.learn(piece.task, piece.rows, seconds)

    def is_late(self, piece: Piece, seconds: float) -> None:
        """Take into account how long a piece has taken already."""
        self._estimates.is_late(piece.task, piece.rows, seconds)

    def charge(self, owner: str, seconds: float) -> None:
        """Charge an owner, or correct what it was charged."""
        self._queue.charge(owner, seconds)
        self._computing[owner] = time.monotonic()

    def left_s(self) -> float:
        """Seconds that all that waits is likely to take of one worker."""
        return sum(map(self._estimates.left_s, self._queue))

    def _taken(self, turn: Turn[Task], most: int) -> tuple[Piece, float]:
        task = turn.item
        piece = task.take(most)
        cost = self._estimates.first_s(task) * max(1, piece.rows)
        self._queue.serve(turn, cost)
        if not task.waiting:
            self.remove(task)
        return piece, cost

    def _may_merge(self, task: Task, kept: Collection[str]) -> bool:
        """Whether a task may be done together with others of its line; without parameters there is no batch.

        One with a time limit has that for itself.
        """
        if task.cutter is None:
            return True
        request = task.cutter.request
        if task.alone or request.options.time_limit_s is not None or not request.parameters:
            return False
        factors = task.home in kept and task.kept_each_s > _WORTH_KEEPING_S
        return self._settings.batching and not factors
