"""Target processors of the kernels, and the instruction sets of this processor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, final

__all__ = ["LEVELS", "VARIABLES", "Target", "features", "levels"]

VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
"""Environment variables that set Numba's target; Numba reads them when it is imported."""

_V2 = frozenset({"cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"})
_V3 = _V2 | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS = MappingProxyType({"x86-64-v4": _V4, "x86-64-v3": _V3, "x86-64-v2": _V2})
"""Microarchitecture levels of the x86-64 psABI, highest first, and the LLVM features that each requires."""


@final
@dataclass(frozen=True)
class Target:
    """A target processor.

    Attributes:
        name: LLVM's name of the processor or level; None for this processor.
        features: LLVM features added or removed, such as ``+avx2,-fma``; None for those of this processor.
    """

    name: str | None = None
    features: str | None = None

    @staticmethod
    def from_environment() -> Target:
        """The target set by the environment variables."""
        return Target(*map(os.environ.get, VARIABLES))

    @property
    def fixed(self) -> bool:
        """Whether the target does not depend on the processor that compiles."""
        return self.name is not None and self.features is not None

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that set this target in Numba."""
        given = zip(VARIABLES, (self.name, self.features), strict=True)
        return {name: value for name, value in given if value is not None}

    @property
    def missing_features(self) -> list[str]:
        """Features that code for this target may use and this processor lacks, as far as name and features tell."""
        wanted = {word[1:] for word in (self.features or "").split(",") if word.startswith("+")}
        wanted |= LEVELS.get(self.name or "", frozenset())
        return sorted(wanted - features()) if wanted else []

    def __str__(self) -> str:
        """LLVM's name of the processor."""
        return self.name or _host()

    @property
    def resolved(self) -> tuple[str, str]:
        """Name and features, with those of this processor for None."""
        return str(self), ",".join(sorted(features())) if self.features is None else self.features


def levels() -> list[Target]:
    """The x86-64 levels that this processor supports, highest first."""
    return [Target(name, "") for name, wanted in LEVELS.items() if wanted <= features()]


@cache
def features() -> frozenset[str]:
    """LLVM's names of the features of this processor and operating system, as LLVM detects them."""
    try:
        return frozenset(name for name, there in _binding().get_host_cpu_features().items() if there)
    except RuntimeError:  # LLVM cannot detect the features of this architecture
        return frozenset()


@cache
def _host() -> str:
    name: str = _binding().get_host_cpu_name()
    return name


def _binding() -> Any:
    """LLVM's bindings: their import takes 0.05 s, that of Numba ten times as long."""
    from llvmlite import binding

    return binding
