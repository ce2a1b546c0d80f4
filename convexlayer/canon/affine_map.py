"""The affine map from parameters to program data, and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from convexlayer.buffers import empty
from convexlayer.program import Array, IndexArray
from convexlayer.solution import BoolArray
from convexlayer.sparse import BatchedMatrix

__all__ = ["AffineMap", "AffineProduct", "Features"]


@dataclass(frozen=True, eq=False)
class Features:
    """theta -> the vector that program data are affine in.

    Every parameter is flattened in row-major order; ``log`` lists the positions whose logarithm is appended, because
    a geometric program depends on log(a), and on a itself where it is an exponent.

    Attributes:
        sizes: number of entries of each parameter.
        log: positions in the concatenated vector whose logarithm follows it.
    """

    sizes: tuple[int, ...]
    log: IndexArray

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(self.sizes) + len(self.log)

    @cached_property
    def _slices(self) -> tuple[slice, ...]:
        """The entries of each parameter."""
        ends = np.cumsum([0, *self.sizes]).tolist()
        return tuple(slice(start, stop) for start, stop in pairwise(ends))

    def of(self, wrt: Sequence[bool]) -> BoolArray:
        """Which entries of the vector are features of these parameters, a mask (size,)."""
        wanted = np.repeat(np.asarray(wrt, dtype=bool), self.sizes)
        return np.concatenate([wanted, wanted[self.log]]) if len(self.log) else wanted

    def apply(self, theta: Sequence[Array], batch: int) -> Array:
        """The vectors (batch, size) of arrays that are (batch, ...) or lack the batch axis."""
        parts = [_flat(value, size, batch) for value, size in zip(theta, self.sizes, strict=True)]
        flat = np.concatenate(parts, axis=1, out=empty(batch, sum(self.sizes))) if parts else np.zeros((batch, 0))
        return np.concatenate([flat, np.log(flat[:, self.log])], axis=1) if len(self.log) else flat

    def push(self, features: Array, tangents: Sequence[Array | None]) -> Array:
        """Tangents (batch, size) of the vectors, of one tangent a parameter (None is zero)."""
        batch = features.shape[0]
        parts = [
            np.zeros((batch, size)) if value is None else _flat(value, size, batch)
            for value, size in zip(tangents, self.sizes, strict=True)
        ]
        flat = np.concatenate(parts, axis=1) if parts else np.zeros((batch, 0))
        return np.concatenate([flat, flat[:, self.log] / features[:, self.log]], axis=1) if len(self.log) else flat

    def pull(self, features: Array, cotangent: Array) -> list[Array]:
        """Cotangents (batch, entries) of the parameters, of cotangents (batch, size) of the vectors."""
        total = sum(self.sizes)
        flat = cotangent[:, :total]
        if len(self.log):
            flat = flat.copy()
            flat[:, self.log] += cotangent[:, total:] / features[:, self.log]
        return [flat[:, where] for where in self._slices]


def _flat(value: Array, size: int, batch: int) -> Array:
    """One row an element, (batch, size), of an array with or without the batch axis."""
    rows = value.reshape(value.size // size if size else batch, size)
    return rows if len(rows) == batch else np.broadcast_to(rows, (batch, size))


@dataclass(frozen=True, eq=False)
class AffineMap:
    """values = constant + matrix @ features, where rows without an entry in the matrix cost nothing.

    Attributes:
        matrix: (rows, features), sparse.
        constant: (rows,).
    """

    matrix: sp.csr_matrix
    constant: Array

    @cached_property
    def _forward(self) -> BatchedMatrix:
        return BatchedMatrix(self.matrix)

    @cached_property
    def _adjoint(self) -> BatchedMatrix:
        return BatchedMatrix(self.matrix.T.tocsr())

    def of_rows(self, rows: slice) -> AffineMap:
        """The map to some of the values."""
        return AffineMap(self.matrix[rows], self.constant[rows])

    def apply(self, features: Array) -> Array:
        """Values (batch, rows) of features (batch, features)."""
        if not self.matrix.nnz:
            return np.repeat(self.constant[None], len(features), axis=0)
        return self._forward.times(features, self.constant)

    def push(self, tangent: Array) -> Array:
        """Tangents (batch, rows) of feature tangents (batch, features)."""
        return self._forward.times(tangent)

    def pull(self, cotangent: Array) -> Array:
        """Feature cotangents (batch, features) of cotangents (batch, rows)."""
        return self._adjoint.times(cotangent)


@dataclass(frozen=True, eq=False)
class AffineProduct:
    """The inner product of two affine vectors: left(features)'right(features).

    Attributes:
        left: features -> (terms,).
        right: features -> (terms,).
    """

    left: AffineMap
    right: AffineMap

    def apply(self, features: Array) -> Array:
        """Values (batch,) at features (batch, features)."""
        return np.vecdot(self.left.apply(features), self.right.apply(features))

    def push(self, features: Array, tangent: Array) -> Array:
        """Tangents (batch,) of feature tangents (batch, features)."""
        left, right = self.left, self.right
        moved = left.push(tangent) * right.apply(features) + left.apply(features) * right.push(tangent)
        return np.sum(moved, axis=1)

    def pull(self, features: Array, cotangent: Array) -> Array:
        """Feature cotangents (batch, features) of cotangents (batch,)."""
        left, right, weight = self.left, self.right, cotangent[:, None]
        return left.pull(weight * right.apply(features)) + right.pull(weight * left.apply(features))
