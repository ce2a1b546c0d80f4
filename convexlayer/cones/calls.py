"""How the cones call their compiled kernels: for NumPy arrays, where kernels are compiled, on the thread pool."""

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
    """Whether the kernels take these points."""
    return isinstance(w, np.ndarray) and kernel_cache.ready()


@cache
def compiled_kernels() -> Any:
    """Imported when it is needed: numba takes half a second."""
    return import_module("convexlayer.cones.kernels")


def in_ranges(kernel: Callable[..., None], arguments: tuple[Any, ...], *, entries: int, seconds: float = 3e-7) -> None:
    """Call ``kernel(*arguments, first, last)`` on ranges of all points.

    Args:
        kernel: does one range.
        arguments: its first arguments.
        entries: number of points.
        seconds: how long one of them takes, roughly.
    """
    parallel_for(lambda first, last: kernel(*arguments, first, last), entries, seconds_per_item=seconds)
