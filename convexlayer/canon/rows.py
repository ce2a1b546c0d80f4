"""Presolve of rows: redundant rows, duplicate rows, and bounds written with an epigraph variable.

All three are one operation: the new rows are C times the old ones with C >= 0, where columns of A that became zero are
dropped. Duals of the old rows are y = C'y_new.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import scipy.sparse as sp

from convexlayer.canon.affine_matrix import AffineMatrix
from convexlayer.canon.tracked_matrix import TrackedMatrix, columns_of_identity, tracked
from convexlayer.cones import product_cone
from convexlayer.program import Cones, IndexArray
from convexlayer.solution import BoolArray

__all__ = ["drop_bound_variables", "drop_redundant_rows"]


def drop_redundant_rows(A: AffineMatrix, b: TrackedMatrix, cones: Cones, observed: BoolArray) -> sp.csr_matrix:
    """Compute the matrix C that drops rows 0 + s = b satisfied for all parameters, and merges identical rows.

    Only the sum of the duals of identical rows is unique. C averages the rows, so that all get the same dual, as in the
    minimum-norm dual solution and at the analytic centre. Rows without unique duals are kept if an output depends on
    their duals, so that the derivative report can flag the output as not unique.

    Args:
        A: constraint matrix.
        b: [slopes, constant] of the right-hand side.
        cones: cones of the program; only zero and nonnegative rows are reduced.
        observed: mask (m,) of the rows on whose duals some output depends.
    """
    linear = cones.zero + cones.nonnegative
    everything = _as_vectors(A, b)
    indptr, indices, data = everything.indptr, everything.indices, everything.data
    constant, _ = b.column(b.shape[1] - 1)
    fixed = ~A.constant.used_rows & (b.varying_entries == 0)
    fixed[A.rows] = False
    row = np.arange(A.shape[0])
    inactive = (constant > 0.0) & (cones.zero <= row) & (row < linear)
    empty = fixed & (inactive | ((constant == 0.0) & (row < linear) & ~observed))
    classes: dict[tuple[bool, bytes, bytes], list[int]] = defaultdict(list)
    for i in np.flatnonzero(~empty[:linear]).tolist():
        part = slice(indptr[i], indptr[i + 1])
        classes[i < cones.zero, indices[part].tobytes(), data[part].tobytes()].append(i)
    groups = [[i] for i in range(linear, A.shape[0])]
    for group in classes.values():
        groups += [[i] for i in group] if np.any(observed[group]) else [group]
    groups.sort()
    new = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    old = np.array([i for group in groups for i in group], dtype=np.int64)
    share = 1.0 / np.bincount(new, minlength=len(groups))[new]
    return sp.csr_matrix((share, (new, old)), shape=(len(groups), A.shape[0]))


def _as_vectors(A: AffineMatrix, b: TrackedMatrix) -> sp.csr_matrix:
    """Flatten each row of [A b], as a function of the features, to one sparse vector of its coefficients."""
    pattern, coefficients = A.entries()
    width = b.shape[1]
    rows = np.concatenate([pattern.rows[coefficients.rows], b.rows])
    last = A.shape[1] * width + b.indices  # a product of two sizes may exceed 32 bits
    cols = np.concatenate([pattern.cols[coefficients.rows] * width + coefficients.indices, last])
    values = np.concatenate([coefficients.data, b.data])
    vectors = sp.coo_matrix((values, (rows, cols)), shape=(A.shape[0], (A.shape[1] + 1) * width)).tocsr()
    vectors.eliminate_zeros()
    vectors.sort_indices()
    return vectors


def drop_bound_variables(A: AffineMatrix, free: BoolArray, cones: Cones) -> tuple[sp.csr_matrix, IndexArray]:
    """Eliminate epigraph variables t from constraints such as -t <= u <= t, or norm(u) <= t, with t <= c.

    Fourier-Motzkin elimination: a variable without cost that has one upper bound attains it without loss of generality.
    The bound is added to each row of the opposite sign and dropped; the same holds for one lower bound, with signs
    reversed. Rows of second-order and other curved cones take part if the cone contains every point of the cone with a
    larger entry in that row. Variables whose elimination would fill A are kept.

    Args:
        A: constraint matrix.
        free: mask (n,) of the variables without cost on which no output depends.
        cones: cones of the program.

    Returns:
        The matrix C, and the remaining columns of A.
    """
    combination = sp.identity(A.shape[0], format="csr")
    columns, growing = np.arange(A.shape[1]), product_cone(cones).recession_rows
    stop = cones.zero + cones.nonnegative
    while True:
        step, bound_columns, kept_rows = _bound_variables(A, free, cones.zero, stop, growing)
        if not len(bound_columns):
            return combination, columns
        kept = np.delete(np.arange(A.shape[1]), bound_columns)
        A = A.transposed.times(tracked(step.T.tocsr())).transposed
        A = A.times(columns_of_identity(A.shape[1], kept))
        combination, columns, free = step @ combination, columns[kept], free[kept]
        growing, stop = growing[kept_rows], int(np.sum(kept_rows < stop))


def _bound_variables(
    A: AffineMatrix, free: BoolArray, start: int, stop: int, growing: BoolArray
) -> tuple[sp.csr_matrix, IndexArray, IndexArray]:
    """One pass of the elimination, in which each row is used at most once; bounds are rows in [start, stop).

    Returns:
        The matrix C, the eliminated columns, and the remaining rows.
    """
    by_col, by_row = A.constant.transposed, A.support
    candidate = free.copy()
    candidate[A.cols] = False
    candidate[np.repeat(np.arange(A.shape[1]), np.diff(by_col.indptr))[~growing[by_col.indices]]] = False
    candidate &= np.diff(by_col.indptr) > 1
    taken = np.zeros(A.shape[0], dtype=bool)
    bound_columns: list[int] = []
    dropped: list[int] = []
    additions: list[tuple[int, int, float]] = []
    for t in np.flatnonzero(candidate).tolist():
        part = slice(by_col.indptr[t], by_col.indptr[t + 1])
        rows, values = by_col.indices[part], by_col.data[part]
        signs = (values > 0, values < 0)
        bounds = [k for sign in signs if np.sum(sign) == 1 and start <= rows[k := int(np.argmax(sign))] < stop]
        if not bounds or np.any(taken[rows]):
            continue
        bound = bounds[0]
        others = np.flatnonzero(values * values[bound] < 0)
        if not len(others):
            continue
        u = int(rows[bound])
        support = _columns(by_row, u)
        growth = sum(len(np.setdiff1d(support, _columns(by_row, r))) - 1 for r in rows[others].tolist())
        if growth > len(support):
            continue
        taken[rows] = True
        bound_columns.append(t)
        dropped.append(u)
        additions += [(int(rows[k]), u, -float(values[k] / values[bound])) for k in others.tolist()]
    step, kept = sp.identity(A.shape[0], format="lil"), np.delete(np.arange(A.shape[0]), dropped)
    for r, u, weight in additions:
        step[r, u] = weight
    return step.tocsr()[kept], np.array(bound_columns, dtype=np.int64), kept


def _columns(support: sp.csr_matrix, row: int) -> IndexArray:
    columns: IndexArray = support.indices[support.indptr[row] : support.indptr[row + 1]]
    return columns
