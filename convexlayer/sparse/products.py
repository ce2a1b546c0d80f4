"""Products of batches with one shared sparse matrix, and with sparse matrices of one pattern."""

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
"""Cost model for splitting a batch among threads: seconds per entry and element (rough measurement)."""


@final
class BatchedMatrix:
    """A sparse matrix M (rows, columns) that multiplies every element of a batch."""

    def __init__(self, matrix: sp.csr_matrix) -> None:
        """Store the matrix by rows."""
        self._matrix = matrix.tocsr()
        self._zero = np.zeros(matrix.shape[0])

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
        matrix = self._matrix
        return matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data.astype(np.float64)

    def times(self, x: Floats, constant: Floats | None = None) -> Floats:
        """constant + M x for every element, x (B, columns) -> (B, rows)."""
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
    """A sparse matrix M, whose rows are stacked P, q, r, A and b, and its adjoint, each applied in one pass.

    Requires compiled kernels.
    """

    def __init__(self, matrix: sp.csr_matrix, constant: Floats, sizes: Sequence[int]) -> None:
        """Store the entries.

        Args:
            matrix: M, by rows.
            constant: (rows,).
            sizes: numbers of rows of the five blocks.
        """
        self._constant, self._sizes = constant, tuple(sizes)
        self._columns = matrix.shape[1]
        coordinates = matrix.tocoo()
        self._coordinates = coordinates.row, coordinates.col, coordinates.data.astype(float)
        self._entries: dict[bytes | None, tuple[Any, ...]] = {}

    def _entries_of(self, wanted: NDArray[np.bool_] | None) -> tuple[Any, ...]:
        """Ends of the blocks, and columns, rows within blocks and values of the entries in some columns (None: all)."""
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
        """P, q, r, A and b of constant + M x, each (B, size), and the powers of two (B,) that divide P, q and r."""
        batch = len(x)
        P, q, r, A, b = self._sizes
        out = empty(batch, P), empty(batch, q), np.empty((batch, r)), empty(batch, A), empty(batch, b), np.empty(batch)
        entries = self._entries_of(None)
        arguments = (*entries, self._constant, as_contiguous_float64(x), normalise, *out)
        _run(_kernels().apply_program_map, arguments, batch, len(entries[1]) + len(self._constant))
        return out

    def adjoint(self, blocks: tuple[Floats, ...], inverse: Floats, wanted: NDArray[np.bool_] | None = None) -> Floats:
        """M'(inverse P, inverse q, inverse r, A, b), (B, columns), inverse (B,); zero in columns not wanted."""
        out = empty(len(inverse), self._columns)
        entries = self._entries_of(wanted)
        _run(
            _kernels().apply_adjoint,
            (*entries, inverse, *map(as_contiguous_float64, blocks), out),
            len(out),
            len(entries[1]) + self._columns,
        )
        return out


def scatter_product(into: Positions, of: Positions, values: Floats, x: Floats, size: int) -> Floats:
    """out[into[p]] += values[p] x[of[p]] for every element, (B, size): a product with sparse matrices."""
    if len(values) != len(x):
        values, x = (np.broadcast_to(v, (max(len(values), len(x)), v.shape[1])) for v in (values, x))
    out = np.zeros((len(values), size))
    arguments = (into, of, as_contiguous_float64(values), as_contiguous_float64(x), out)
    _run(_kernels().accumulate, arguments, len(out), len(into))
    return out


class EntriesOfSystem(NamedTuple):
    """Positions in a symmetric matrix of entries of P, of rows of diag(d) A, and of diag(d) - I.

    Attributes:
        P_source: indices of entries of P.
        P_place: their positions.
        A_source: indices of entries of A.
        A_row: their rows, as indices into d.
        A_place: their positions.
        diagonal: positions of d - 1.
    """

    P_source: Positions
    P_place: Positions
    A_source: Positions
    A_row: Positions
    A_place: Positions
    diagonal: Positions


def entries_of_system(where: EntriesOfSystem, P: Floats, A: Floats, d: Floats, size: int) -> Floats:
    """The values (B, size) of these matrices, from the values P (B, nnz), A (B, nnz) and d (B, rows)."""
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
    """Compute the blocks diag(root) Q' M of every element.

    Args:
        out: out, (B, entries); only the entries at ``place`` are written.
        place: position in out of entry (i, c) of each product, (blocks, size, columns).
        values: (B, nnz).
        source: index in values of entry (j, c) of each M, -1 for zeros, of the shape of ``place``.
        Q: (B, all blocks, size, size).
        root: (B, all blocks, size).
        block: index of each block among all blocks, (blocks,).
    """
    if kernel_cache.ready():
        arguments = (place, source, block, *map(as_contiguous_float64, (values, Q, root)), out)
        _run(_kernels().rotate_entries, arguments, len(out), place.size * place.shape[1])
        return
    M = np.where(source >= 0, values[:, source], 0.0)
    L = Q[:, block] * root[:, block, None, :]
    out[:, place] = np.swapaxes(L, -1, -2) @ M


def entries_of_products(rows: Positions, cols: Positions, pairs: tuple[tuple[Floats, Floats], ...]) -> Floats:
    """The entries (B, nnz) of u1 v1' + u2 v2' on a pattern, with u (B, rows) and v (B, columns)."""
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
"""Row indices and column starts of P, and those of A, both by columns (CSC)."""


def scales(
    patterns: Patterns, blocks: Positions, free: int, constants: tuple[float, ...], data: tuple[Floats, ...]
) -> tuple[Floats, ...]:
    """The arrays of ``certificate.Scales``. Requires compiled kernels.

    Args:
        patterns: see ``Patterns``.
        blocks: first rows of the blocks of curved cones, and m.
        free: number of rows of the zero cone.
        constants: the constants of ``certificate``, in the order of the kernel.
        data: P, q, A, b, x, y, s.
    """
    (batch, n), m = data[1].shape, data[3].shape[1]
    out = tuple(empty(batch, size) for size in (n, n, m, m, m, n, m))
    arguments = (*patterns, blocks, free, constants, *map(as_contiguous_float64, data), *out)
    _run(_kernels().scales, arguments, batch, 3 * (len(patterns[0]) + 2 * len(patterns[2])))
    return out


def complementary(patterns: Patterns, free: int, data: tuple[Floats, ...]) -> tuple[Floats, ...]:
    """y, s, Px + q + A'y, Ax + s - b and backward errors of complementary points. Requires compiled kernels.

    Args:
        patterns: see ``Patterns``.
        free: number of rows of the zero cone.
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
    """The arrays of ``layers.units.Equilibration``. Requires compiled kernels.

    Args:
        patterns: see ``Patterns``.
        blocks: first rows of the blocks of curved cones, and m.
        passes: number of Ruiz passes.
        even: largest ratio of row norms of a program that is not scaled.
        rounding: norm(b) relative to norm(q) / norm(P) up to which b is negligible.
        data: P, q, A, b.
    """
    (batch, n), m = data[1].shape, data[3].shape[1]
    out = empty(batch, n), empty(batch, m), np.empty(batch), np.empty(batch)
    arguments = (*patterns, blocks, passes, even, rounding, *map(as_contiguous_float64, data), *out)
    _run(_kernels().equilibrate, arguments, batch, 3 * (len(patterns[0]) + len(patterns[2])))
    return out


def residuals(patterns: Patterns, zero: int, orthant: int, data: tuple[Floats, ...], curved: Floats) -> Floats:
    """Primal, dual, gap and natural residual, their maximum, and the objective, (6, B). Requires compiled kernels.

    Args:
        patterns: see ``Patterns``.
        zero: number of rows of the zero cone.
        orthant: index after the last row of the nonnegative cone.
        data: P, q, r, A, b, x, y, s.
        curved: projections of the curved rows of y - s, (B, m - orthant).
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
    """The kernel module, imported on demand because importing Numba takes half a second."""
    return import_module("convexlayer.sparse.kernels")
