"""The thread pool for solvers that release the GIL: one a process, made at the first use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

__all__ = ["map_elements"]

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Keyed by process id: threads do not survive a fork."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="convexlayer-solve")


def map_elements(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to every item, on the pool if there is more than one; order is kept, errors propagate."""
    listed = list(items)
    if len(listed) == 1:
        return [function(listed[0])]
    return list(_pool(os.getpid()).map(function, listed))
