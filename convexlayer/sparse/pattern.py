"""Sparsity patterns, shared by the elements of a batch, and products with matrices of a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from convexlayer.runtime import kernel_cache
from convexlayer.runtime.buffers import contiguous
from convexlayer.sparse.dispatch import kernels, run
from convexlayer.sparse.structures import Floats, Patterns, Positions

__all__ = ["Pattern", "pattern_fields"]


@dataclass(frozen=True, eq=False)
class Pattern:
    """The sparsity pattern of a matrix in CSC order: column by column, rows ascending within a column.

    Attributes:
        shape: (rows, columns).
        rows: row index of each stored entry, (nnz,).
        cols: column index of each stored entry, (nnz,), ascending.
    """

    shape: tuple[int, int]
    rows: Positions
    cols: Positions

    def __post_init__(self) -> None:
        # The layout for which kernels are compiled; another one, such as that of ``np.nonzero``, would recompile them.
        for name in ("rows", "cols"):
            object.__setattr__(self, name, np.require(getattr(self, name), np.int64, ["C", "W"]))

    @property
    def nnz(self) -> int:
        """Number of stored entries; explicit zeros count."""
        return len(self.rows)

    @cached_property
    def indptr(self) -> Positions:
        """Column pointers of the CSC form, (columns + 1,)."""
        return np.searchsorted(self.cols, np.arange(self.shape[1] + 1)).astype(np.int64)

    @cached_property
    def _by_row(self) -> tuple[Positions, Positions, Positions]:
        """Permutation to row order, the nonempty rows, and the start of each of them."""
        order = np.argsort(self.rows, kind="stable")
        occurring, starts = np.unique(self.rows[order], return_index=True)
        return order, occurring, starts

    @cached_property
    def _by_col(self) -> tuple[Positions, Positions]:
        """The nonempty columns, and the start of each of them."""
        occurring, starts = np.unique(self.cols, return_index=True)
        return occurring, starts

    @property
    def empty(self) -> Pattern:
        """The pattern of the zero matrix of this shape."""
        return Pattern(self.shape, self.rows[:0], self.cols[:0])

    @cached_property
    def row_singletons(self) -> NDArray[np.bool_]:
        """Mask (nnz,) of the entries that are the only one in their row."""
        alone: NDArray[np.bool_] = np.bincount(self.rows, minlength=self.shape[0])[self.rows] == 1
        return alone

    @cached_property
    def transposed_positions(self) -> Positions:
        """Position of entry (j, i) for each entry (i, j) of a symmetric pattern, (nnz,)."""
        return np.lexsort((self.cols, self.rows))

    def matvec(self, values: Floats, x: Floats) -> Floats:
        """Compute M x for a batch: values (B, nnz), x (B, columns) -> (B, rows)."""
        if kernel_cache.ready():
            return _scatter_product(self.rows, self.cols, values, x, self.shape[0])
        out = np.zeros((values.shape[0], self.shape[0]))
        if self.nnz:
            order, occurring, starts = self._by_row
            out[:, occurring] = np.add.reduceat(values[:, order] * x[:, self.cols[order]], starts, axis=1)
        return out

    def rmatvec(self, values: Floats, y: Floats) -> Floats:
        """Compute M'y for a batch: values (B, nnz), y (B, rows) -> (B, columns)."""
        if kernel_cache.ready():
            return _scatter_product(self.cols, self.rows, values, y, self.shape[1])
        out = np.zeros((values.shape[0], self.shape[1]))
        if self.nnz:
            occurring, starts = self._by_col
            out[:, occurring] = np.add.reduceat(values * y[:, self.rows], starts, axis=1)
        return out

    def by_row(self, reduce: np.ufunc, values: Floats, empty: float) -> Floats:
        """Reduce values (B, nnz) along each row, (B, rows); empty rows get the value ``empty``."""
        out = np.full((values.shape[0], self.shape[0]), empty)
        if self.nnz:
            order, occurring, starts = self._by_row
            out[:, occurring] = reduce.reduceat(values[:, order], starts, axis=1)
        return out

    def by_col(self, reduce: np.ufunc, values: Floats, empty: float) -> Floats:
        """Reduce values (B, nnz) along each column, (B, columns); empty columns get the value ``empty``."""
        out = np.full((values.shape[0], self.shape[1]), empty)
        if self.nnz:
            occurring, starts = self._by_col
            out[:, occurring] = reduce.reduceat(values, starts, axis=1)
        return out

    def dense(self, values: Floats) -> Floats:
        """Build dense matrices (B, rows, columns) from values (B, nnz)."""
        out = np.zeros((values.shape[0], *self.shape))
        out[:, self.rows, self.cols] = values
        return out

    def csc(self, values: Floats) -> sp.csc_matrix:
        """Build the sparse matrix of one element from values (nnz,); explicit zeros are kept."""
        return sp.csc_matrix((values, self.rows, self.indptr), shape=self.shape)


def _scatter_product(into: Positions, of: Positions, values: Floats, x: Floats, size: int) -> Floats:
    """out[into[p]] += values[p] x[of[p]] for every element, (B, size)."""
    if len(values) != len(x):
        values, x = (np.broadcast_to(v, (max(len(values), len(x)), v.shape[1])) for v in (values, x))
    out = np.zeros((len(values), size))
    run(kernels().accumulate, (into, of, *contiguous((values, x)), out), len(out), len(into))
    return out


def pattern_fields(P: Pattern, A: Pattern) -> tuple[Positions, ...]:
    """The fields of ``Patterns``, as kernels take them."""
    return tuple(Patterns(P.rows, P.indptr, A.rows, A.indptr))
