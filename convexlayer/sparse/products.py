"""Products of batches with one shared sparse matrix, and with sparse matrices of one pattern."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, reduce
from typing import NamedTuple, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexlayer.runtime import kernel_cache
from convexlayer.runtime.buffers import as_contiguous_float64, contiguous, empty
from convexlayer.sparse.dispatch import kernels, run
from convexlayer.sparse.rows import max_norm
from convexlayer.sparse.structures import Entries, Floats, Positions, ProgramBlocks

__all__ = [
    "BatchedMatrix",
    "EntriesOfSystem",
    "ProgramMatrix",
    "entries_of_products",
    "entries_of_system",
    "power_of_two",
    "rotate_entries",
]


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
        run(kernels().times, arguments, len(x), self._matrix.nnz + len(self._zero))
        return out


@final
class ProgramMatrix:
    """A sparse matrix M, whose rows are stacked P, q, r, A and b, and its adjoint; kernels apply each in one pass."""

    def __init__(self, matrix: sp.csr_matrix, constant: Floats, sizes: Sequence[int]) -> None:
        """Store the matrix.

        Args:
            matrix: M, by rows.
            constant: (rows,).
            sizes: numbers of rows of the five blocks.
        """
        self._matrix, self._constant, self._sizes = matrix, constant, tuple(sizes)
        self._ends = np.cumsum(self._sizes)
        self._entries: dict[bytes | None, Entries] = {}

    def times(self, x: Floats, *, normalise: bool) -> tuple[ProgramBlocks, Floats]:
        """P, q, r, A and b of constant + M x, each (B, size), and the powers of two (B,) that divide P, q and r.

        They are near the largest entry of P and q, and 1 for a zero objective or without ``normalise``.
        """
        if not kernel_cache.ready():
            return self._portable_times(x, normalise=normalise)
        batch = len(x)
        P, q, r, A, b = self._sizes
        out = ProgramBlocks(empty(batch, P), empty(batch, q), np.empty((batch, r)), empty(batch, A), empty(batch, b))
        scale = np.empty(batch)
        entries = self._entries_of(None)
        arguments = (tuple(entries), self._constant, as_contiguous_float64(x), normalise, tuple(out), scale)
        run(kernels().apply_program_map, arguments, batch, len(entries.column) + len(self._constant))
        return out, scale

    def _portable_times(self, x: Floats, *, normalise: bool) -> tuple[ProgramBlocks, Floats]:
        image = (self._matrix @ x.T).T + self._constant
        P, q, r, A, b = np.split(image, self._ends[:-1], axis=1)
        if not normalise:
            return ProgramBlocks(P, q, r, A, b), np.ones(len(x))
        scale = power_of_two(np.maximum(max_norm(P), max_norm(q)))
        column = scale[:, None]
        return ProgramBlocks(P / column, q / column, r / column, A, b), scale

    def adjoint(self, blocks: ProgramBlocks, wanted: NDArray[np.bool_] | None = None) -> Floats:
        """M'(P, q, r, A, b), (B, columns); zero in columns not wanted."""
        if not kernel_cache.ready():
            return self._portable_adjoint(blocks, wanted)
        out = empty(len(blocks.q), self._matrix.shape[1])
        entries = self._entries_of(wanted)
        arguments = (tuple(entries), contiguous(blocks), out)
        run(kernels().apply_adjoint, arguments, len(out), len(entries.column) + out.shape[1])
        return out

    def _portable_adjoint(self, blocks: ProgramBlocks, wanted: NDArray[np.bool_] | None) -> Floats:
        each = zip(self._transposed, blocks, strict=True)
        pulled = [(transposed @ block.T).T for transposed, block in each if transposed.nnz]
        total = reduce(np.add, pulled) if pulled else np.zeros((len(blocks.q), self._matrix.shape[1]))
        return total if wanted is None else np.where(wanted, total, 0.0)

    @cached_property
    def _transposed(self) -> list[sp.csr_matrix]:
        """The transpose of each block."""
        starts = [0, *self._ends[:-1]]
        return [self._matrix[start:end].T.tocsr() for start, end in zip(starts, self._ends, strict=True)]

    @cached_property
    def _coordinates(self) -> tuple[Positions, Positions, Floats]:
        coordinates = self._matrix.tocoo()
        return coordinates.row, coordinates.col, coordinates.data.astype(float)

    def _entries_of(self, wanted: NDArray[np.bool_] | None) -> Entries:
        """The entries in some columns (None: all)."""
        key = None if wanted is None else wanted.tobytes()
        found = self._entries.get(key)
        if found is None:
            rows, columns, values = self._coordinates
            chosen = np.arange(len(columns)) if wanted is None else np.flatnonzero(wanted[columns])
            chosen = chosen[np.argsort(rows[chosen], kind="stable")]
            ends = np.searchsorted(rows[chosen], self._ends)
            local = rows[chosen] - np.repeat(self._ends - self._sizes, np.diff(ends, prepend=0))
            index = [part.astype(np.int32) for part in (ends, columns[chosen], local)]
            found = self._entries[key] = Entries(index[0], index[1], index[2], values[chosen])
        return found


def power_of_two(size: Floats) -> Floats:
    """The nearest powers of two, in the logarithm; 1 for 0."""
    rounded: Floats = np.exp2(np.rint(np.log2(np.where(size > 0, size, 1.0))))
    return rounded


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
        arguments = (tuple(where), *contiguous((P, A, d)), out)
        run(kernels().system_entries, arguments, len(out), size)
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
        arguments = (place, source, block, *contiguous((values, Q, root)), out)
        run(kernels().rotate_entries, arguments, len(out), place.size * place.shape[1])
        return
    M = np.where(source >= 0, values[:, source], 0.0)
    L = Q[:, block] * root[:, block, None, :]
    out[:, place] = np.swapaxes(L, -1, -2) @ M


def entries_of_products(rows: Positions, cols: Positions, pairs: tuple[tuple[Floats, Floats], ...]) -> Floats:
    """The entries (B, nnz) of u1 v1' + u2 v2' on a pattern, with u (B, rows) and v (B, columns)."""
    (u1, v1), (u2, v2) = pairs
    if kernel_cache.ready():
        out = empty(len(u1), len(rows))
        arguments = (rows, cols, *contiguous((u1, v1, u2, v2)), out)
        run(kernels().outer_entries, arguments, len(out), len(rows))
        return out
    out = np.take(u1, rows, axis=1)
    out *= np.take(v1, cols, axis=1)
    other = np.take(u2, rows, axis=1)
    other *= np.take(v2, cols, axis=1)
    out += other
    return out
