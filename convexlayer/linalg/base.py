"""Interface of a linear-system backend.

The symbolic factorisation depends on the pattern alone, the numeric one on the values, and neither on the right-hand
side. So there are three steps: ``init`` once per layer, ``factor`` once per solution, ``solve`` once per cotangent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from convexlayer.program import Array, Pattern

__all__ = ["AbstractBackend", "AbstractFactor", "BackendState"]

BackendState = Any
"""The result of ``init``: opaque to callers, and immutable."""


class AbstractFactor(ABC):
    """A factorisation of B symmetric matrices."""

    @abstractmethod
    def solve(self, rhs: Array) -> Array:
        """Solve for right-hand sides (B, N), without iterative refinement."""


class AbstractBackend(ABC):
    """Factorises batches of symmetric quasi-definite matrices of one sparsity pattern."""

    @abstractmethod
    def init(self, pattern: Pattern) -> BackendState:
        """Symbolic factorisation of a symmetric pattern (N, N), given by its upper triangle with the diagonal."""

    @abstractmethod
    def factor(self, state: BackendState, values: Array) -> AbstractFactor:
        """Factorise the matrices whose upper triangles have values (B, nnz)."""
