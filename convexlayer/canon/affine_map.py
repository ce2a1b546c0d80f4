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
    """The map from the parameters theta to the feature vector, in which the program data are affine.

    The feature vector concatenates the parameters, each flattened in row-major order without its structural zeros,
    followed by the logarithms of the entries in ``log``: a geometric program depends on log(a), and on a itself if a
    is an exponent.

    Attributes:
        sizes: number of entries of each parameter.
        nonzeros: for each parameter the ascending flat positions of its structural nonzeros; None for all entries.
        log: positions in the concatenated vector whose logarithms are appended to it.
    """

    sizes: tuple[int, ...]
    nonzeros: tuple[IndexArray | None, ...]
    log: IndexArray

    @staticmethod
    def of_parameters(parameters: Sequence[ParameterSpec], log: IndexArray) -> Features:
        """Build the feature map of the parameters."""
        return Features(tuple(spec.size for spec in parameters), tuple(spec.entries for spec in parameters), log)

    @property
    def size(self) -> int:
        """Length of the feature vector."""
        return self.entries + len(self.log)

    @cached_property
    def entries(self) -> int:
        """Number of parameter entries in the feature vector, logarithms excluded."""
        return sum(self._counts)

    @cached_property
    def positions(self) -> IndexArray:
        """Position of each feature in the feature vector that would keep every parameter entry, (size,)."""
        starts = np.cumsum([0, *self.sizes]).tolist()
        taken = [
            start + (np.arange(size) if nonzeros is None else nonzeros)
            for start, size, nonzeros in zip(starts[:-1], self.sizes, self.nonzeros, strict=True)
        ]
        entries = np.concatenate([*taken, np.zeros(0, dtype=np.int64)])
        return np.concatenate([entries, starts[-1] + np.arange(len(self.log))])

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(
            size if nonzeros is None else len(nonzeros)
            for size, nonzeros in zip(self.sizes, self.nonzeros, strict=True)
        )

    @cached_property
    def _slices(self) -> tuple[slice, ...]:
        """The slice of the feature vector that holds each parameter."""
        ends = np.cumsum([0, *self._counts]).tolist()
        return tuple(slice(start, stop) for start, stop in pairwise(ends))

    def mask_of(self, wrt: Sequence[bool]) -> BoolArray:
        """Mask (size,) of the features that belong to the parameters selected by ``wrt``."""
        wanted = np.repeat(np.asarray(wrt, dtype=bool), self._counts)
        return np.concatenate([wanted, wanted[self.log]]) if len(self.log) else wanted

    def apply(self, theta: Sequence[Array], batch: int) -> Array:
        """Compute the feature vectors (batch, size) from arrays with or without a leading batch axis."""
        parts = [
            _flat(value, size, nonzeros, batch)
            for value, size, nonzeros in zip(theta, self.sizes, self.nonzeros, strict=True)
        ]
        flat = np.concatenate(parts, axis=1, out=empty(batch, self.entries)) if parts else np.zeros((batch, 0))
        return np.concatenate([flat, np.log(flat[:, self.log])], axis=1) if len(self.log) else flat

    def push(self, features: Array, tangents: Sequence[Array | None]) -> Array:
        """Push forward one tangent per parameter (None is zero) to feature tangents (batch, size)."""
        batch = features.shape[0]
        parts = [
            np.zeros((batch, count)) if value is None else _flat(value, size, nonzeros, batch)
            for value, size, nonzeros, count in zip(tangents, self.sizes, self.nonzeros, self._counts, strict=True)
        ]
        flat = np.concatenate(parts, axis=1) if parts else np.zeros((batch, 0))
        return np.concatenate([flat, flat[:, self.log] / features[:, self.log]], axis=1) if len(self.log) else flat

    def pull(self, features: Array, cotangent: Array) -> list[Array]:
        """Pull back feature cotangents (batch, size) to cotangents (batch, entries), one per parameter."""
        flat = cotangent[:, : self.entries]
        if len(self.log):
            flat = flat.copy()
            flat[:, self.log] += cotangent[:, self.entries :] / features[:, self.log]
        return [
            flat[:, where] if nonzeros is None else _spread(flat[:, where], size, nonzeros)
            for where, size, nonzeros in zip(self._slices, self.sizes, self.nonzeros, strict=True)
        ]


def _flat(value: Array, size: int, nonzeros: IndexArray | None, batch: int) -> Array:
    """Flatten an array with or without a batch axis to (batch, kept entries)."""
    rows = value.reshape(value.size // size if size else batch, size)
    if nonzeros is not None:
        rows = rows[:, nonzeros]
    return rows if len(rows) == batch else np.broadcast_to(rows, (batch, rows.shape[1]))


def _spread(rows: Array, size: int, nonzeros: IndexArray) -> Array:
    """Scatter kept entries into (batch, size), the adjoint of selecting them; other entries are zero."""
    spread = np.zeros((len(rows), size))
    spread[:, nonzeros] = rows
    return spread


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The affine map values = constant + matrix @ features; empty rows of the matrix cost no work.

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
        """The restriction of the map to a slice of its values."""
        return AffineMap(self.matrix[rows], self.constant[rows])

    def apply(self, features: Array) -> Array:
        """Evaluate the map at features (batch, features): values (batch, rows)."""
        if not self.matrix.nnz:
            return np.repeat(self.constant[None], len(features), axis=0)
        return self._forward.times(features, self.constant)

    def push(self, tangent: Array) -> Array:
        """Push forward feature tangents (batch, features) to (batch, rows)."""
        return self._forward.times(tangent)

    def pull(self, cotangent: Array) -> Array:
        """Pull back cotangents (batch, rows) to (batch, features)."""
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
        """Evaluate the product at features (batch, features): values (batch,)."""
        return np.vecdot(self.left.apply(features), self.right.apply(features))

    def push(self, features: Array, tangent: Array) -> Array:
        """Push forward feature tangents (batch, features) to (batch,)."""
        left, right = self.left, self.right
        terms = left.push(tangent) * right.apply(features) + left.apply(features) * right.push(tangent)
        return np.sum(terms, axis=1)

    def pull(self, features: Array, cotangent: Array) -> Array:
        """Pull back cotangents (batch,) to (batch, features)."""
        left, right, weight = self.left, self.right, cotangent[:, None]
        return left.pull(weight * right.apply(features)) + right.pull(weight * left.apply(features))
