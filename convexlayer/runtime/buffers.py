"""Large arrays whose memory is used again.

A batch needs tens of megabytes for a few milliseconds. The C library gives them back to the system after each call, and
the system hands them out again page by page, zeroed: for a batch of dense programs that took as long as the work
itself. So what a large array leaves is kept for the next one of its size, up to a limit.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from functools import cache
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_contiguous_float64", "empty"]

LARGE_BYTES = 2**18
"""Arrays below this size come from NumPy: the C library keeps what they leave."""

KEPT_BYTES = 2**26
"""Memory kept for later, over all sizes; the sizes that were not asked for the longest go first."""


@final
class _BlockPool:
    """Blocks of memory that nobody uses."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, list[NDArray[np.float64]]] = OrderedDict()
        self._bytes = 0
        # A block may come back while this thread is in here: the collector runs where it likes.
        self._lock = threading.RLock()

    def take(self, size: int) -> NDArray[np.float64]:
        """A block of so many numbers."""
        with self._lock:
            blocks = self._blocks.get(size)
            if blocks:
                self._blocks.move_to_end(size)
                self._bytes -= 8 * size
                return blocks.pop()
        return np.empty(size)

    def give(self, block: NDArray[np.float64]) -> None:
        """Keep a block."""
        with self._lock:
            self._blocks.setdefault(block.size, []).append(block)
            self._blocks.move_to_end(block.size)
            self._bytes += block.nbytes
            while self._bytes > KEPT_BYTES:
                size = next(iter(self._blocks))
                if self._blocks[size]:
                    self._bytes -= self._blocks[size].pop().nbytes
                else:
                    del self._blocks[size]


@cache
def _block_pool(process: int) -> _BlockPool:
    """Keyed by process id: a lock that another thread holds does not survive a fork."""
    return _BlockPool()


@final
class _Loan:
    """A block in use: the base of the array that it was made for, and so of every view of that."""

    def __init__(self, size: int) -> None:
        self._process = os.getpid()
        self._from = _block_pool(self._process)
        self._block = self._from.take(size)
        self.__array_interface__: dict[str, Any] = self._block.__array_interface__

    def __del__(self) -> None:
        if os.getpid() == self._process:  # else it is a fork's copy, and the lock may be held by nobody who is here
            self._from.give(self._block)


def empty(*shape: int) -> NDArray[np.float64]:
    """An array of this shape with arbitrary entries, as ``numpy.empty``; its memory is kept when it is gone."""
    size = math.prod(shape)
    if 8 * size < LARGE_BYTES:
        return np.empty(shape)
    array: NDArray[np.float64] = np.asarray(_Loan(size)).reshape(shape)
    return array


def as_contiguous_float64(values: NDArray[Any]) -> NDArray[np.float64]:
    """The array, or a copy of it, as compiled kernels take it: float64, contiguous and writable."""
    flags = values.flags
    if flags.c_contiguous and flags.writeable and values.dtype == np.float64:
        return values
    return np.require(values, np.float64, ["C", "W"])
