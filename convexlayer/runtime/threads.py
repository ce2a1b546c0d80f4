"""The thread pool for work that releases the GIL: one a process, made at the first use."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain, pairwise
from typing import TypeVar

__all__ = ["WORKERS", "map_ranges", "parallel_for"]

Result = TypeVar("Result")

WORKERS = os.cpu_count() or 1

RANGES_A_WORKER = 4
"""Long ranges save Python's time, short ones even out the work."""

WORTH_A_THREAD_S = 5e-5
"""Work below this is done sooner than another thread has begun."""


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Keyed by process id: threads do not survive a fork."""
    return ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="convexlayer-solve")


def map_ranges(function: Callable[[range], list[Result]], count: int) -> list[Result]:
    """The results for range(count), in order, of a function that takes a part of it; on the pool if there are several.

    What the function raises is raised here.
    """
    size = max(1, -(-count // (RANGES_A_WORKER * WORKERS)))
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    if len(parts) == 1:
        return function(parts[0])
    return list(chain.from_iterable(_pool(os.getpid()).map(function, parts)))


def parallel_for(function: Callable[[int, int], None], count: int, *, seconds_per_item: float) -> None:
    """Call ``function(first, last)`` on equal parts of range(count), one of them in this thread.

    A part that no thread of the pool has begun when this one is done with its own is done here too, so this may be
    called from the pool's threads.

    Args:
        function: does the part from first to last - 1; what it raises is raised here.
        count: how much there is to do.
        seconds_per_item: how long one of them takes, roughly; there are no more parts than are worth a thread.
    """
    parts = max(1, min(WORKERS, count, int(count * seconds_per_item / WORTH_A_THREAD_S)))
    if parts == 1:
        function(0, count)
        return
    mine, *others = pairwise(count * part // parts for part in range(parts + 1))
    futures = [_pool(os.getpid()).submit(function, *other) for other in others]
    function(*mine)
    for future, other in zip(futures, others, strict=True):
        if future.cancel():
            function(*other)
        else:
            future.result()
