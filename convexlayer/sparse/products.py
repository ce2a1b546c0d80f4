"""Products of a batch with a sparse matrix that all elements share, and with one pattern whose values differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib import import_module
from typing import Any, NamedTuple, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexlayer.runtime import kernel_cache
from convexlayer.runtime.buffers import as_contiguous_float64, empty
from convexlayer.runtime.threads import parallel_for

__all__ = [
    "BatchedMatrix",
    "EntriesOfSystem",
    "ProgramMatrix",
    "entries_of_products",
    "entries_of_system",
    "equilibrate",
    "residuals",
    "rotate_entries",
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
        if not kernel_cache.ready():
            product: Floats = (self._matrix @ x.T).T
            return product if constant is None else product + constant
        x = as_contiguous_float64(x)
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
        self._columns = matrix.shape[1]
        coordinates = matrix.tocoo()
        self._coordinates = coordinates.row, coordinates.col, coordinates.data.astype(float)
        self._entries: dict[bytes | None, tuple[Any, ...]] = {}

    def _entries_of(self, wanted: NDArray[np.bool_] | None) -> tuple[Any, ...]:
        """Ends of the blocks, columns, rows in their blocks, and values, of the entries in some columns (None: all)."""
        key = None if wanted is None else wanted.tobytes()
        found = self._entries.get(key)
        if found is None:
            rows, columns, values = self._coordinates
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
        entries = self._entries_of(None)
        arguments = (*entries, self._constant, as_contiguous_float64(x), normalise, *out)
        _run(_kernels().fill, arguments, batch, len(entries[1]) + len(self._constant))
        return out

    def adjoint(self, blocks: tuple[Floats, ...], inverse: Floats, wanted: NDArray[np.bool_] | None = None) -> Floats:
        """M'(P, q, r, A, b), (B, columns), with P, q and r multiplied by inverse (B,) first; zero where not wanted."""
        out = empty(len(inverse), self._columns)
        entries = self._entries_of(wanted)
        _run(
            _kernels().gather,
            (*entries, inverse, *map(as_contiguous_float64, blocks), out),
            len(out),
            len(entries[1]) + self._columns,
        )
        return out


def scatter_product(into: Positions, of: Positions, values: Floats, x: Floats, size: int) -> Floats:
    """Out (B, size) with out[into[p]] += values[p] x[of[p]] for every element: a product with a sparse matrix."""
    if len(values) != len(x):
        values, x = (np.broadcast_to(v, (max(len(values), len(x)), v.shape[1])) for v in (values, x))
    out = np.zeros((len(values), size))
    arguments = (into, of, as_contiguous_float64(values), as_contiguous_float64(x), out)
    _run(_kernels().accumulate, arguments, len(out), len(into))
    return out


class EntriesOfSystem(NamedTuple):
    """Where the entries of P and of diag(d) A, and those of diag(d) - I, stand in a symmetric matrix.

    Attributes:
        P_source: some entries of P ...
        P_place: ... and their places.
        A_source: entries of some rows of A ...
        A_row: ... those rows ...
        A_place: ... and their places.
        diagonal: the places of d - 1.
    """

    P_source: Positions
    P_place: Positions
    A_source: Positions
    A_row: Positions
    A_place: Positions
    diagonal: Positions


def entries_of_system(where: EntriesOfSystem, P: Floats, A: Floats, d: Floats, size: int) -> Floats:
    """The values (B, size) of the matrices of values P (B, nnz) and A (B, nnz) and of d (B, rows)."""
    out = empty(len(P), size)
    if kernel_cache.ready():
        arguments = (*where, as_contiguous_float64(P), as_contiguous_float64(A), as_contiguous_float64(d), out)
        _run(_kernels().system_entries, arguments, len(out), size)
        return out
    out.fill(0.0)
    out[:, where.P_place] = np.take(P, where.P_source, axis=1)
    out[:, where.A_place] = np.take(A, where.A_source, axis=1) * np.take(d, where.A_row, axis=1)
    out[:, where.diagonal] = d - 1.0
    return out


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
    if kernel_cache.ready():
        arguments = (place, source, block, *map(as_contiguous_float64, (values, Q, root)), out)
        _run(_kernels().rotate_entries, arguments, len(out), place.size * place.shape[1])
        return
    M = np.where(source >= 0, values[:, source], 0.0)
    L = Q[:, block] * root[:, block, None, :]
    out[:, place] = np.swapaxes(L, -1, -2) @ M


def entries_of_products(rows: Positions, cols: Positions, pairs: tuple[tuple[Floats, Floats], ...]) -> Floats:
    """The entries (B, nnz) of u1 v1' + u2 v2' on a pattern, of u (B, rows) and v (B, columns)."""
    (u1, v1), (u2, v2) = pairs
    if kernel_cache.ready():
        out = empty(len(u1), len(rows))
        arguments = (rows, cols, *map(as_contiguous_float64, (u1, v1, u2, v2)), out)
        _run(_kernels().outer_entries, arguments, len(out), len(rows))
        return out
    out = np.take(u1, rows, axis=1)
    out *= np.take(v1, cols, axis=1)
    other = np.take(u2, rows, axis=1)
    other *= np.take(v2, cols, axis=1)
    out += other
    return out


Patterns = tuple[Positions, Positions, Positions, Positions]
"""Rows of P by columns and where its columns start, and the same of A."""


def scales(
    patterns: Patterns, blocks: Positions, free: int, constants: tuple[float, ...], data: tuple[Floats, ...]
) -> tuple[Floats, ...]:
    """The arrays of ``certificate.Scales``; where kernels are compiled.

    Args:
        patterns: see ``Patterns``.
        blocks: first rows of the blocks of curved cones, and m.
        free: rows of the zero cone.
        constants: those of ``certificate``, in the order of its use.
        data: P, q, A, b, x, y, s.
    """
    (batch, n), m = data[1].shape, data[3].shape[1]
    out = tuple(empty(batch, size) for size in (n, n, m, m, m, n, m))
    arguments = (*patterns, blocks, free, constants, *map(as_contiguous_float64, data), *out)
    _run(_kernels().scales, arguments, batch, 3 * (len(patterns[0]) + 2 * len(patterns[2])))
    return out


def complementary(patterns: Patterns, free: int, data: tuple[Floats, ...]) -> tuple[Floats, ...]:
    """Y, s, Px + q + A'y, Ax + s - b and backward errors of complementary points; where kernels are compiled.

    Args:
        patterns: see ``Patterns``.
        free: rows of the zero cone.
        data: P, q, A, b, x, w, projections of the curved rows of w, c, and the sizes of dual and primal rows.
    """
    (batch, n), m = data[1].shape, data[3].shape[1]
    out = empty(batch, m), empty(batch, m), empty(batch, n), empty(batch, m), np.empty(batch)
    arguments = (*patterns, free, *map(as_contiguous_float64, data), *out)
    _run(_kernels().complementary, arguments, batch, len(patterns[0]) + 2 * len(patterns[2]))
    return out


def equilibrate(
    patterns: Patterns, blocks: Positions, passes: int, even: float, rounding: float, data: tuple[Floats, ...]
) -> tuple[Floats, ...]:
    """The arrays of ``layers.units.Equilibration``; where kernels are compiled.

    Args:
        patterns: see ``Patterns``.
        blocks: first rows of the blocks of curved cones, and m.
        passes: over the data.
        even: how unlike the rows of a program that is left alone may be.
        rounding: share of q over P up to which b tells nothing.
        data: P, q, A, b.
    """
    (batch, n), m = data[1].shape, data[3].shape[1]
    out = empty(batch, n), empty(batch, m), np.empty(batch), np.empty(batch)
    arguments = (*patterns, blocks, passes, even, rounding, *map(as_contiguous_float64, data), *out)
    _run(_kernels().equilibrate, arguments, batch, 3 * (len(patterns[0]) + len(patterns[2])))
    return out


def residuals(patterns: Patterns, zero: int, orthant: int, data: tuple[Floats, ...], curved: Floats) -> Floats:
    """Primal, dual, gap and natural residual, their largest, and the objective, (6, B); where kernels are compiled.

    Args:
        patterns: see ``Patterns``.
        zero: rows of the zero cone.
        orthant: end of the rows of the nonnegative cone.
        data: P, q, r, A, b, x, y, s.
        curved: projections of the other rows of y - s, (B, m - orthant).
    """
    batch = len(curved)
    out = np.empty((6, batch))
    arguments = (*patterns, zero, orthant, *map(as_contiguous_float64, data), as_contiguous_float64(curved), out)
    _run(_kernels().residuals, arguments, batch, len(patterns[0]) + 2 * len(patterns[2]))
    return out


def _run(kernel: Callable[..., None], arguments: tuple[Any, ...], batch: int, entries: int) -> None:
    if batch == 1:
        kernel(*arguments, 0, 1)
    else:
        parallel_for(lambda first, last: kernel(*arguments, first, last), batch, seconds_per_item=ENTRY_S * entries)


@cache
def _kernels() -> Any:
    """Imported when it is needed: numba takes half a second."""
    return import_module("convexlayer.sparse.kernels")
