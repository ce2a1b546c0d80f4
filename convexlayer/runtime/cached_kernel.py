"""Kernels that Python calls: compiled once, and kept on disk where ``compiled`` says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from convexlayer.runtime import kernel_cache

__all__ = ["cached_kernel"]


def cached_kernel(function: Callable[..., Any]) -> Any:
    """Decorate a kernel of a part: compiled without the GIL, its machine code kept in the part's folder.

    Everything that it calls is compiled into it. numba's own cache looks at the function's own file alone; here the
    folder stands for the state of all sources.
    """
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    part = function.__module__.split(".")[1]
    if kernel_cache.folder(part) is not None:
        dispatcher._cache = _Cache(function)
    return dispatcher


class _Locator(_CacheLocator):
    """The part's folder."""

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
