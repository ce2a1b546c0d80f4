"""Thread pool for functions that release the GIL: one per process, created on first use."""

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
"""Number of threads of the pool."""

RANGES_PER_WORKER = 4
"""Ranges per worker of ``map_ranges``: longer ranges have less overhead, shorter ones balance the load better."""

MIN_WORK_PER_THREAD_S = 5e-5
"""Smallest work per thread, in seconds: about the time that it takes to start work on another thread."""


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The pool of this process, keyed by process id because threads do not survive a fork."""
    return ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="convexlayer-solve")


def map_ranges(function: Callable[[range], list[Result]], count: int) -> list[Result]:
    """Apply a function to consecutive parts of range(count), on the pool, and concatenate the results.

    Raises:
        Exception: any exception of the function.
    """
    size = max(1, -(-count // (RANGES_PER_WORKER * WORKERS)))
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    if len(parts) == 1:
        return function(parts[0])
    return list(chain.from_iterable(_pool(os.getpid()).map(function, parts)))


def parallel_for(function: Callable[[int, int], None], count: int, *, seconds_per_item: float) -> None:
    """Call ``function(first, last)`` on equal parts of range(count), one of them in this thread.

    When this thread has finished its part, it also runs the parts that no pool thread has started, so that calls from
    pool threads cannot deadlock.

    Args:
        function: processes the items first ... last - 1; its exceptions propagate.
        count: number of items.
        seconds_per_item: rough time per item; every part takes at least MIN_WORK_PER_THREAD_S by this estimate.
    """
    parts = max(1, min(WORKERS, count, int(count * seconds_per_item / MIN_WORK_PER_THREAD_S)))
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
