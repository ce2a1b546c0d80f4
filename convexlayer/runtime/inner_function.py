"""Decorator of the functions that only kernels call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from numba import jit
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher

__all__ = ["inner_function"]

OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy"}
WITHOUT_WRAPPERS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def inner_function(function: Callable[..., Any] | None = None, *, counts_references: bool = True) -> Any:
    """Compile a function into the kernels that call it, without machine code of its own.

    Numba's ``njit`` would optimise each function together with all that it calls, generate its machine code and a
    wrapper for calls from Python, and repeat that for each function that calls it. An inner function is only translated
    to LLVM's intermediate language; LLVM optimises it once, as part of the kernel.

    Args:
        function: the function; None returns the decorator.
        counts_references: whether it may allocate arrays; Numba does not document this option, ``_nrt``.
    """
    if function is None:
        return partial(inner_function, counts_references=counts_references)
    options = OPTIONS | WITHOUT_WRAPPERS | ({} if counts_references else {"_nrt": False})
    return _InnerFunction(function, targetoptions=options, pipeline_class=_Translator)


class _InnerFunction(CPUDispatcher):  # type: ignore[misc]
    """Numba's dispatcher of an inner function."""

    @cached_property
    def for_python(self) -> Any:
        """The same function with machine code of its own, which calls from Python use; only tests make such calls."""
        return jit(**OPTIONS)(self.py_func)

    def _compile_for_args(self, *arguments: Any, **named: Any) -> Any:
        return self.for_python._compile_for_args(*arguments, **named)

    def add_overload(self, result: Any) -> None:
        """Register a translation for calls from other functions, but not for calls from Python."""
        self.overloads[tuple(result.signature.args)] = result


class _Translator(Compiler):  # type: ignore[misc]
    """Numba's compiler up to LLVM's intermediate language."""

    def compile_extra(self, function: Callable[..., Any]) -> Any:
        context = self.state.targetctx
        self.state.library = _Translation(context.codegen(), function.__qualname__)
        context.get_executable = lambda *_: object()  # the identity of the function for its callers
        return super().compile_extra(function)


class _Translation(JITCodeLibrary):  # type: ignore[misc]
    """Code of an inner function in LLVM's intermediate language."""

    def finalize(self) -> None:
        for library in self._linking_libraries:
            if hasattr(library, "_reload_init"):  # not before Numba 0.62
                self._reload_init.update(library._reload_init)
        self._finalized = True

    def _get_module_for_linking(self) -> Any:
        """The code with that of all functions that it calls, for a kernel that calls it."""
        module, found, waiting = self._own_module().clone(), {self}, [self]
        while waiting:
            for library in waiting.pop()._linking_libraries:
                if library in found:
                    continue
                found.add(library)
                if isinstance(library, _Translation):
                    waiting.append(library)
                    module.link_in(library._own_module(), preserve=True)
                else:
                    module.link_in(library._get_module_for_linking(), preserve=True)
        return module

    def _own_module(self) -> Any:
        return super()._get_module_for_linking()
