"""The cone of positive semidefinite matrices, which is its own dual.

A block is the scaled lower triangle of a symmetric matrix, column by column, off-diagonal entries times sqrt(2).
"""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from convexlayer.cones.base import AbstractCone, Array, BlockKind, ConePoint, Eigenbasis, namespace
from convexlayer.cones.compiled import compiled_eigenbasis, is_compiled
from convexlayer.cones.kronecker import KroneckerBasis, like, symmetric_vectors

__all__ = ["PositiveSemidefinite"]


@final
class PositiveSemidefinite(AbstractCone):
    """Symmetric positive semidefinite matrices X = V diag(l) V' of one order, as rows svec(X).

    A block that is not finite gives NaN without affecting the others.

    Args:
        order: side length k of the matrices; size is k (k + 1) / 2.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self._svec = symmetric_vectors(order)
        self.size = self._svec.size

    @property
    def centre(self) -> NDArray[np.float64]:
        """A direction in the interior of K and K*."""
        svec = self._svec
        return np.where(svec.rows == svec.cols, self.order**-0.5, 0.0)

    @property
    def recession_rows(self) -> NDArray[np.bool_]:
        """Only the diagonal may grow."""
        return self._svec.rows == self._svec.cols

    def kinds(self, blocks: int, *, rank_two: bool) -> tuple[BlockKind, ...]:
        """Equal blocks."""
        return (BlockKind("psd", self.size, self.order),) * blocks

    def at(self, w: Array) -> ConePoint[Eigenbasis]:
        """svec(V diag(max(l, 0)) V'), and its derivative."""
        if is_compiled(w):
            return compiled_eigenbasis(self.kinds(1, rank_two=False), w, self._distance)
        values, vectors = self._eigh(w)
        return ConePoint(self._projection(values, vectors), lambda: self._eigenbasis(w, values, vectors))

    def kronecker_at(self, w: Array) -> ConePoint[KroneckerBasis]:
        """As ``at``, with a matrix-free derivative."""
        values, vectors = self._eigh(w)

        def derive() -> KroneckerBasis:
            xp = namespace(w)
            return KroneckerBasis(vectors, *self._spectrum(values), lambda: _least(xp, values))

        return ConePoint(self._projection(values, vectors), derive)

    def _distance(self, w: Array) -> Array:
        return _least(namespace(w), self._eigh(w)[0])

    def _projection(self, values: Array, vectors: Array) -> Array:
        """svec(V diag(max(l, 0)) V')."""
        xp = namespace(values)
        return self._svec.vector((vectors * xp.maximum(values, 0.0)[..., None, :]) @ xp.matrix_transpose(vectors))

    def _eigenbasis(self, w: Array, values: Array, vectors: Array) -> Eigenbasis:
        """Q with columns svec((v_i v_j' + v_j v_i') / sqrt 2), i > j, and svec(v_i v_i')."""
        xp = namespace(w)
        rows, cols, scale = (like(w, part) for part in (self._svec.rows, self._svec.cols, self._svec.scale))
        upper, lower = xp.take(vectors, rows, axis=-2), xp.take(vectors, cols, axis=-2)
        products = xp.take(upper, rows, axis=-1) * xp.take(lower, cols, axis=-1)
        products = products + xp.take(upper, cols, axis=-1) * xp.take(lower, rows, axis=-1)
        Q = products * (0.5 * scale[:, None] * scale)
        return Eigenbasis(Q, *self._spectrum(values), lambda: _least(xp, values))

    def _spectrum(self, values: Array) -> tuple[Array, Array]:
        """d_ij = (l_i+ + l_j+) / (abs(l_i) + abs(l_j)) for each pair of eigenvalues, and 1 - d."""
        xp = namespace(values)
        rows, cols = like(values, self._svec.rows), like(values, self._svec.cols)
        positive = xp.maximum(values, 0.0)
        negative = positive - values
        positive = xp.take(positive, rows, axis=-1) + xp.take(positive, cols, axis=-1)
        negative = xp.take(negative, rows, axis=-1) + xp.take(negative, cols, axis=-1)
        total = positive + negative
        zero = total == 0
        total = xp.where(zero, 1.0, total)
        return positive / total, xp.where(zero, 1.0, negative / total)

    def _eigh(self, w: Array) -> tuple[Array, Array]:
        """Eigenvalues (..., k), ascending, and eigenvectors (..., k, k) of the matrices."""
        xp = namespace(w)
        finite = xp.all(xp.isfinite(w), axis=-1, keepdims=True)
        values, vectors = xp.linalg.eigh(self._svec.matrix(xp.where(finite, w, 0.0)))
        return xp.where(finite, values, xp.nan), vectors


def _least(xp: Any, values: Array) -> Array:
    """The smallest magnitude of the eigenvalues (..., k): the distance to the singular matrices."""
    least: Array = xp.min(xp.abs(values), axis=-1)
    return least
