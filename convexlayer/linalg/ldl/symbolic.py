"""Symbolic LDL' factorisation, once per layer: fill-reducing order, elimination tree, pattern of L and supernodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

from convexlayer.linalg.ldl.lanes import SUPERNODE_WIDTH, Indices, LanePlan
from convexlayer.program import Array, IndexArray, Pattern
from convexlayer.runtime.cached_kernel import cached_kernel

__all__ = ["Symbolic", "minimum_degree"]


@final
@dataclass(frozen=True, eq=False)
class Symbolic:
    """The symbolic factorisation of a pattern.

    Attributes:
        plan: index arrays of the kernels.
        place: position in the plan's values of each entry of the pattern's upper triangle, (nnz,) int32.
        fill: number of entries of L.
        flops: multiply-adds of a numeric factorisation.
    """

    plan: LanePlan
    place: Indices
    fill: int
    flops: int

    @cached_property
    def packed(self) -> Indices:
        """The plan in one int32 array, which is faster to pass to a kernel than twelve.

        First the start of each part and the end of the last one; then the parts of the plan; then, for each of the
        plan's values, the index of its entry in the pattern, or -1 for zeros that fill supernodes.
        """
        source = np.full(len(self.plan.row), -1)
        source[self.place] = np.arange(len(self.place))
        parts: list[NDArray[Any]] = [*self.plan, source]
        starts = np.cumsum([len(parts) + 1, *map(len, parts)])
        return np.concatenate([starts, *parts]).astype(np.int32)

    @staticmethod
    def of(pattern: Pattern, signs: Array, last: IndexArray | None = None) -> Symbolic:
        """Analyse a pattern.

        Args:
            pattern: upper triangle, every diagonal entry stored, (N, N).
            signs: expected signs of the pivots, (N,).
            last: indices of large dense blocks, which are eliminated after all others.
        """
        position = minimum_degree(pattern, last)
        permutation = np.argsort(position)
        rows, cols = position[pattern.rows], position[pattern.cols]
        upper = _Upper(pattern.shape[0], np.minimum(rows, cols), np.maximum(rows, cols))
        heads = _supernode_heads(*_factored(upper)[1:3])
        upper = upper.linked(heads)
        counts, factor_start, factor_row, *rows_of_L = _factored(upper)
        chunk_column, chunk_length = np.unique(heads, return_counts=True)
        supernode_start, supernode_column, supernode_length, supernode_end = _supernodes_of_rows(*rows_of_L, heads)
        plan = LanePlan(
            upper.start, upper.row, factor_start, factor_row,
            supernode_start, supernode_column, supernode_length, supernode_end,
            chunk_column.astype(np.int32), chunk_length.astype(np.int32), signs[permutation],
            permutation.astype(np.int32),
        )  # fmt: skip
        place = np.argsort(upper.order)[: pattern.nnz].astype(np.int32)
        return Symbolic(plan, place, len(factor_row), int(np.sum(counts.astype(np.int64) ** 2)) // 2)


@final
class _Upper:
    """Pattern of the upper triangle of the permuted matrix, sorted by columns."""

    def __init__(self, size: int, low: IndexArray, high: IndexArray) -> None:
        self.size, self.low, self.high = size, low, high
        self.order = np.lexsort((low, high))
        self.start = np.searchsorted(high[self.order], np.arange(size + 1)).astype(np.int32)
        self.row = low[self.order].astype(np.int32)

    def linked(self, heads: Indices) -> _Upper:
        """The pattern with all entries within each supernode stored, explicit zeros where there were none."""
        lead = np.flatnonzero(np.bincount(heads, minlength=self.size) == SUPERNODE_WIDTH)
        first, second = np.triu_indices(SUPERNODE_WIDTH, 1)
        low, high = (np.add.outer(lead, offset).ravel() for offset in (first, second))
        new = ~np.isin(high * self.size + low, self.high * self.size + self.low)
        return _Upper(self.size, np.concatenate([self.low, low[new]]), np.concatenate([self.high, high[new]]))


def minimum_degree(pattern: Pattern, last: IndexArray | None = None) -> IndexArray:
    """Position of each index in a fill-reducing order (N,): SuperLU's multiple minimum degree of A' + A.

    SuperLU orders only as part of a factorisation, so it factorises a diagonally dominant matrix of the pattern, which
    needs no pivoting. The ``last`` indices are left out: their dense block would take minutes to factorise.
    """
    size = pattern.shape[0]
    if last is not None and len(last):
        others = np.delete(np.arange(size), last)
        place = np.full(size, -1)
        place[others] = np.arange(len(others))
        within = (place[pattern.rows] >= 0) & (place[pattern.cols] >= 0)
        part = Pattern((len(others), len(others)), place[pattern.rows[within]], place[pattern.cols[within]])
        position = np.empty(size, dtype=np.int64)
        position[others], position[last] = minimum_degree(part), len(others) + np.arange(len(last))
        return position
    off = pattern.rows != pattern.cols
    upper = sp.coo_matrix((-np.ones(np.count_nonzero(off)), (pattern.rows[off], pattern.cols[off])), (size, size))
    symmetric = (upper + upper.T).tocsc()
    dominant = symmetric + sp.diags(1.0 - np.asarray(symmetric.sum(axis=0)).ravel())
    factor = splu(dominant.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    return factor.perm_c.astype(np.int64)


def _factored(upper: _Upper) -> tuple[Indices, ...]:
    """Pattern of L: by columns (counts, starts, rows), then by rows (starts, columns, positions)."""
    parent, counts = _elimination_tree(upper.start, upper.row)
    factor_start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return counts, factor_start, *_pattern_of_L(upper.start, upper.row, parent, factor_start)


@cached_kernel
def _elimination_tree(start: Indices, row: Indices) -> tuple[Indices, Indices]:
    """Elimination tree (Liu 1990): parents (-1 at roots), and entries below the diagonal of each column of L."""
    size = len(start) - 1
    parent = np.full(size, -1, np.int32)
    counts = np.zeros(size, np.int32)
    mark = np.full(size, -1, np.int32)
    for k in range(size):
        mark[k] = k
        for p in range(start[k], start[k + 1]):
            i = row[p]
            while mark[i] != k:
                if parent[i] == -1:
                    parent[i] = k
                counts[i] += 1
                mark[i] = k
                i = parent[i]
    return parent, counts


@cached_kernel
def _pattern_of_L(
    start: Indices, row: Indices, parent: Indices, factor_start: Indices
) -> tuple[Indices, Indices, Indices, Indices]:
    """Row indices of L by columns, and for each row of L its columns, ascending, and the positions of the entries."""
    size = len(start) - 1
    total = factor_start[size]
    factor_row = np.empty(total, np.int32)
    row_start = np.zeros(size + 1, np.int32)
    row_column = np.empty(total, np.int32)
    row_position = np.empty(total, np.int32)
    following = factor_start[:-1].copy()
    mark = np.full(size, -1, np.int32)
    filled = 0
    for k in range(size):
        mark[k] = k
        first = filled
        for p in range(start[k], start[k + 1]):
            i = row[p]
            while mark[i] != k:
                row_column[filled] = i
                filled += 1
                mark[i] = k
                i = parent[i]
        row_column[first:filled].sort()
        for t in range(first, filled):
            j = row_column[t]
            row_position[t] = following[j]
            factor_row[following[j]] = k
            following[j] += 1
        row_start[k + 1] = filled
    return factor_row, row_start, row_column, row_position


@cached_kernel
def _supernode_heads(factor_start: Indices, factor_row: Indices) -> Indices:
    """First column of the supernode of each column: SUPERNODE_WIDTH columns with the same rows below, or one column."""
    size = len(factor_start) - 1
    heads = np.arange(size).astype(np.int32)
    j = 0
    while j + SUPERNODE_WIDTH <= size:
        end = j + SUPERNODE_WIDTH
        stop = factor_start[end]
        same = True
        for q in range(SUPERNODE_WIDTH):
            below = stop - factor_start[end - 1]  # the last column has no row inside the run
            same = same and factor_start[j + q + 1] - factor_start[j + q] >= below
            for c in range(below if same else 0):
                same = same and factor_row[factor_start[j + q + 1] - 1 - c] == factor_row[stop - 1 - c]
            inside = factor_start[j + q + 1] - factor_start[j + q] - below
            same = same and (inside == 0 or factor_row[factor_start[j + q + 1] - below - 1] < end)
        if same:
            heads[j:end] = j
        j = end if same else j + 1
    return heads


@cached_kernel
def _supernodes_of_rows(
    row_start: Indices, row_column: Indices, row_position: Indices, heads: Indices
) -> tuple[Indices, Indices, Indices, Indices]:
    """Group the columns of each row of L in runs: starts of the rows' runs, first columns, lengths, last positions.

    A row within a supernode has only some of its columns, as runs of length 1.
    """
    size = len(row_start) - 1
    supernode_start = np.zeros(size + 1, np.int32)
    supernode_column = np.empty(len(row_column), np.int32)
    supernode_length = np.empty(len(row_column), np.int32)
    supernode_end = np.empty(len(row_column), np.int32)
    filled = 0
    for k in range(size):
        t = row_start[k]
        while t < row_start[k + 1]:
            j = row_column[t]
            whole = (
                t + SUPERNODE_WIDTH <= row_start[k + 1]
                and heads[j] == j
                and heads[row_column[t + SUPERNODE_WIDTH - 1]] == j
            )
            length = SUPERNODE_WIDTH if whole and row_column[t + SUPERNODE_WIDTH - 1] == j + SUPERNODE_WIDTH - 1 else 1
            supernode_column[filled], supernode_length[filled] = j, length
            supernode_end[filled] = row_position[t + length - 1]
            filled += 1
            t += length
        supernode_start[k + 1] = filled
    return (
        supernode_start,
        supernode_column[:filled].copy(),
        supernode_length[:filled].copy(),
        supernode_end[:filled].copy(),
    )
