"""Settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of a run; every part has default solvers and ranges.

    Attributes:
        draws: number of draws per solver, over all families and ranges of a part.
        solvers: names of solvers; empty for the part's default.
        ranges: values of k; empty for the part's default.
        only: substrings of names of families to run; empty for all.
        seed: seed of the draws.
        batch: maximum batch size.
        presolve: argument of ``canonicalize``.
        options: solver options.
        show: number of silent errors to print per cell.
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
        """Whether to run the family with this name."""
        return not self.only or any(part in name for part in self.only)
