"""Sparse matrices and vectors that are affine in the features, and their products with constant matrices.

A vector v(f) = S f + c of the features f is stored as the sparse matrix [S, c], called [slopes, constant] below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from convexlayer.canon.affine_map import AffineMap
from convexlayer.canon.tracked_matrix import TrackedMatrix, add, from_entries, multiply
from convexlayer.program import IndexArray, Pattern

__all__ = ["AffineMatrix", "affine_map", "affine_vector"]


def affine_vector(data: AffineMap) -> TrackedMatrix:
    """An affine map as the sparse matrix [slopes, constant], (rows, features + 1)."""
    matrix = data.matrix
    height, features = matrix.shape
    fixed = np.flatnonzero(data.constant)
    rows = np.concatenate([np.repeat(np.arange(height), np.diff(matrix.indptr)), fixed])
    cols = np.concatenate([matrix.indices, np.full(len(fixed), features)])
    return from_entries((height, features + 1), rows, cols, np.concatenate([matrix.data, data.constant[fixed]]))


def affine_map(vector: TrackedMatrix) -> AffineMap:
    """The affine map of a sparse matrix [slopes, constant], the inverse of ``affine_vector``."""
    slopes = of_slopes(vector)
    matrix = slopes.values
    matrix.sort_indices()
    return AffineMap(matrix, vector.column(vector.shape[1] - 1)[0])


def of_slopes(vector: TrackedMatrix) -> TrackedMatrix:
    """The slopes of an affine vector, (rows, features)."""
    features = vector.shape[1] - 1
    return replace(vector.of_entries(vector.indices < features), shape=(vector.shape[0], features))


@dataclass(frozen=True, eq=False)
class AffineMatrix:
    """A matrix constant + sum_k features_k slope_k with sparse terms.

    Attributes:
        constant: (rows, columns).
        rows: row index of each entry that depends on the features, (varying,).
        cols: column index of each such entry, (varying,).
        slopes: coefficients of each such entry in the features, (varying, features).
    """

    constant: TrackedMatrix
    rows: IndexArray
    cols: IndexArray
    slopes: TrackedMatrix

    @staticmethod
    def of(pattern: Pattern, entries: TrackedMatrix) -> AffineMatrix:
        """Build the matrix from its sparsity pattern and the [slopes, constant] of each entry."""
        slopes = of_slopes(entries)
        varying = np.flatnonzero(slopes.used_rows)
        constant, _ = entries.column(entries.shape[1] - 1)
        fixed = np.flatnonzero(constant)
        return AffineMatrix(
            from_entries(pattern.shape, pattern.rows[fixed], pattern.cols[fixed], constant[fixed]),
            pattern.rows[varying],
            pattern.cols[varying],
            slopes.of_rows(varying),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.constant.shape

    @property
    def support(self) -> sp.csr_matrix:
        """The sparsity pattern as a matrix of ones."""
        constant = self.constant
        rows, cols = np.concatenate([constant.rows, self.rows]), np.concatenate([constant.indices, self.cols])
        support = sp.coo_matrix((np.ones(len(rows)), (rows, cols)), shape=self.shape).tocsr()
        support.data[:] = 1.0
        return support

    @property
    def transposed(self) -> AffineMatrix:
        """The transpose."""
        return AffineMatrix(self.constant.transposed, self.cols, self.rows, self.slopes)

    def times(self, right: TrackedMatrix) -> AffineMatrix:
        """The product ``self @ right`` with a constant matrix.

        Each varying entry (i, k) adds right_kj times its slopes to entry (i, j): the sparse matrix ``spread`` holds
        these factors right_kj, one row per entry (i, j) and one column per entry (i, k).
        """
        counts = np.diff(right.indptr)[self.cols]
        source = np.repeat(np.arange(len(self.cols)), counts)
        starts = np.repeat(right.indptr[self.cols] - np.cumsum(counts) + counts, counts)
        place = starts + np.arange(len(source))
        width = max(right.shape[1], 1)
        keys, target = np.unique(self.rows[source] * width + right.indices[place], return_inverse=True)
        order = np.argsort(target, kind="stable")
        spread = TrackedMatrix(
            (len(keys), len(self.cols)),
            np.searchsorted(target[order], np.arange(len(keys) + 1)),
            source[order],
            right.data[place][order],
            right.bounds[place][order],
        )
        slopes = multiply(spread, self.slopes)
        kept = np.flatnonzero(np.diff(slopes.indptr))
        return AffineMatrix(
            multiply(self.constant, right), keys[kept] // width, keys[kept] % width, slopes.of_rows(kept)
        )

    def matvec(self, vector: TrackedMatrix) -> TrackedMatrix:
        """The product with an affine vector [slopes, constant], constant in every entry whose matrix column varies."""
        data, bounds = (part[self.cols] for part in vector.column(vector.shape[1] - 1))
        order = np.argsort(self.rows, kind="stable")
        indptr = np.searchsorted(self.rows[order], np.arange(self.shape[0] + 1))
        sums = TrackedMatrix((self.shape[0], len(self.rows)), indptr, order, data[order], bounds[order])
        slopes = multiply(sums, self.slopes)
        widened = replace(slopes, shape=(slopes.shape[0], slopes.shape[1] + 1))
        return add(multiply(self.constant, vector), widened)

    def entries(self) -> tuple[Pattern, TrackedMatrix]:
        """The sparsity pattern, and the [slopes, constant] of each of its entries."""
        constant, slopes = self.constant, self.slopes
        height = max(self.shape[0], 1)
        fixed = constant.indices * height + constant.rows
        varying = self.cols * height + self.rows
        keys, place = np.unique(np.concatenate([fixed, varying]), return_inverse=True)
        features = slopes.shape[1]
        rows = np.concatenate([place[: len(fixed)], place[len(fixed) :][slopes.rows]])
        cols = np.concatenate([np.full(len(fixed), features), slopes.indices])
        entries = from_entries((len(keys), features + 1), rows, cols, np.concatenate([constant.data, slopes.data]))
        return Pattern(self.shape, keys % height, keys // height), entries
