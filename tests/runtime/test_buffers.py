"""Buffer pool: memory of large arrays is reused, never while it is referenced, and within a limit."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from convexlayer.runtime import buffers
from convexlayer.runtime.buffers import LARGE_BYTES, MAX_UNUSED_BYTES, as_contiguous_float64, empty

LARGE = LARGE_BYTES // 8
ODD = LARGE + 12_347
"""A size that nothing else in the process allocates."""


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_reused_for_the_same_size() -> None:
    first = empty(1, ODD)
    where = address(first)
    del first
    assert address(empty(ODD)) == where
    assert address(empty(ODD + 1)) != where


@pytest.mark.parametrize("view", [lambda a: a[3:], lambda a: a.T, lambda a: a.ravel()[::2], torch.from_numpy])
def test_memory_is_not_reused_while_a_view_exists(view: object) -> None:
    array = empty(7, ODD)
    array[:] = 1.0
    seen = view(array)  # type: ignore[operator]
    del array
    gc.collect()
    other = empty(7, ODD)
    other[:] = 2.0
    assert bool((seen == 1.0).all())


def test_shapes_and_flags() -> None:
    for shape in ((), (0,), (3, 0, 2), (2, 3), (2, LARGE), (LARGE,)):
        array = empty(*shape)
        assert array.shape == shape
        assert array.dtype == np.float64
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_small_arrays_are_allocated_by_numpy() -> None:
    assert empty(LARGE - 1).base is None
    assert empty(LARGE).base is not None


def test_unused_memory_is_limited() -> None:
    kept = buffers._BlockPool()
    blocks = [np.empty(MAX_UNUSED_BYTES // 32) for _ in range(6)]
    alive = [weakref.ref(block) for block in blocks]
    while blocks:
        kept.give(blocks.pop(0))
    gc.collect()
    assert sum(ref() is not None for ref in alive) == 4
    kept.give(np.empty(2 * MAX_UNUSED_BYTES // 8))
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_threads_never_share_memory() -> None:
    def work(number: int) -> bool:
        for _ in range(50):
            array = empty(LARGE + 5)
            array[:] = number
            if not np.all(array == number):
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(8)))


FORK = """
import os, threading
from convexlayer.runtime import buffers
arrays = [buffers.empty(2**20)]
held, over = threading.Event(), threading.Event()

def hold():
    with buffers._block_pool(os.getpid())._lock:
        held.set()
        over.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    try:
        arrays.clear()
        buffers.empty(2**20)[:] = 1.0
    except BaseException:
        os._exit(1)
    os._exit(0)
ended = os.waitpid(child, 0)[1]
over.set()
assert ended == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_child_does_not_wait_for_a_lock_of_its_parent() -> None:
    """A thread holds the lock at the fork; the child frees an array of the parent and allocates one."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=600)


def test_as_contiguous_float64_copies_only_if_needed() -> None:
    array = np.ones((4, 3))
    assert as_contiguous_float64(array) is array
    for other in (array.T, array[:, :2], array.astype(np.float32), np.broadcast_to(array, (2, 4, 3))):
        made = as_contiguous_float64(other)
        np.testing.assert_array_equal(made, other)
        assert made.flags.c_contiguous
        assert made.flags.writeable
        assert made.dtype == np.float64
