"""Sparse matrices that know how large the terms were that made their entries.

An entry in which everything cancelled is left with rounding errors of eps times the terms that were summed into it,
over its whole history; nothing else tells how small a zero is. Neither rows, columns nor other entries are compared
with, so the same entries stay whatever the units of variables and constraints are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from convexlayer.program import IndexArray

__all__ = ["CANCELLED", "Rounded", "difference", "exact", "product", "total"]

CANCELLED = 64 * float(np.finfo(float).eps)
"""A sum this small relative to the sum of its terms' absolute values is the rounding error of a zero."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """A sparse matrix and the sums of the absolute values of the terms in its entries.

    Attributes:
        values: (rows, columns), in CSR.
        sizes: likewise, stored at the same places, at least abs(values).
    """

    values: sp.csr_matrix
    sizes: sp.csr_matrix

    @property
    def transposed(self) -> Rounded:
        """The transpose."""
        return Rounded(self.values.T.tocsr(), self.sizes.T.tocsr())

    def of(self, rows: IndexArray) -> Rounded:
        """Some of the rows."""
        return Rounded(self.values[rows], self.sizes[rows])


def exact(matrix: sp.csr_matrix) -> Rounded:
    """A matrix that is given, not computed."""
    matrix.sum_duplicates()
    return Rounded(matrix, abs(matrix))


def product(left: Rounded, right: Rounded) -> Rounded:
    """left @ right, without the entries in which everything cancelled."""
    return _kept(left.values @ right.values, left.sizes @ right.sizes)


def total(left: Rounded, right: Rounded) -> Rounded:
    """left + right, without the entries in which everything cancelled."""
    return _kept(_added(left.values, right.values), _added(left.sizes, right.sizes))


def difference(left: Rounded, right: Rounded) -> Rounded:
    """left - right, without the entries in which everything cancelled."""
    return _kept(_added(left.values, -right.values), _added(left.sizes, right.sizes))


def _added(left: sp.csr_matrix, right: sp.csr_matrix) -> sp.csr_matrix:
    """The sum with every entry that either stores, zeros included."""
    left, right = left.tocoo(), right.tocoo()
    place = np.concatenate([left.row, right.row]), np.concatenate([left.col, right.col])
    return sp.coo_matrix((np.concatenate([left.data, right.data]), place), shape=left.shape).tocsr()


def _kept(values: sp.csr_matrix, sizes: sp.csr_matrix) -> Rounded:
    """Both, stored at the same places, where the values are more than what rounding leaves of a zero."""
    if values.nnz < sizes.nnz:  # SciPy's products store no exact zeros, and the others in the same order
        kept = np.isin(_keys(sizes), _keys(values), assume_unique=True)
        indptr = np.concatenate([[0], np.cumsum(kept)])[sizes.indptr]
        sizes = sp.csr_matrix((sizes.data[kept], sizes.indices[kept], indptr), shape=sizes.shape)
    kept = np.abs(values.data) > CANCELLED * sizes.data
    if not kept.all():
        indptr = np.concatenate([[0], np.cumsum(kept)])[values.indptr]
        values, sizes = (
            sp.csr_matrix((part.data[kept], values.indices[kept], indptr), shape=values.shape)
            for part in (values, sizes)
        )
    return Rounded(values, sizes)


def _keys(matrix: sp.csr_matrix) -> IndexArray:
    """One number for each place."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return rows * matrix.shape[1] + matrix.indices
