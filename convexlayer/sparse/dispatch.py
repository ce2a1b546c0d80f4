"""Calls of the kernels of this package on the thread pool."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from convexlayer.runtime.threads import parallel_for

__all__ = ["kernels", "run"]

ENTRY_S = 1e-9
"""Cost model for splitting a batch among threads: seconds per entry and element (rough measurement)."""


def run(kernel: Callable[..., None], arguments: tuple[Any, ...], batch: int, entries: int) -> None:
    """Call ``kernel(*arguments, first, last)`` on ranges of a batch, in parallel.

    Args:
        kernel: processes the elements first ... last - 1.
        arguments: its other arguments.
        batch: number of elements.
        entries: number of entries that an element reads, which determines the number of threads.
    """
    if batch == 1:
        kernel(*arguments, 0, 1)
    else:
        parallel_for(lambda first, last: kernel(*arguments, first, last), batch, seconds_per_item=ENTRY_S * entries)


@cache
def kernels() -> Any:
    """The kernel module, imported on demand because importing Numba takes half a second."""
    return import_module("convexlayer.sparse.kernels")
