"""The dense form of quadratic programs that active-set methods take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convexlayer.program import Array, IndexArray, Structure

__all__ = ["Dense", "Places"]


class Places(NamedTuple):
    """Where everything in the standard form of a structure stands in the dense form.

    Bounded variables come first. The dense form has a row for each of them, which counts as a bound, and then the rows
    that are no bounds.

    Attributes:
        variables: the order of the variables, (n,).
        rows: the rows that are no bounds, equalities first, (r,).
        P_place: where the entries of P go in the dense matrix, row by row, (nnz(P),).
        A_source: entries of A in the other rows ...
        A_place: ... and where they go.
        bound_rows: the rows that bound one variable, ordered by it, (b,).
        bound_entries: their entries among the values of A, (b,).
        bound_starts: where the rows of each bounded variable start, and their end, (k + 1,).
        diagonal: the diagonal's entries among the values of P.
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
    def of(structure: Structure) -> Places:
        """Divide the rows into bounds, which are inequalities with one stored entry, and others."""
        P, A, n, zero = structure.P, structure.A, structure.n, structure.cones.zero
        single = np.bincount(A.rows, minlength=structure.m) == 1
        single[:zero] = False
        entries, others = np.flatnonzero(single[A.rows]), np.flatnonzero(~single[A.rows])
        bounded, starts = np.unique(A.cols[entries], return_index=True)
        variables = np.concatenate([bounded, np.setdiff1d(np.arange(n), bounded)])
        column, row = np.argsort(variables), np.cumsum(~single) - 1
        return Places(
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

    The objective is divided by the largest diagonal entry of P, and the rows by their norms.

    Attributes:
        P: (B, n, n).
        q: (B, n).
        A: (B, r, n).
        upper: (B, k + r).
        lower: (B, k + r).
        weight: what the objective was divided by, (B,).
        norms: what the rows were divided by, (B, r).
        largest: largest size of the right-hand side of an equality, (B,).
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
    def empty(places: Places, elements: int) -> Dense:
        """With arbitrary entries."""
        n, rows, bounded = len(places.variables), len(places.rows), len(places.bound_starts) - 1
        shapes = ((n, n), (n,), (rows, n), (bounded + rows,), (bounded + rows,), (), (rows,), ())
        return Dense(*(np.empty((elements, *shape)) for shape in shapes))
