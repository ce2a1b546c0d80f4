"""Sparse matrices with a running bound on the magnitude of the terms in each entry, to detect cancellation.

After complete cancellation an entry holds a rounding error of the order of eps times the absolute values of all terms
summed into it. An entry is compared with this bound only, not with other entries, so which entries count as zero does
not depend on the units of variables and constraints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from convexlayer.program import IndexArray

__all__ = ["CANCELLED", "TrackedMatrix", "add", "multiply", "subtract", "tracked"]

CANCELLED = 64 * float(np.finfo(float).eps)
"""An entry at most this large relative to the sum of its terms' absolute values counts as zero. The factor 64 allows
for the rounding errors of sums of several terms."""


@dataclass(frozen=True, eq=False)
class TrackedMatrix:
    """A sparse matrix and the sums of the absolute values of the terms in its entries.

    Attributes:
        values: (rows, columns), in CSR.
        magnitudes: the sums, at least abs(values), with the same sparsity pattern.
    """

    values: sp.csr_matrix
    magnitudes: sp.csr_matrix

    @property
    def transposed(self) -> TrackedMatrix:
        """The transpose."""
        return TrackedMatrix(self.values.T.tocsr(), self.magnitudes.T.tocsr())

    def of_rows(self, rows: IndexArray) -> TrackedMatrix:
        """Select rows."""
        return TrackedMatrix(self.values[rows], self.magnitudes[rows])


def tracked(matrix: sp.csr_matrix) -> TrackedMatrix:
    """Wrap a matrix of exact data, without rounding errors."""
    matrix.sum_duplicates()
    return TrackedMatrix(matrix, abs(matrix))


def multiply(left: TrackedMatrix, right: TrackedMatrix) -> TrackedMatrix:
    """Compute left @ right without entries that cancel."""
    return _kept(left.values @ right.values, left.magnitudes @ right.magnitudes)


def add(left: TrackedMatrix, right: TrackedMatrix) -> TrackedMatrix:
    """Compute left + right without entries that cancel."""
    return _kept(_added(left.values, right.values), _added(left.magnitudes, right.magnitudes))


def subtract(left: TrackedMatrix, right: TrackedMatrix) -> TrackedMatrix:
    """Compute left - right without entries that cancel."""
    return _kept(_added(left.values, -right.values), _added(left.magnitudes, right.magnitudes))


def _added(left: sp.csr_matrix, right: sp.csr_matrix) -> sp.csr_matrix:
    """Add on the union of the sparsity patterns; explicit zeros are kept."""
    left, right = left.tocoo(), right.tocoo()
    place = np.concatenate([left.row, right.row]), np.concatenate([left.col, right.col])
    return sp.coo_matrix((np.concatenate([left.data, right.data]), place), shape=left.shape).tocsr()


def _kept(values: sp.csr_matrix, magnitudes: sp.csr_matrix) -> TrackedMatrix:
    """Drop entries that cancelled, and give both matrices the same sparsity pattern."""
    if values.nnz < magnitudes.nnz:  # SciPy's products drop exact zeros and keep the order of the other entries
        kept = np.isin(_keys(magnitudes), _keys(values), assume_unique=True)
        indptr = np.concatenate([[0], np.cumsum(kept)])[magnitudes.indptr]
        magnitudes = sp.csr_matrix((magnitudes.data[kept], magnitudes.indices[kept], indptr), shape=magnitudes.shape)
    kept = np.abs(values.data) > CANCELLED * magnitudes.data
    if not kept.all():
        indptr = np.concatenate([[0], np.cumsum(kept)])[values.indptr]
        values, magnitudes = (
            sp.csr_matrix((part.data[kept], values.indices[kept], indptr), shape=values.shape)
            for part in (values, magnitudes)
        )
    return TrackedMatrix(values, magnitudes)


def _keys(matrix: sp.csr_matrix) -> IndexArray:
    """Row-major linear indices of the stored entries."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return rows * matrix.shape[1] + matrix.indices
