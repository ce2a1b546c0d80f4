"""The affine map from parameters to program data, and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from convexlayer.canon.parameters import ParameterSpec
from convexlayer.program import Array, IndexArray
from convexlayer.runtime.buffers import empty
from convexlayer.solution import BoolArray
from convexlayer.sparse import BatchedMatrix

__all__ = ["AffineMap", "AffineProduct", "Features"]


@dataclass(frozen=True, eq=False)
class Features:
    """theta -> the vector that program data are affine in.

    Every parameter is flattened in row-major order, without the entries that are always zero; ``log`` lists the
    positions whose logarithm is appended, because a geometric program depends on log(a), and on a itself where it is an
    exponent.

    Attributes:
        sizes: number of entries of each parameter.
        kept: for each parameter the flat positions of its entries that are taken, ascending; None for all.
        log: positions in the concatenated vector whose logarithm follows it.
    """

    sizes: tuple[int, ...]
    kept: tuple[IndexArray | None, ...]
    log: IndexArray

    @staticmethod
    def of_parameters(parameters: Sequence[ParameterSpec], log: IndexArray) -> Features:
        """The features of parameters."""
        return Features(tuple(spec.size for spec in parameters), tuple(spec.entries for spec in parameters), log)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.entries + len(self.log)

    @cached_property
    def entries(self) -> int:
        """Number of entries of parameters in the vector."""
        return sum(self._counts)

    @cached_property
    def positions(self) -> IndexArray:
        """Where the vector's entries stand in that of parameters of which every entry is taken."""
        starts = np.cumsum([0, *self.sizes]).tolist()
        taken = [
            start + (np.arange(size) if kept is None else kept)
            for start, size, kept in zip(starts[:-1], self.sizes, self.kept, strict=True)
        ]
        entries = np.concatenate([*taken, np.zeros(0, dtype=np.int64)])
        return np.concatenate([entries, starts[-1] + np.arange(len(self.log))])

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(size if kept is None else len(kept) for size, kept in zip(self.sizes, self.kept, strict=True))

    @cached_property
    def _slices(self) -> tuple[slice, ...]:
        """The entries of each parameter."""
        ends = np.cumsum([0, *self._counts]).tolist()
        return tuple(slice(start, stop) for start, stop in pairwise(ends))

    def of(self, wrt: Sequence[bool]) -> BoolArray:
        """Which entries of the vector are features of these parameters, a mask (size,)."""
        wanted = np.repeat(np.asarray(wrt, dtype=bool), self._counts)
        return np.concatenate([wanted, wanted[self.log]]) if len(self.log) else wanted

    def apply(self, theta: Sequence[Array], batch: int) -> Array:
        """The vectors (batch, size) of arrays that are (batch, ...) or lack the batch axis."""
        parts = [
            _flat(value, size, kept, batch) for value, size, kept in zip(theta, self.sizes, self.kept, strict=True)
        ]
        flat = np.concatenate(parts, axis=1, out=empty(batch, self.entries)) if parts else np.zeros((batch, 0))
        return np.concatenate([flat, np.log(flat[:, self.log])], axis=1) if len(self.log) else flat

    def push(self, features: Array, tangents: Sequence[Array | None]) -> Array:
        """Tangents (batch, size) of the vectors, of one tangent a parameter (None is zero)."""
        batch = features.shape[0]
        parts = [
            np.zeros((batch, count)) if value is None else _flat(value, size, kept, batch)
            for value, size, kept, count in zip(tangents, self.sizes, self.kept, self._counts, strict=True)
        ]
        flat = np.concatenate(parts, axis=1) if parts else np.zeros((batch, 0))
        return np.concatenate([flat, flat[:, self.log] / features[:, self.log]], axis=1) if len(self.log) else flat

    def pull(self, features: Array, cotangent: Array) -> list[Array]:
        """Cotangents (batch, entries) of the parameters, of cotangents (batch, size) of the vectors."""
        flat = cotangent[:, : self.entries]
        if len(self.log):
            flat = flat.copy()
            flat[:, self.log] += cotangent[:, self.entries :] / features[:, self.log]
        return [
            flat[:, where] if kept is None else _spread(flat[:, where], size, kept)
            for where, size, kept in zip(self._slices, self.sizes, self.kept, strict=True)
        ]


def _flat(value: Array, size: int, kept: IndexArray | None, batch: int) -> Array:
    """One row an element, (batch, entries taken), of an array with or without the batch axis."""
    rows = value.reshape(value.size // size if size else batch, size)
    if kept is not None:
        rows = rows[:, kept]
    return rows if len(rows) == batch else np.broadcast_to(rows, (batch, rows.shape[1]))


def _spread(rows: Array, size: int, kept: IndexArray) -> Array:
    """The transpose of taking entries: (batch, size), zero where none was taken."""
    spread = np.zeros((len(rows), size))
    spread[:, kept] = rows
    return spread


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
