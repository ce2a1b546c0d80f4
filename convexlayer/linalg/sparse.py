"""Sparse LDL' by QDLDL: one element after another, ordered by minimum degree."""

from __future__ import annotations

from typing import final

import numpy as np
import qdldl

from convexlayer.linalg.base import AbstractBackend, AbstractFactor
from convexlayer.program import Array, Pattern

__all__ = ["SparseBackend"]


BUMPS = (0.0, 1e-6, 1e-4)
"""What is added to the size of every diagonal entry until no pivot is zero."""


@final
class SparseBackend(AbstractBackend):
    """LDL' of sparse quasi-definite matrices.

    QDLDL keeps its symbolic analysis inside the solver object together with the numbers, so a factor holds one object
    an element. A zero pivot, which rounding can bring about in a nearly singular matrix, costs accuracy: the diagonal
    is made larger, and refinement has more to do.
    """

    def init(self, pattern: Pattern) -> Pattern:
        """The pattern is all that is needed."""
        return pattern

    def factor(self, state: Pattern, values: Array) -> AbstractFactor:
        """Factorise each element."""
        return _SparseFactor([_factorise(state, row) for row in values])


@final
class _SparseFactor(AbstractFactor):
    def __init__(self, solvers: list[qdldl.Solver | None]) -> None:
        self.solvers = solvers

    def solve(self, rhs: Array) -> Array:
        solved = np.full_like(rhs, np.nan)
        for i, solver in enumerate(self.solvers):
            if solver is not None:
                solved[i] = solver.solve(rhs[i])
        return solved


def _factorise(pattern: Pattern, values: Array) -> qdldl.Solver | None:
    """The factorisation of one element, or None where every bump leaves a zero pivot."""
    signs = np.where(pattern.rows == pattern.cols, np.sign(values), 0.0)
    for bump in BUMPS:
        try:
            return qdldl.Solver(pattern.csc(values + bump * signs), upper=True)
        except RuntimeError:
            continue
    return None
