"""Sparse matrices with a running bound on the magnitude of the terms in each entry, to detect cancellation.

After complete cancellation an entry holds a rounding error of the order of eps times the absolute values of all terms
summed into it. An entry is compared with this bound only, not with other entries, so which entries count as zero does
not depend on the units of variables and constraints.

The operations work on the arrays of the compressed rows, with SciPy's own kernels for the products: a matrix of SciPy
costs more to construct than most of these operations, and presolve makes hundreds of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from scipy.sparse._sparsetools import csr_matmat, csr_matmat_maxnnz, csr_tocsc

from convexlayer.program import Array, IndexArray
from convexlayer.solution import BoolArray

__all__ = [
    "CANCELLED",
    "TrackedMatrix",
    "add",
    "columns_of_identity",
    "from_entries",
    "identity",
    "multiply",
    "nothing",
    "stacked",
    "subtract",
    "tracked",
]

CANCELLED = 64 * float(np.finfo(float).eps)
"""An entry at most this large relative to the sum of its terms' absolute values counts as zero. The factor 64 allows
for the rounding errors of sums of several terms."""


@dataclass(frozen=True, eq=False)
class TrackedMatrix:
    """A sparse matrix in compressed rows, and the sums of the absolute values of the terms in its entries.

    Attributes:
        shape: (rows, columns).
        indptr: where each row starts in the other arrays, (rows + 1,).
        indices: column of each entry, (entries,).
        data: value of each entry, (entries,).
        bounds: sum of the absolute values of each entry's terms, at least abs(data), (entries,).
    """

    shape: tuple[int, int]
    indptr: IndexArray
    indices: IndexArray
    data: Array
    bounds: Array

    @cached_property
    def values(self) -> sp.csr_matrix:
        """The matrix, in CSR."""
        return sp.csr_matrix((self.data, self.indices, self.indptr), shape=self.shape)

    @cached_property
    def rows(self) -> IndexArray:
        """Row of each entry, (entries,)."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int64), np.diff(self.indptr))

    @cached_property
    def transposed(self) -> TrackedMatrix:
        """The transpose."""
        height, width = self.shape
        indptr, indices = np.empty(width + 1, dtype=np.int64), np.empty_like(self.indices)
        data, bounds = np.empty_like(self.data), np.empty_like(self.bounds)
        for given, moved in ((self.data, data), (self.bounds, bounds)):
            csr_tocsc(height, width, self.indptr, self.indices, given, indptr, indices, moved)
        return TrackedMatrix((width, height), indptr, indices, data, bounds)

    @property
    def used_columns(self) -> BoolArray:
        """Mask (columns,) of the columns that have entries."""
        used = np.zeros(self.shape[1], dtype=bool)
        used[self.indices] = True
        return used

    @property
    def used_rows(self) -> BoolArray:
        """Mask (rows,) of the rows that have entries."""
        return np.diff(self.indptr) > 0

    @property
    def varying_entries(self) -> IndexArray:
        """Of affine vectors [slopes, constant]: number of slopes in each row, (rows,)."""
        kept = self.indices < self.shape[1] - 1
        return np.bincount(self.rows[kept], minlength=self.shape[0])

    def of_rows(self, rows: IndexArray) -> TrackedMatrix:
        """Select rows."""
        counts = np.diff(self.indptr)[rows]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        place = np.repeat(self.indptr[rows] - indptr[:-1], counts) + np.arange(indptr[-1])
        shape = (len(rows), self.shape[1])
        return TrackedMatrix(shape, indptr, self.indices[place], self.data[place], self.bounds[place])

    def of_entries(self, kept: BoolArray) -> TrackedMatrix:
        """Select entries."""
        indptr = np.concatenate([[0], np.cumsum(kept)])[self.indptr]
        return TrackedMatrix(self.shape, indptr, self.indices[kept], self.data[kept], self.bounds[kept])

    def equals(self, other: TrackedMatrix) -> bool:
        """Whether the other matrix has the same entries in the same order."""
        pairs = ((self.indptr, other.indptr), (self.indices, other.indices), (self.data, other.data))
        return all(np.array_equal(mine, theirs) for mine, theirs in pairs)

    def column(self, j: int) -> tuple[Array, Array]:
        """Values and bounds of a column, each (rows,)."""
        here = self.indices == j
        data, bounds = np.zeros(self.shape[0]), np.zeros(self.shape[0])
        data[self.rows[here]], bounds[self.rows[here]] = self.data[here], self.bounds[here]
        return data, bounds


def tracked(matrix: sp.csr_matrix) -> TrackedMatrix:
    """Wrap a matrix of exact data, without rounding errors."""
    matrix.sum_duplicates()
    indptr, indices = (part.astype(np.int64) for part in (matrix.indptr, matrix.indices))
    return TrackedMatrix(matrix.shape, indptr, indices, matrix.data, np.abs(matrix.data))


def from_entries(shape: tuple[int, int], rows: IndexArray, cols: IndexArray, data: Array) -> TrackedMatrix:
    """Build a matrix of exact data from its entries, at different places."""
    order = np.lexsort((cols, rows))
    indptr = np.searchsorted(rows[order], np.arange(shape[0] + 1))
    return TrackedMatrix(shape, indptr, cols[order].astype(np.int64), data[order], np.abs(data[order]))


def stacked(parts: Sequence[TrackedMatrix]) -> TrackedMatrix:
    """Stack matrices of equal widths."""
    counts = np.concatenate([[0], *(np.diff(part.indptr) for part in parts)])
    indices, data, bounds = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("indices", "data", "bounds")
    )
    return TrackedMatrix((len(counts) - 1, parts[0].shape[1]), np.cumsum(counts), indices, data, bounds)


def identity(size: int) -> TrackedMatrix:
    """The identity."""
    ones = np.ones(size)
    return TrackedMatrix((size, size), np.arange(size + 1), np.arange(size), ones, ones)


def columns_of_identity(size: int, columns: IndexArray) -> TrackedMatrix:
    """Columns of the identity, (size, columns)."""
    ones = np.ones(len(columns))
    rows = TrackedMatrix((len(columns), size), np.arange(len(columns) + 1), columns, ones, ones)
    return rows.transposed


def nothing(shape: tuple[int, int]) -> TrackedMatrix:
    """The zero matrix."""
    empty = np.zeros(0)
    return TrackedMatrix(shape, np.zeros(shape[0] + 1, dtype=np.int64), np.zeros(0, dtype=np.int64), empty, empty)


def multiply(left: TrackedMatrix, right: TrackedMatrix) -> TrackedMatrix:
    """Compute left @ right without entries that cancel."""
    height, width = left.shape[0], right.shape[1]
    size = csr_matmat_maxnnz(height, width, left.indptr, left.indices, right.indptr, right.indices)
    products = []
    for factor, other in ((left.data, right.data), (left.bounds, right.bounds)):
        indptr, indices, data = np.empty(height + 1, dtype=np.int64), np.empty(size, dtype=np.int64), np.empty(size)
        csr_matmat(
            height, width, left.indptr, left.indices, factor, right.indptr, right.indices, other, indptr, indices, data
        )
        products.append((indptr, indices[: indptr[-1]], data[: indptr[-1]]))
    (indptr, indices, data), of_bounds = products
    if len(data) < len(of_bounds[2]):  # SciPy's products drop exact zeros and keep the order of the other entries
        keys, wanted = (_keys(part[0], part[1], width) for part in (of_bounds, products[0]))
        bounds = of_bounds[2][np.isin(keys, wanted, assume_unique=True)]
    else:
        bounds = of_bounds[2]
    return _without_cancelled(TrackedMatrix((height, width), indptr, indices, data, bounds))


def add(left: TrackedMatrix, right: TrackedMatrix) -> TrackedMatrix:
    """Compute left + right without entries that cancel."""
    return _sum(left, right, right.data)


def subtract(left: TrackedMatrix, right: TrackedMatrix) -> TrackedMatrix:
    """Compute left - right without entries that cancel."""
    return _sum(left, right, -right.data)


def _sum(left: TrackedMatrix, right: TrackedMatrix, of_right: Array) -> TrackedMatrix:
    """Add values on the union of the sparsity patterns, without entries that cancel."""
    height, width = left.shape
    wide = max(width, 1)
    keys, place = np.unique(
        np.concatenate([left.rows * wide + left.indices, right.rows * wide + right.indices]), return_inverse=True
    )
    data, bounds = (
        np.bincount(place, weights=np.concatenate(parts), minlength=len(keys)).astype(float, copy=False)
        for parts in ((left.data, of_right), (left.bounds, right.bounds))
    )
    indptr = np.searchsorted(keys, np.arange(height + 1) * wide)
    return _without_cancelled(TrackedMatrix(left.shape, indptr, keys % wide, data, bounds))


def _without_cancelled(matrix: TrackedMatrix) -> TrackedMatrix:
    """Drop entries that cancelled."""
    kept = np.abs(matrix.data) > CANCELLED * matrix.bounds
    return matrix if kept.all() else matrix.of_entries(kept)


def _keys(indptr: IndexArray, indices: IndexArray, width: int) -> IndexArray:
    """Row-major linear indices of the stored entries."""
    return np.repeat(np.arange(len(indptr) - 1, dtype=np.int64), np.diff(indptr)) * width + indices
