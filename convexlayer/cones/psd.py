"""The cone of positive semidefinite matrices, which is its own dual.

A block is the scaled lower triangle of a symmetric matrix, column by column, off-diagonal entries times sqrt(2).
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from array_api_compat import device
from numpy.typing import NDArray

from convexlayer.buffers import empty, plain
from convexlayer.cones.base import AbstractCone, Array, ConePoint, Eigenbasis, namespace
from convexlayer.cones.calls import compiled_kernels, in_ranges, is_compiled

__all__ = ["PositiveSemidefinite"]


@final
class PositiveSemidefinite(AbstractCone):
    """Symmetric positive semidefinite matrices X = V diag(l) V' of one order, as rows svec(X).

    A block that is not finite gives NaN, and leaves the others alone.

    Args:
        order: side length k of the matrices; size is k (k + 1) / 2.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self.size = order * (order + 1) // 2
        cols, rows = np.triu_indices(order)
        self._rows, self._cols = rows, cols
        position = np.empty((order, order), dtype=np.int64)
        position[rows, cols] = position[cols, rows] = np.arange(self.size)
        self._position = position.ravel()
        self._scale = np.where(rows == cols, 1.0, math.sqrt(2.0))
        self._unscale = np.where(np.eye(order, dtype=bool), 1.0, math.sqrt(0.5)).ravel()
        self._lower = rows * order + cols

    @property
    def centre(self) -> NDArray[np.float64]:
        """A direction in the interior of K and K*."""
        return np.where(self._rows == self._cols, 1.0 / math.sqrt(self.order), 0.0)

    def at(self, w: Array) -> ConePoint[Eigenbasis]:
        """svec(V diag(max(l, 0)) V'), and the derivative there."""
        if is_compiled(w):
            return self._compiled_point(w)
        xp = namespace(w)
        values, vectors = self._eigh(xp, w)
        projected = (vectors * xp.maximum(values, 0.0)[..., None, :]) @ xp.matrix_transpose(vectors)
        flat = xp.reshape(projected, (*w.shape[:-1], self.order**2))
        projection = xp.take(flat, self._like(w, self._lower), axis=-1) * self._like(w, self._scale)
        return ConePoint(projection, lambda: self._eigenbasis(xp, w, values, vectors))

    def _compiled_point(self, w: Array) -> ConePoint[Eigenbasis]:
        """The same by the compiled kernels."""
        kernels, k = compiled_kernels(), self.order
        flat = plain(w).reshape(-1, self.size)
        values, vectors = np.empty((len(flat), k)), np.empty((len(flat), k, k))
        y = np.empty(flat.shape)
        seconds = 3e-6 + 3e-8 * k**3
        in_ranges(kernels.psd_point, (flat, k, values, vectors, y), entries=len(flat), seconds=seconds)

        def derive() -> Eigenbasis:
            Q = empty(*flat.shape, self.size)
            d, complement = np.empty(flat.shape), np.empty(flat.shape)
            arguments = (values, vectors, Q, d, complement)
            in_ranges(kernels.psd_derivative, arguments, entries=len(flat), seconds=2e-9 * self.size**2)
            basis, eigenvalues, rest = Q.reshape(*w.shape, self.size), d.reshape(w.shape), complement.reshape(w.shape)
            return Eigenbasis(basis, eigenvalues, rest, lambda: _least(np, values).reshape(w.shape[:-1]))

        return ConePoint(y.reshape(w.shape), derive)

    def _eigenbasis(self, xp: Any, w: Array, values: Array, vectors: Array) -> Eigenbasis:
        """Q = svec of (v_i v_j' + v_j v_i') / sqrt 2 and v_i v_i'; d = l+ / (l+ + abs(l-)) over each pair."""
        rows, cols, scale = self._like(w, self._rows), self._like(w, self._cols), self._like(w, self._scale)
        upper, lower = xp.take(vectors, rows, axis=-2), xp.take(vectors, cols, axis=-2)
        products = xp.take(upper, rows, axis=-1) * xp.take(lower, cols, axis=-1)
        products = products + xp.take(upper, cols, axis=-1) * xp.take(lower, rows, axis=-1)
        positive = xp.maximum(values, 0.0)
        negative = positive - values
        positive = xp.take(positive, rows, axis=-1) + xp.take(positive, cols, axis=-1)
        negative = xp.take(negative, rows, axis=-1) + xp.take(negative, cols, axis=-1)
        total = positive + negative
        zero = total == 0
        total = xp.where(zero, 1.0, total)
        complement = xp.where(zero, 1.0, negative / total)
        Q = products * (0.5 * scale[:, None] * scale)
        return Eigenbasis(Q, positive / total, complement, lambda: _least(xp, values))

    def _eigh(self, xp: Any, w: Array) -> tuple[Array, Array]:
        """Eigenvalues (..., k), ascending, and eigenvectors (..., k, k) of the matrices."""
        finite = xp.all(xp.isfinite(w), axis=-1, keepdims=True)
        flat = xp.take(xp.where(finite, w, 0.0), self._like(w, self._position), axis=-1) * self._like(w, self._unscale)
        values, vectors = xp.linalg.eigh(xp.reshape(flat, (*w.shape[:-1], self.order, self.order)))
        return xp.where(finite, values, xp.nan), vectors

    @staticmethod
    def _like(w: Array, constant: np.ndarray[Any, Any]) -> Any:
        """A constant as an array of the namespace and device of w."""
        return namespace(w).asarray(constant, device=device(w))


def _least(xp: Any, values: Array) -> Array:
    """The least magnitude of the eigenvalues (..., k): the distance from the singular matrices."""
    least: Array = xp.min(xp.abs(values), axis=-1)
    return least
