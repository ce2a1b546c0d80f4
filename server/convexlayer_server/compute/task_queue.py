"""The queue of tasks: fair scheduling among owners, chunk sizes, and merging.

A worker takes the next chunk of the owner that used the least compute time, merged with tasks of any owner that can be
computed together with it. Chunks are short while several owners compute. Each owner is charged the worker time of its
chunks.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Set
from typing import final

from ..settings import Settings
from ..shared.fair_queue import FairQueue, QueuedItem
from .estimates import SLOW_S, Estimates
from .task import Chunk, Task

__all__ = ["TaskQueue"]

_CHUNK_S = 0.1
"""Target duration in seconds of a chunk while one owner computes: the resolution of its progress."""

_SHARED_CHUNK_S = 0.02
"""Target duration in seconds of a chunk while several owners compute: how long one may delay the others."""

_UNKNOWN_CHUNK_SIZE = 8
"""Elements of the first chunk of a task whose duration is unknown."""

_MAX_CHUNK_SIZE = 1024
"""Elements of a chunk at most."""

_MAX_MERGED_S = 0.01
"""Estimated duration in seconds of merged tasks at most; longer ones gain nothing and delay each other."""

_MIN_MERGED = 2
"""Tasks that merge even beyond ``_MAX_MERGED_S``, unless they are slow: two cost hardly more than one."""

_MAX_MERGED_BYTES = 2**22
"""Bytes of the arrays of merged tasks at most: the event loop copies them, and larger ones gain nothing."""

_MIN_FACTORISATION_S = 2e-3
"""Seconds an element from which a derivative by a cached factorisation is faster than one in a merged batch."""

_ACTIVE_S = 10.0
"""Seconds after its last chunk for which an owner counts as computing."""

_MIN_ELEMENT_S = 1e-9
"""Guard against division by zero."""


@final
class TaskQueue:
    """Tasks that wait for workers.

    Args:
        settings: ``batching`` and ``merged_elements``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: FairQueue[Task] = FairQueue()
        self._estimates = Estimates()
        self._last_active: dict[str, float] = {}

    def __len__(self) -> int:
        """Return the number of tasks of which anything waits."""
        return len(self._queue)

    def owners(self) -> Set[str]:
        """Return the owners of waiting tasks."""
        return self._queue.flows()

    def in_order(self) -> Iterator[QueuedItem[Task]]:
        """Iterate over the tasks in the order of service; the queue must not change during iteration."""
        return self._queue.heads()

    def add(self, task: Task) -> None:
        """Add a task."""
        self._last_active[task.owner] = time.monotonic()
        self._queue.push(task.owner, task, task.merge_key)

    def remove(self, task: Task) -> None:
        """Remove a task, if it waits."""
        self._queue.remove(task.owner, task, task.merge_key)

    def requeue(self, chunk: Chunk, *, unmergeable: bool = False, slow: bool = False) -> None:
        """Compute a chunk again, before later ones, unless its task is done or cancelled."""
        task = chunk.task
        if task.future.done():
            return
        task.unmergeable, task.slow = task.unmergeable or unmergeable, task.slow or slow
        if not task.waiting:
            self._queue.push(task.owner, task, task.merge_key, first=True)
        task.requeue(chunk)

    def others_compute(self, owner: str, but: Collection[str] = ()) -> bool:
        """Whether owners other than ``owner`` and ``but`` compute."""
        end, waiting = time.monotonic() - _ACTIVE_S, self._queue.flows()
        return any(
            other != owner and other not in but and (seen > end or other in waiting)
            for other, seen in self._last_active.items()
        )

    def is_slow(self, task: Task) -> bool:
        """Whether the smallest possible chunk of a task would probably delay other owners for long."""
        return (task.slow or self._estimates.is_slow(task)) and self.others_compute(task.owner)

    def take(self, item: QueuedItem[Task]) -> tuple[Chunk, float]:
        """Take the next chunk of a task; return it with the estimated seconds that its owner was charged."""
        element_s, shared = self._estimates.element_s(item.item), self.others_compute(item.flow)
        if element_s is None:
            return self._take(item, 1 if shared else _UNKNOWN_CHUNK_SIZE)
        chunk_s = _SHARED_CHUNK_S if shared else _CHUNK_S
        return self._take(item, max(1, min(int(chunk_s / max(element_s, _MIN_ELEMENT_S)), _MAX_CHUNK_SIZE)))

    def take_mergeable(self, first: Chunk, cached: Collection[str]) -> list[tuple[Chunk, float]]:
        """Take whole tasks to merge with a chunk; return them as ``take`` does.

        Args:
            first: the chunk.
            cached: keys of the solved batches that the worker caches.
        """
        taken: list[tuple[Chunk, float]] = []
        if first.task.waiting or not self._can_merge(first.task, cached):
            return taken
        elements, size_bytes = first.size, first.size_bytes * first.size
        seconds = self._estimates.minimum_s(first.task) * elements
        for item in self._queue.in_line(first.task.merge_key):
            task = item.item
            elements += task.elements
            size_bytes += task.size_bytes * task.elements
            seconds += self._estimates.remaining_s(task)
            slow = seconds > (SLOW_S if len(taken) + 1 < _MIN_MERGED else _MAX_MERGED_S)
            large = elements > self._settings.merged_elements or size_bytes > _MAX_MERGED_BYTES
            if task.batched is not None and (large or slow):
                break
            if task.is_whole and self._can_merge(task, cached):
                taken.append(self._take(item, task.elements))
        return taken

    def record_duration(self, chunk: Chunk, seconds: float) -> None:
        """Record how long a chunk took."""
        self._estimates.record_duration(chunk.task, chunk.size, seconds)

    def record_overrun(self, chunk: Chunk, seconds: float) -> None:
        """Record how long a running chunk has taken already."""
        self._estimates.record_overrun(chunk.task, chunk.size, seconds)

    def charge(self, owner: str, seconds: float) -> None:
        """Charge an owner, or correct an earlier charge."""
        self._queue.charge(owner, seconds)
        self._last_active[owner] = time.monotonic()

    def remaining_s(self) -> float:
        """Return the estimated seconds that one worker would need for all waiting tasks."""
        return sum(map(self._estimates.remaining_s, self._queue))

    def _take(self, item: QueuedItem[Task], max_elements: int) -> tuple[Chunk, float]:
        task = item.item
        chunk = task.take(max_elements)
        cost = self._estimates.minimum_s(task) * max(1, chunk.size)
        self._queue.serve(item, cost)
        if not task.waiting:
            self.remove(task)
        return chunk, cost

    def _can_merge(self, task: Task, cached: Collection[str]) -> bool:
        """Whether a task may be merged with others of its key.

        A time limit applies to one request. Without parameters there is no batch axis.
        """
        if task.batched is None:
            return True
        request = task.batched.request
        if task.unmergeable or request.options.time_limit_s is not None or not request.parameters:
            return False
        factorised = task.solved_key in cached and task.solve_seconds_each > _MIN_FACTORISATION_S
        return self._settings.batching and not factorised
