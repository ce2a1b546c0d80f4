"""Products of a batch with a sparse matrix that all elements share, and with one pattern whose values differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexlayer import compiled
from convexlayer.pool import share

__all__ = ["BatchedMatrix", "entries_of_products", "residuals", "scatter_product"]

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
        x = _plain(x)
        out = np.empty((len(x), len(self._zero)))
        arguments = (*self._arrays, self._zero if constant is None else constant, x, out)
        _run(_kernels().times, arguments, len(x), self._matrix.nnz + len(self._zero))
        return out


def scatter_product(into: Positions, of: Positions, values: Floats, x: Floats, size: int) -> Floats:
    """Out (B, size) with out[into[p]] += values[p] x[of[p]] for every element: a product with a sparse matrix."""
    if len(values) != len(x):
        values, x = (np.broadcast_to(v, (max(len(values), len(x)), v.shape[1])) for v in (values, x))
    out = np.zeros((len(values), size))
    _run(_kernels().accumulate, (into, of, _plain(values), _plain(x), out), len(out), len(into))
    return out


def entries_of_products(rows: Positions, cols: Positions, pairs: tuple[tuple[Floats, Floats], ...]) -> Floats:
    """The entries (B, nnz) of u1 v1' + u2 v2' on a pattern, of u (B, rows) and v (B, columns)."""
    (u1, v1), (u2, v2) = pairs
    if compiled.ready():
        out = np.empty((len(u1), len(rows)))
        arguments = (rows, cols, *map(_plain, (u1, v1, u2, v2)), out)
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
    arguments = (*patterns, zero, orthant, *map(_plain, data), _plain(curved), out)
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


def _plain(values: Floats) -> Floats:
    """Contiguous and writable, as the kernels are compiled for."""
    flags = values.flags
    if flags.c_contiguous and flags.writeable and values.dtype == np.float64:
        return values
    return np.require(values, np.float64, ["C", "W"])
