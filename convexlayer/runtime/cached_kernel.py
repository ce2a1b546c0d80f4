"""Decorator of the kernels that are called from Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from convexlayer.runtime import kernel_cache
from convexlayer.runtime.file_lock import locked

__all__ = ["cached_kernel"]


def cached_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel that releases the GIL, and cache its machine code in the folder of its part of the library.

    The functions that the kernel calls are compiled into it. Numba's cache key covers only the function's own file;
    here the folder name is a hash of all sources (see ``kernel_cache``).
    """
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    part = function.__module__.split(".")[1]
    if kernel_cache.folder(part) is not None:
        dispatcher._cache = _Cache(function)
    return dispatcher


class _Locator(_CacheLocator):
    """Numba cache locator: the cache folder of a part, whose name serves as the source stamp."""

    def __init__(self, part: str) -> None:
        self._folder = kernel_cache.folder(part)

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return str(self._folder)

    def get_disambiguator(self) -> str:
        return "entry"

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Locator:
        return cls(function.__module__.split(".")[1])


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(FunctionCache):
    _impl_class = _Implementation

    def save_overload(self, signature: Any, result: Any) -> None:
        """Save machine code, while no other process changes the index of its part's folder."""
        folder = Path(self.cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True):
            super().save_overload(signature, result)
