"""Kernels of single cones, which tests call alone: their machine code is kept as that of the library is."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest

from convexlayer.interior_point import lanes
from convexlayer.runtime import kernel_cache


@pytest.fixture(scope="session", autouse=True)
def _kept_machine_code(_compiled_kernels: None) -> None:
    """Without it, each test process compiles these functions for a minute."""
    if not kernel_cache.ready() or kernel_cache.folder("interior_point") is None:
        return
    from numba.core.caching import NullCache

    from convexlayer.runtime.cached_kernel import _Cache

    for found in pkgutil.walk_packages(lanes.__path__, f"{lanes.__name__}."):
        module = import_module(found.name)
        for function in vars(module).values():
            called = getattr(function, "for_python", None)
            own = called is not None and called.py_func.__module__ == module.__name__
            if own and isinstance(called._cache, NullCache) and not called.overloads:
                called._cache = _Cache(called.py_func)
