"""Products of a batch with a sparse matrix that all elements share, and with one pattern whose values differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib import import_module
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexlayer import compiled
from convexlayer.buffers import empty, plain
from convexlayer.pool import share

__all__ = [
    "BatchedMatrix",
    "ProgramMatrix",
    "copy_entries",
    "entries_of_products",
    "residuals",
    "rotate_entries",
    "scale_entries",
    "scatter_product",
]

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]

ENTRY_S = 1e-9
"""Seconds that one entry of one element takes, roughly; tells where threads pay."""


@final
class BatchedMatrix:
    """One sparse matrix M (rows, columns), to multiply every row of a batch with."""

    def __init__(self, matrix: sp.csr_matrix) -> None:
        """Keep the matrix by rows."""
        self._matrix = matrix.tocsr()
        self._zero = np.zeros(matrix.shape[0])

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
        matrix = self._matrix
        return matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data.astype(np.float64)

    def times(self, x: Floats, constant: Floats | None = None) -> Floats:
        """Constant + M x for every element: x (B, columns) -> (B, rows)."""
        if not compiled.ready():
            product: Floats = (self._matrix @ x.T).T
            return product if constant is None else product + constant
        x = plain(x)
        out = empty(len(x), len(self._zero))
        arguments = (*self._arrays, self._zero if constant is None else constant, x, out)
        _run(_kernels().times, arguments, len(x), self._matrix.nnz + len(self._zero))
        return out


@final
class ProgramMatrix:
    """A sparse matrix M (P, q, r, A and b stacked; columns), and its adjoint, for every element of a batch in one pass.

    For where kernels are compiled.
    """

    def __init__(self, matrix: sp.csr_matrix, constant: Floats, sizes: Sequence[int]) -> None:
        """Arrange the entries.

        Args:
            matrix: by rows.
            constant: (rows,).
            sizes: rows of the five blocks.
        """
        self._constant, self._sizes = constant, tuple(sizes)
        self._forward = (matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data.astype(float))
        self._columns = matrix.shape[1]
        coordinates = matrix.tocoo()
        self._adjoint = coordinates.row, coordinates.col, coordinates.data.astype(float)
        self._entries: dict[bytes | None, tuple[Any, ...]] = {}

    def _entries_of(self, wanted: NDArray[np.bool_] | None) -> tuple[Any, ...]:
        """Ends of the blocks, columns, rows in their blocks, and values, of the entries in some columns (None: all)."""
        key = None if wanted is None else wanted.tobytes()
        found = self._entries.get(key)
        if found is None:
            rows, columns, values = self._adjoint
            chosen = np.arange(len(columns)) if wanted is None else np.flatnonzero(wanted[columns])
            chosen = chosen[np.argsort(rows[chosen], kind="stable")]
            stops = np.cumsum(self._sizes)
            ends = np.searchsorted(rows[chosen], stops)
            local = rows[chosen] - np.repeat(stops - self._sizes, np.diff(ends, prepend=0))
            integers = (part.astype(np.int32) for part in (ends, columns[chosen], local))
            found = self._entries[key] = (*integers, values[chosen])
        return found

    def times(self, x: Floats, *, normalise: bool) -> tuple[Floats, ...]:
        """P, q, r, A and b, each (B, size), of constant + M x; and the power of two (B,) that divides P, q and r."""
        batch = len(x)
        P, q, r, A, b = self._sizes
        out = empty(batch, P), empty(batch, q), np.empty((batch, r)), empty(batch, A), empty(batch, b), np.empty(batch)
        arguments = (*self._forward, self._constant, plain(x), normalise, *out)
        _run(_kernels().fill, arguments, batch, len(self._forward[1]) + len(self._constant))
        return out

    def adjoint(self, blocks: tuple[Floats, ...], inverse: Floats, wanted: NDArray[np.bool_] | None = None) -> Floats:
        """M'(P, q, r, A, b), (B, columns), with P, q and r multiplied by inverse (B,) first; zero where not wanted."""
        out = empty(len(inverse), self._columns)
        entries = self._entries_of(wanted)
        _run(
            _kernels().gather, (*entries, inverse, *map(plain, blocks), out), len(out), len(entries[1]) + self._columns
        )
        return out


def scatter_product(into: Positions, of: Positions, values: Floats, x: Floats, size: int) -> Floats:
    """Out (B, size) with out[into[p]] += values[p] x[of[p]] for every element: a product with a sparse matrix."""
    if len(values) != len(x):
        values, x = (np.broadcast_to(v, (max(len(values), len(x)), v.shape[1])) for v in (values, x))
    out = np.zeros((len(values), size))
    _run(_kernels().accumulate, (into, of, plain(values), plain(x), out), len(out), len(into))
    return out


def copy_entries(out: Floats, place: Positions, values: Floats, source: Positions) -> None:
    """out[:, place[p]] = values[:, source[p]] for every element."""
    if compiled.ready():
        _run(_kernels().copy_entries, (place, source, plain(values), out), len(out), len(place))
    else:
        out[:, place] = np.take(values, source, axis=1)


def scale_entries(
    out: Floats, place: Positions, values: Floats, source: Positions, factor: Floats, row: Positions
) -> None:
    """out[:, place[p]] = values[:, source[p]] factor[:, row[p]] for every element."""
    if compiled.ready():
        arguments = (place, source, row, plain(values), plain(factor), out)
        _run(_kernels().scale_entries, arguments, len(out), len(place))
    else:
        out[:, place] = np.take(values, source, axis=1) * np.take(factor, row, axis=1)


def rotate_entries(
    out: Floats, place: Positions, values: Floats, source: Positions, Q: Floats, root: Floats, block: Positions
) -> None:
    """Blocks diag(root) Q' M of every element.

    Args:
        out: (B, entries); those at ``place`` are written.
        place: where entry (i, c) of each product goes, (blocks, size, columns).
        values: (B, nnz).
        source: where entry (j, c) of each M stands among the values, -1 where it is zero, of the shape of ``place``.
        Q: (B, all blocks, size, size).
        root: (B, all blocks, size).
        block: which of all blocks each is, (blocks,).
    """
    if compiled.ready():
        arguments = (place, source, block, *map(plain, (values, Q, root)), out)
        _run(_kernels().rotate_entries, arguments, len(out), place.size * place.shape[1])
        return
    M = np.where(source >= 0, values[:, source], 0.0)
    L = Q[:, block] * root[:, block, None, :]
    out[:, place] = np.swapaxes(L, -1, -2) @ M


def entries_of_products(rows: Positions, cols: Positions, pairs: tuple[tuple[Floats, Floats], ...]) -> Floats:
    """The entries (B, nnz) of u1 v1' + u2 v2' on a pattern, of u (B, rows) and v (B, columns)."""
    (u1, v1), (u2, v2) = pairs
    if compiled.ready():
        out = empty(len(u1), len(rows))
        arguments = (rows, cols, *map(plain, (u1, v1, u2, v2)), out)
        _run(_kernels().outer_entries, arguments, len(out), len(rows))
        return out
    out = np.take(u1, rows, axis=1)
    out *= np.take(v1, cols, axis=1)
    other = np.take(u2, rows, axis=1)
    other *= np.take(v2, cols, axis=1)
    out += other
    return out


def residuals(
    patterns: tuple[Positions, Positions, Positions, Positions],
    zero: int,
    orthant: int,
    data: tuple[Floats, ...],
    curved: Floats,
) -> Floats:
    """The four residuals (B, 4) of solutions; where kernels are compiled.

    Args:
        patterns: rows and columns of P, and of A.
        zero: rows of the zero cone.
        orthant: end of the rows of the nonnegative cone.
        data: P, q, A, b, x, y, s.
        curved: projections of the other rows of y - s, (B, m - orthant).
    """
    out = np.empty((len(curved), 4))
    arguments = (*patterns, zero, orthant, *map(plain, data), plain(curved), out)
    _run(_kernels().residuals, arguments, len(out), len(patterns[0]) + 2 * len(patterns[2]))
    return out


def _run(kernel: Callable[..., None], arguments: tuple[Any, ...], batch: int, entries: int) -> None:
    if batch == 1:
        kernel(*arguments, 0, 1)
    else:
        share(lambda first, last: kernel(*arguments, first, last), batch, seconds=ENTRY_S * entries)


@cache
def _kernels() -> Any:
    """Imported when it is needed: numba takes half a second."""
    return import_module("convexlayer.sparse.kernels")
