"""The thread pool for solvers that release the GIL: one a process, made at the first use."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain
from typing import TypeVar

__all__ = ["map_ranges"]

Result = TypeVar("Result")

WORKERS = os.cpu_count() or 1

RANGES_A_WORKER = 4
"""Long ranges save Python's time, short ones even out the work."""


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
