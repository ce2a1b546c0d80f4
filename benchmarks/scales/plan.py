"""What to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure; every part has its own solvers and ranges unless they are given.

    Attributes:
        draws: of all families and ranges together, with each solver.
        solvers: by name.
        ranges: each k.
        only: parts of names of families; all unless given.
        seed: of the draws.
        batch: elements solved together, at most.
        presolve: as ``canonicalize`` has it.
        options: of every solve.
        show: silent draws of a cell to write out.
    """

    draws: int = 5000
    solvers: tuple[str, ...] = ()
    ranges: tuple[float, ...] = ()
    only: tuple[str, ...] = ()
    seed: int = 0
    batch: int = 128
    presolve: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    show: int = 0

    def wants(self, name: str) -> bool:
        """Whether a family of this name is asked for."""
        return not self.only or any(part in name for part in self.only)
