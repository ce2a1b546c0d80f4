"""Pool of memory blocks for large arrays.

A batch needs tens of megabytes for a few milliseconds. The C library returns such blocks to the system after each call,
and the system zeroes every page when it hands them out again: for a batch of dense programs that took as long as the
computation. So the block of a large array is reused for the next array of its size, up to a limit of unused memory.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import cache
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_contiguous_float64", "contiguous", "empty"]

LARGE_BYTES = 2**18
"""Arrays below this size (256 KiB) are allocated by NumPy: the C library reuses such blocks itself."""

MAX_UNUSED_BYTES = 2**26
"""Maximum memory of unused blocks, 64 MiB over all sizes; the least recently used sizes are released first."""


@final
class _BlockPool:
    """Unused blocks of memory, by size."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, list[NDArray[np.float64]]] = OrderedDict()
        self._bytes = 0
        # Reentrant: the garbage collector may return a block while this thread holds the lock.
        self._lock = threading.RLock()

    def take(self, size: int) -> NDArray[np.float64]:
        """Take a block of ``size`` doubles from the pool, or allocate one."""
        with self._lock:
            blocks = self._blocks.get(size)
            if blocks:
                self._blocks.move_to_end(size)
                self._bytes -= 8 * size
                return blocks.pop()
        return np.empty(size)

    def give(self, block: NDArray[np.float64]) -> None:
        """Return a block to the pool."""
        with self._lock:
            self._blocks.setdefault(block.size, []).append(block)
            self._blocks.move_to_end(block.size)
            self._bytes += block.nbytes
            while self._bytes > MAX_UNUSED_BYTES:
                size = next(iter(self._blocks))
                if self._blocks[size]:
                    self._bytes -= self._blocks[size].pop().nbytes
                else:
                    del self._blocks[size]


@cache
def _block_pool(process: int) -> _BlockPool:
    """The pool of this process, keyed by process id: after a fork the parent's lock may be held forever."""
    return _BlockPool()


@final
class _PooledBlock:
    """A block in use: the base object of its array and of every view of it, so that it outlives them."""

    def __init__(self, size: int) -> None:
        self._process = os.getpid()
        self._from = _block_pool(self._process)
        self._block = self._from.take(size)
        self.__array_interface__: dict[str, Any] = self._block.__array_interface__

    def __del__(self) -> None:
        if os.getpid() == self._process:  # in a forked child the lock may be held by a thread of the parent
            self._from.give(self._block)


def empty(*shape: int) -> NDArray[np.float64]:
    """An uninitialised float64 array, as ``numpy.empty``; a large one returns its memory to the pool."""
    size = math.prod(shape)
    if 8 * size < LARGE_BYTES:
        return np.empty(shape)
    array: NDArray[np.float64] = np.asarray(_PooledBlock(size)).reshape(shape)
    return array


def as_contiguous_float64(values: NDArray[Any]) -> NDArray[np.float64]:
    """The array as kernels require it, float64, contiguous and writable; a copy only if it is not."""
    flags = values.flags
    if flags.c_contiguous and flags.writeable and values.dtype == np.float64:
        return values
    return np.require(values, np.float64, ["C", "W"])


def contiguous(arrays: Iterable[NDArray[Any]]) -> tuple[NDArray[np.float64], ...]:
    """``as_contiguous_float64`` of each array."""
    found: list[NDArray[np.float64]] = []
    for values in arrays:  # not by calls: a kernel of a small problem takes less time than a few of them
        flags = values.flags
        if flags.c_contiguous and flags.writeable and values.dtype == np.float64:
            found.append(values)
        else:
            found.append(as_contiguous_float64(values))
    return tuple(found)
