"""Symmetric matrices as vectors, and a matrix-free eigenbasis of operators on them.

svec(X) is the lower triangle of X, column by column, off-diagonal entries times sqrt(2), so that
<X, Y> = svec(X)'svec(Y). For an orthogonal V of order k the map svec(U) -> svec(V U V') is orthogonal: the symmetric
Kronecker product of V with itself. As a matrix it would have k^4 / 4 entries; two products of order k apply it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, final

import numpy as np
from array_api_compat import device

from convexlayer.cones.base import Array, namespace

__all__ = ["KroneckerBasis", "SymmetricVectors", "symmetric_vectors"]


@final
class SymmetricVectors:
    """svec and its inverse for one order.

    Args:
        order: side length k; a vector has k (k + 1) / 2 entries.

    Attributes:
        order: side length k.
        size: length of the vectors.
        rows, cols: row and column of each entry, rows >= cols.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self.size = order * (order + 1) // 2
        self.cols, self.rows = np.triu_indices(order)
        position = np.empty((order, order), dtype=np.int64)
        position[self.rows, self.cols] = position[self.cols, self.rows] = np.arange(self.size)
        self._position = position.ravel()
        self._lower = self.rows * order + self.cols
        self._unscale = np.where(np.eye(order, dtype=bool), 1.0, math.sqrt(0.5)).ravel()
        self.scale = np.where(self.rows == self.cols, 1.0, math.sqrt(2.0))

    def matrix(self, v: Array) -> Array:
        """The symmetric matrices (..., k, k) of vectors (..., size)."""
        flat = namespace(v).take(v, like(v, self._position), axis=-1) * like(v, self._unscale)
        return namespace(v).reshape(flat, (*v.shape[:-1], self.order, self.order))

    def vector(self, X: Array) -> Array:
        """The vectors (..., size) of symmetric matrices (..., k, k); only the lower triangle is read."""
        xp = namespace(X)
        flat = xp.reshape(X, (*X.shape[:-2], self.order**2))
        return xp.take(flat, like(X, self._lower), axis=-1) * like(X, self.scale)


@cache
def symmetric_vectors(order: int) -> SymmetricVectors:
    """The cached ``SymmetricVectors`` of an order."""
    return SymmetricVectors(order)


@final
@dataclass(frozen=True, eq=False)
class KroneckerBasis:
    """The derivative D = Q diag(d) Q' of a projection of symmetric matrices, Q svec(U) = svec(V U V').

    Attributes:
        vectors: V, (..., k, k), orthogonal.
        d: (..., size), the eigenvalues, in the order of the entries of svec: the one at (i, j) belongs to the pair of
            columns i and j of V.
        complement: (..., size), 1 - d to full relative precision.
        margin: computes the strict complementarity margin at the same point, (...), see ``AbstractCone.margin``.
    """

    vectors: Array
    d: Array
    complement: Array
    margin: Callable[[], Array]

    @cached_property
    def root(self) -> Array:
        """The square roots of d."""
        return namespace(self.d).sqrt(self.d)

    @property
    def order(self) -> int:
        """Side length k of the matrices."""
        order: int = self.vectors.shape[-1]
        return order

    @cached_property
    def _transposed(self) -> Array:
        """V', contiguous: BLAS runs products with transposed views on several threads even if they are small."""
        transposed = namespace(self.vectors).matrix_transpose(self.vectors)
        return np.ascontiguousarray(transposed) if type(transposed) is np.ndarray else transposed

    def coordinates(self, v: Array) -> Array:
        """Q'v, (..., size)."""
        svec = symmetric_vectors(self.order)
        return svec.vector(self._transposed @ svec.matrix(v) @ self.vectors)

    def combine(self, u: Array) -> Array:
        """Q u, (..., size)."""
        svec = symmetric_vectors(self.order)
        return svec.vector(self.vectors @ svec.matrix(u) @ self._transposed)

    def apply(self, v: Array) -> Array:
        """D v, (..., size)."""
        return self.combine(self.d * self.coordinates(v))


def like(array: Array, constant: np.ndarray[Any, Any]) -> Any:
    """A constant as an array of the namespace and device of another."""
    if type(array) is np.ndarray:  # fast path: finding the namespace takes longer than a small product
        return constant
    return namespace(array).asarray(constant, device=device(array))
