"""Sparse LDL' by QDLDL: one element after another, ordered by minimum degree."""

from __future__ import annotations

from typing import final

import numpy as np
import qdldl

from convexlayer.linalg.base import AbstractBackend, AbstractFactor
from convexlayer.program import Array, Pattern

__all__ = ["SparseBackend"]


@final
class SparseBackend(AbstractBackend):
    """LDL' of sparse quasi-definite matrices.

    QDLDL keeps its symbolic analysis inside the solver object together with the numbers, so a factor holds one object
    an element. Systems must be regularised: a zero pivot ends the factorisation.
    """

    def init(self, pattern: Pattern) -> Pattern:
        """The pattern is all that is needed."""
        return pattern

    def factor(self, state: Pattern, values: Array) -> AbstractFactor:
        """Factorise each element."""
        return _SparseFactor([qdldl.Solver(state.csc(row), upper=True) for row in values])


@final
class _SparseFactor(AbstractFactor):
    def __init__(self, solvers: list[qdldl.Solver]) -> None:
        self.solvers = solvers

    def solve(self, rhs: Array) -> Array:
        return np.stack([solver.solve(row) for solver, row in zip(self.solvers, rhs, strict=True)])
