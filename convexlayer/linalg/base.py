"""The contract of a linear-system backend.

A factorisation does not need the right-hand side, and its symbolic part does not need the values, so the work comes
in three steps: ``init`` once a layer, ``factor`` once a solution, ``solve`` once a cotangent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from convexlayer.program import Array, Pattern

__all__ = ["AbstractBackend", "AbstractFactor", "BackendState"]

BackendState = Any
"""What ``init`` prepares; known only to the backend that made it, and never changed by it later."""


class AbstractFactor(ABC):
    """A factorisation of B symmetric matrices."""

    @abstractmethod
    def solve(self, rhs: Array) -> Array:
        """Solve for right-hand sides (B, N); the result is as exact as the factorisation, not refined."""


class AbstractBackend(ABC):
    """Factorises batches of symmetric quasi-definite matrices of one pattern."""

    @abstractmethod
    def init(self, pattern: Pattern) -> BackendState:
        """Symbolic work for the upper triangle (diagonal included) of a symmetric pattern (N, N)."""

    @abstractmethod
    def factor(self, state: BackendState, values: Array) -> AbstractFactor:
        """Factorise the matrices whose upper triangles have values (B, nnz)."""
