"""Sparse matrices and vectors that are affine in the features, and their products with constant matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from convexlayer.canon.affine_map import AffineMap
from convexlayer.program import IndexArray, Pattern

__all__ = ["AffineMatrix", "affine_map", "affine_vector", "difference", "product"]

CANCELLED = 1e-13
"""A sum this small relative to the sum of its terms' absolute values is the rounding error of a zero."""


def product(left: sp.spmatrix, right: sp.spmatrix) -> sp.csr_matrix:
    """left @ right, without the entries in which everything cancelled."""
    return _kept((left @ right).tocsr(), (abs(left) @ abs(right)).tocsr())


def difference(left: sp.spmatrix, right: sp.spmatrix) -> sp.csr_matrix:
    """left - right, without the entries in which everything cancelled."""
    return _kept((left - right).tocsr(), (abs(left) + abs(right)).tocsr())


def _kept(values: sp.csr_matrix, sizes: sp.csr_matrix) -> sp.csr_matrix:
    matrix = values.multiply(abs(values) > CANCELLED * sizes).tocsr()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def affine_vector(data: AffineMap, rows: slice) -> sp.csr_matrix:
    """Some rows of an affine map as [slopes, constant], (rows, features + 1)."""
    return sp.hstack([data.matrix[rows], sp.csr_matrix(data.constant[rows, None])], format="csr")


def affine_map(vector: sp.csr_matrix) -> AffineMap:
    """The affine map of [slopes, constant]."""
    matrix = vector[:, :-1].tocsr()
    matrix.sort_indices()
    return AffineMap(matrix, vector[:, [-1]].toarray()[:, 0])


@dataclass(frozen=True, eq=False)
class AffineMatrix:
    """constant + sum_k features_k slope_k, all of them sparse.

    Attributes:
        constant: (rows, columns).
        rows: row of each entry that depends on the features, (varying,).
        cols: its column, (varying,).
        slopes: its coefficients, (varying, features).
    """

    constant: sp.csr_matrix
    rows: IndexArray
    cols: IndexArray
    slopes: sp.csr_matrix

    @staticmethod
    def of(pattern: Pattern, entries: sp.csr_matrix) -> AffineMatrix:
        """The matrix of a pattern and its entries' [slopes, constant]."""
        slopes = entries[:, :-1].tocsr()
        varying = np.flatnonzero(np.diff(slopes.indptr))
        constant = sp.coo_matrix((entries[:, [-1]].toarray()[:, 0], (pattern.rows, pattern.cols)), shape=pattern.shape)
        constant.eliminate_zeros()
        return AffineMatrix(constant.tocsr(), pattern.rows[varying], pattern.cols[varying], slopes[varying])

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows, cols = self.constant.shape
        return int(rows), int(cols)

    @property
    def support(self) -> sp.csr_matrix:
        """Ones wherever an entry is stored."""
        constant = self.constant.tocoo()
        rows, cols = np.concatenate([constant.row, self.rows]), np.concatenate([constant.col, self.cols])
        support = sp.coo_matrix((np.ones(len(rows)), (rows, cols)), shape=self.shape).tocsr()
        support.data[:] = 1.0
        return support

    @property
    def transposed(self) -> AffineMatrix:
        """The transpose."""
        return AffineMatrix(self.constant.T.tocsr(), self.cols, self.rows, self.slopes)

    def times(self, right: sp.csr_matrix) -> AffineMatrix:
        """The product with a constant matrix."""
        counts = np.diff(right.indptr)[self.cols]
        source = np.repeat(np.arange(len(self.cols)), counts)
        starts = np.repeat(right.indptr[self.cols] - np.cumsum(counts) + counts, counts)
        place = starts + np.arange(len(source))
        width = max(right.shape[1], 1)
        keys, target = np.unique(self.rows[source] * width + right.indices[place], return_inverse=True)
        spread = sp.csr_matrix((right.data[place], (target, source)), shape=(len(keys), len(self.cols)))
        slopes = product(spread, self.slopes)
        kept = np.flatnonzero(np.diff(slopes.indptr))
        return AffineMatrix(product(self.constant, right), keys[kept] // width, keys[kept] % width, slopes[kept])

    def at(self, vector: sp.csr_matrix) -> sp.csr_matrix:
        """The product with a vector [slopes, constant] that is constant wherever a column of the matrix varies."""
        constant = vector[:, [-1]].toarray()[:, 0]
        sums = sp.csr_matrix(
            (constant[self.cols], (self.rows, np.arange(len(self.rows)))), shape=(self.shape[0], len(self.rows))
        )
        nothing = sp.csr_matrix((self.shape[0], 1))
        return (product(self.constant, vector) + sp.hstack([product(sums, self.slopes), nothing])).tocsr()

    def entries(self) -> tuple[Pattern, sp.csr_matrix]:
        """The pattern, and its entries' [slopes, constant]."""
        constant = self.constant.tocoo()
        height = max(self.shape[0], 1)
        fixed = constant.col.astype(np.int64) * height + constant.row
        varying = self.cols * height + self.rows
        keys, place = np.unique(np.concatenate([fixed, varying]), return_inverse=True)
        slopes = self.slopes.tocoo()
        last = np.full(len(fixed), self.slopes.shape[1])
        rows = np.concatenate([place[: len(fixed)], place[len(fixed) :][slopes.row]])
        cols = np.concatenate([last, slopes.col])
        shape = (len(keys), self.slopes.shape[1] + 1)
        entries = sp.coo_matrix((np.concatenate([constant.data, slopes.data]), (rows, cols)), shape=shape).tocsr()
        return Pattern(self.shape, keys % height, keys // height), entries
