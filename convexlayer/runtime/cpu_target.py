"""Processors that machine code is made for, and what the one that runs this can do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, final

__all__ = ["LEVELS", "VARIABLES", "Target", "features", "levels"]

VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
"""By which numba is told what to compile for, before it is imported."""

_V2 = frozenset({"cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"})
_V3 = _V2 | {"avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

LEVELS = MappingProxyType({"x86-64-v4": _V4, "x86-64-v3": _V3, "x86-64-v2": _V2})
"""Levels of the x86-64 psABI, the highest first, and the instructions that each needs, in LLVM's words."""


@final
@dataclass(frozen=True)
class Target:
    """What machine code is made for.

    Attributes:
        name: of a processor, in LLVM's words; None is the one that runs this.
        features: what it can do beyond its name, or not, such as ``+avx2,-fma``; None is what this one can do.
    """

    name: str | None = None
    features: str | None = None

    @staticmethod
    def asked() -> Target:
        """What the environment asks for."""
        return Target(*map(os.environ.get, VARIABLES))

    @property
    def fixed(self) -> bool:
        """Whether it is the same wherever the code is made."""
        return self.name is not None and self.features is not None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell numba."""
        given = zip(VARIABLES, (self.name, self.features), strict=True)
        return {name: value for name, value in given if value is not None}

    @property
    def lacking(self) -> list[str]:
        """Instructions that such code may use and this processor has not, as far as names and features tell."""
        wanted = {word[1:] for word in (self.features or "").split(",") if word.startswith("+")}
        wanted |= LEVELS.get(self.name or "", frozenset())
        return sorted(wanted - features()) if wanted else []

    def __str__(self) -> str:
        """Its name."""
        return self.name or _host()

    @property
    def resolved(self) -> tuple[str, str]:
        """Name and features, those of this processor where none are given."""
        return str(self), ",".join(sorted(features())) if self.features is None else self.features


def levels() -> list[Target]:
    """The levels of this processor, the highest first."""
    return [Target(name, "") for name, wanted in LEVELS.items() if wanted <= features()]


@cache
def features() -> frozenset[str]:
    """What this processor and its system can do, in LLVM's words: as LLVM finds it, which is what it compiles for."""
    try:
        return frozenset(name for name, there in _binding().get_host_cpu_features().items() if there)
    except RuntimeError:  # of a kind that LLVM cannot look at
        return frozenset()


@cache
def _host() -> str:
    name: str = _binding().get_host_cpu_name()
    return name


def _binding() -> Any:
    """LLVM, at the cost of 0.05 s; numba takes ten times as long."""
    from llvmlite import binding

    return binding
