"""Sparse LDL' by QDLDL, one element after another, in minimum-degree order."""

from __future__ import annotations

from typing import final

import numpy as np
import qdldl

from convexlayer.linalg.base import AbstractBackend, AbstractFactor
from convexlayer.program import Array, Pattern

__all__ = ["SparseBackend"]


DIAGONAL_SHIFTS = (0.0, 1e-6, 1e-4)
"""Values added to the magnitude of every diagonal entry, in turn, until no pivot is zero. Larger values give a less
accurate factor and more refinement steps."""


@final
class SparseBackend(AbstractBackend):
    """LDL' of sparse quasi-definite matrices.

    QDLDL stores its symbolic analysis in the solver object together with the values, so a factor has one object per
    element. If rounding produces a zero pivot in a nearly singular matrix, the diagonal is increased (DIAGONAL_SHIFTS).
    """

    def init(self, pattern: Pattern) -> Pattern:
        """Return the pattern: QDLDL analyses it in each factorisation."""
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
    """The factorisation of one element, or None if all DIAGONAL_SHIFTS leave a zero pivot."""
    signs = np.where(pattern.rows == pattern.cols, np.sign(values), 0.0)
    for shift in DIAGONAL_SHIFTS:
        try:
            return qdldl.Solver(pattern.csc(values + shift * signs), upper=True)
        except RuntimeError:
            continue
    return None
