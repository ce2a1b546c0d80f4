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
    from numba.core.dispatcher import Dispatcher

    from convexlayer.runtime.cached_kernel import _Cache

    for found in pkgutil.iter_modules(lanes.__path__):
        module = import_module(f"{lanes.__name__}.{found.name}")
        for function in vars(module).values():
            own = isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__
            if own and isinstance(function._cache, NullCache) and not function.overloads:
                function._cache = _Cache(function.py_func)
