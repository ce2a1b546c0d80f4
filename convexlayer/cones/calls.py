"""Calls of the cones' kernels, on the thread pool; only for NumPy arrays, and only if kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from convexlayer.cones.base import Array
from convexlayer.runtime import kernel_cache
from convexlayer.runtime.threads import parallel_for

__all__ = ["compiled_kernels", "in_ranges", "is_compiled"]


def is_compiled(w: Array) -> bool:
    """Whether the kernels are used for these points."""
    return isinstance(w, np.ndarray) and kernel_cache.ready()


@cache
def compiled_kernels() -> Any:
    """The kernel module, imported on demand because importing Numba takes half a second."""
    return import_module("convexlayer.cones.kernels")


def in_ranges(kernel: Callable[..., None], arguments: tuple[Any, ...], *, entries: int, seconds: float = 3e-7) -> None:
    """Call ``kernel(*arguments, first, last)`` on ranges of points in parallel.

    Args:
        kernel: processes the points first ... last - 1.
        arguments: its other arguments.
        entries: number of points.
        seconds: rough time per point, which determines the number of threads.
    """
    parallel_for(lambda first, last: kernel(*arguments, first, last), entries, seconds_per_item=seconds)
