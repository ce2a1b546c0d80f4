"""Dense form of quadratic programs, the input of active-set methods."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convexlayer.program import Array, IndexArray, Structure

__all__ = ["Dense", "DenseLayout"]


class DenseLayout(NamedTuple):
    """Index arrays of the conversion of a structure from the standard form to the dense form and back.

    Bounded variables come first. The dense form has one bound per bounded variable, followed by the general rows.

    Attributes:
        variables: order of the variables, (n,).
        rows: general rows, equalities first, (r,).
        P_place: position of each entry of P in the dense matrix, row by row, (nnz(P),).
        A_source: indices of the entries of A in general rows.
        A_place: positions of those entries in the dense matrix, row by row.
        bound_rows: rows that bound one variable, ordered by variable, (b,).
        bound_entries: indices of their entries among the values of A, (b,).
        bound_starts: start of the rows of each bounded variable, and the end, (k + 1,).
        diagonal: indices of the diagonal entries among the values of P.
        zero: number of equalities.
    """

    variables: IndexArray
    rows: IndexArray
    P_place: IndexArray
    A_source: IndexArray
    A_place: IndexArray
    bound_rows: IndexArray
    bound_entries: IndexArray
    bound_starts: IndexArray
    diagonal: IndexArray
    zero: int

    @staticmethod
    def of(structure: Structure) -> DenseLayout:
        """Divide the rows into bounds (inequalities with one stored entry) and general rows."""
        P, A, n, zero = structure.P, structure.A, structure.n, structure.cones.zero
        single = np.bincount(A.rows, minlength=structure.m) == 1
        single[:zero] = False
        entries, others = np.flatnonzero(single[A.rows]), np.flatnonzero(~single[A.rows])
        bounded, starts = np.unique(A.cols[entries], return_index=True)
        variables = np.concatenate([bounded, np.setdiff1d(np.arange(n), bounded)])
        column, row = np.argsort(variables), np.cumsum(~single) - 1
        return DenseLayout(
            variables=variables,
            rows=np.flatnonzero(~single),
            P_place=column[P.rows] * n + column[P.cols],
            A_source=others,
            A_place=row[A.rows[others]] * n + column[A.cols[others]],
            bound_rows=A.rows[entries],
            bound_entries=entries,
            bound_starts=np.append(starts, len(entries)),
            diagonal=np.flatnonzero(P.rows == P.cols),
            zero=zero,
        )


class Dense(NamedTuple):
    """Dense quadratic programs: minimize 1/2 x'Px + q'x subject to lower <= (x of bounded variables, Ax) <= upper.

    The objective is divided by the largest diagonal entry of P, and each general row by its norm.

    Attributes:
        P: (B, n, n).
        q: (B, n).
        A: (B, r, n).
        upper: (B, k + r).
        lower: (B, k + r).
        weight: divisor of the objective, (B,).
        norms: divisors of the general rows, (B, r).
        largest: largest magnitude of the right-hand side of an equality, (B,).
    """

    P: Array
    q: Array
    A: Array
    upper: Array
    lower: Array
    weight: Array
    norms: Array
    largest: Array

    @staticmethod
    def empty(layout: DenseLayout, elements: int) -> Dense:
        """Allocate uninitialised arrays."""
        n, rows, bounded = len(layout.variables), len(layout.rows), len(layout.bound_starts) - 1
        shapes = ((n, n), (n,), (rows, n), (bounded + rows,), (bounded + rows,), (), (rows,), ())
        return Dense(*(np.empty((elements, *shape)) for shape in shapes))
