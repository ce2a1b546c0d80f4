"""Registry of the derivative modes by name."""

from __future__ import annotations

from typing import Protocol

from convexlayer.certificate import ComplementaryPoint
from convexlayer.diff.base import AbstractDifferentiator
from convexlayer.diff.diffcp_ import DiffcpDifferentiator
from convexlayer.diff.exact import RelativeChange
from convexlayer.diff.kkt_system import KKTFactor, KKTSystem
from convexlayer.diff.lane_differentiator import exact_differentiator
from convexlayer.errors import DerivativeError
from convexlayer.program import ConeProgram
from convexlayer.solution import Solution

__all__ = ["MODES", "DerivativeMode", "derivative_mode"]


class DerivativeMode(Protocol):
    """Factory of the derivative at a batch of solutions; raises DerivativeError for unsupported programs."""

    def __call__(
        self,
        system: KKTSystem,
        program: ConeProgram,
        solution: Solution,
        *,
        factor: KKTFactor | None = None,
        point: ComplementaryPoint | None = None,
        relative: RelativeChange | None = None,
    ) -> AbstractDifferentiator:
        """Create the derivative; the arguments are those of ``ExactDifferentiator``."""


MODES: dict[str, DerivativeMode] = {"exact": exact_differentiator, "diffcp": DiffcpDifferentiator}


def derivative_mode(name: str) -> DerivativeMode:
    """Look up a derivative mode.

    Raises:
        DerivativeError: no mode has this name.
    """
    if name not in MODES:
        raise DerivativeError(f"no derivative mode {name!r}; there are: {', '.join(sorted(MODES))}")
    return MODES[name]
