"""Selection of the pivots with which presolve eliminates variables: a greedy symbolic elimination that limits fill.

A pivot (i, j) solves row i for x_j. A pivot is admissible if

- row i is an equality with constant coefficients, so that x stays linear in the remaining variables;
- its coefficient, in the units of the variables, is not small relative to its row (threshold pivoting: Duff, Erisman
  and Reid, Direct Methods for Sparse Matrices, 2017, section 5.2);
- the substitution multiplies no two factors that both depend on the parameters.

A pivot is eliminated if the program does not grow (Markowitz, Management Science 3, 1957), where the size of a program
is nnz(P) + nnz(A) plus its numbers of variables and rows. Rows that would cause fill one at a time are also tried in
groups: the rows of t = L x fill the same block of P.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp

from convexlayer.canon.affine_matrix import AffineMatrix
from convexlayer.canon.tracked_matrix import CANCELLED, TrackedMatrix
from convexlayer.program import Array, Cones, IndexArray

__all__ = ["Pivot", "TrackedNumber", "select_pivots"]

TrackedNumber = tuple[float, float]
"""A value, and the sum of the absolute values of the terms summed into it."""

PIVOT_THRESHOLD = 0.1
"""Pivot threshold: smallest pivot relative to the largest entry of its row, so that entries grow by at most a factor of
1 + 1 / 0.1 a step; the usual value in sparse LU (Duff, Erisman and Reid, Direct Methods for Sparse Matrices)."""

SINGLETON_PIVOT_THRESHOLD = 1e-3
"""Pivot threshold of a column singleton. No row is updated then, so a smaller pivot is stable; P is multiplied by the
square of its inverse."""

CANCELLATION_THRESHOLD = 1e-3
"""Smallest pivot relative to the sum of its terms' absolute values; trades eliminations for accuracy after
cancellation."""

RUIZ_PASSES = 5
"""Number of Ruiz passes that estimate the units of the variables. Each halves the orders of magnitude that are left,
and only those matter."""

FREE_ROW_LENGTH = 4
"""Number of entries that a cone row may always have; beyond, fill may not exceed the longest initial cone row. Trades
eliminations for the sparsity of A, which a test of presolve asserts for sparse programs."""

MAX_COPIES = 2
"""Maximum number of variables to which parameter-dependent coefficients are copied. Trades eliminations for the size of
the affine map."""

MAX_COPIED_FEATURES = 8
"""Number of features up to which right-hand sides and linear costs may be copied to more than MAX_COPIES variables; the
same trade."""

MAX_PIVOT_CANDIDATES = 3
"""Maximum number of pivot columns tried per row, in ascending order of their number of coefficients; trades
eliminations for the time of presolve."""

MAX_GROUP_WORK = 10**8
"""Maximum sum of squared support sizes of a group; larger groups are skipped to bound the time of presolve."""


@dataclass(frozen=True)
class Pivot:
    """A row that is solved for a column, after the elimination of all earlier pivots.

    Attributes:
        row: row index.
        column: column index.
        values: coefficients of the row by column, after elimination of the earlier pivots' columns (a row of U).
        multipliers: multiples of the earlier pivots' rows that were subtracted, by pivot index (a row of L).
    """

    row: int
    column: int
    values: dict[int, TrackedNumber]
    multipliers: dict[int, TrackedNumber]


def select_pivots(P: AffineMatrix, A: AffineMatrix, q: TrackedMatrix, b: TrackedMatrix, cones: Cones) -> list[Pivot]:
    """Select the pivots, in the order of their elimination.

    Args:
        P: quadratic cost, with both triangles, (n, n).
        A: constraint matrix, (m, n).
        q: [slopes, constant] of the linear cost, (n, features + 1).
        b: [slopes, constant] of the right-hand side, (m, features + 1).
        cones: cones of the program.
    """
    work = _Elimination(P, A, q, b, cones)
    while work.eliminate_rows() or work.eliminate_groups():
        pass
    return work.pivots


def _units(P: TrackedMatrix, A: TrackedMatrix) -> Array:
    """Column scales (n,) that equilibrate [P A'; A 0] in the maximum norm, after P is divided by its largest entry.

    Ruiz, A scaling algorithm to equilibrate both rows and columns norms in matrices, 2001.
    """
    of_A, of_P = np.abs(A.data), np.abs(P.data) / (np.abs(P.data).max(initial=0.0) or 1.0)
    cols, rows = np.ones(A.shape[1]), np.ones(A.shape[0])
    by_row, by_col, by_col_of_P = (_groups(index) for index in (A.rows, A.indices, P.rows))
    for _ in range(RUIZ_PASSES):
        scaled = rows[A.rows] * of_A * cols[A.indices]
        scaled_P = cols[P.rows] * of_P * cols[P.indices]
        largest_of_rows, largest_of_cols = np.zeros(len(rows)), np.zeros(len(cols))
        _update_maxima(largest_of_rows, scaled, by_row)
        _update_maxima(largest_of_cols, scaled, by_col)
        _update_maxima(largest_of_cols, scaled_P, by_col_of_P)
        rows /= np.sqrt(np.where(largest_of_rows > 0, largest_of_rows, 1.0))
        cols /= np.sqrt(np.where(largest_of_cols > 0, largest_of_cols, 1.0))
    return cols


def _groups(index: IndexArray) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Group equal indices: the sorting permutation, the start of each group in it, and the index of each group."""
    order = np.argsort(index, kind="stable")
    groups, starts = np.unique(index[order], return_index=True)
    return order, starts, groups


def _update_maxima(largest: Array, values: Array, groups: tuple[IndexArray, IndexArray, IndexArray]) -> None:
    """Set each group's entry of ``largest`` to the maximum of itself and the group's values, in place."""
    order, starts, places = groups
    if len(places):
        largest[places] = np.maximum(largest[places], np.maximum.reduceat(values[order], starts))


@final
class _Supports(dict[int, set[int]]):
    """The columns of the entries in each row of a sparsity pattern, each read on first use.

    Attributes:
        lengths: number of entries in each row of the pattern.
    """

    def __init__(self, pattern: sp.csr_matrix) -> None:
        super().__init__()
        self._indptr, self._indices = pattern.indptr, pattern.indices
        self.lengths = np.diff(pattern.indptr)

    def __missing__(self, row: int) -> set[int]:
        support = self[row] = set(self._indices[self._indptr[row] : self._indptr[row + 1]].tolist())
        return support


@final
class _Elimination:
    """State of the elimination: sparsity patterns, and values of candidate rows, each read on first use.

    Attributes:
        pivots: the pivots so far.
        _zero, _left: number of equality rows, and of variables that are left.
        _rows, _cols, _neighbours: sparsity patterns of the rows and columns of A and of the rows of P.
        _values, _multipliers: coefficients of the candidate rows read so far, and their multipliers (see ``Pivot``).
        _candidates: rows that may be solved, short ones first: a dictionary, for its order.
        _count: number of entries in each column of A and P.
        _cliques: supports that already fill a block of P.
        _longest: number of entries up to which a cone row may fill.
        _varying: whether a column of A or P depends on the parameters.
        _features_of_b, _features_of_q: number of features in each entry of b and q, an upper bound after eliminations.
    """

    def __init__(self, P: AffineMatrix, A: AffineMatrix, q: TrackedMatrix, b: TrackedMatrix, cones: Cones) -> None:
        self.pivots: list[Pivot] = []
        n, m = A.shape[1], A.shape[0]
        self._zero, self._left = cones.zero, n
        self._constant = A.constant
        self._units: list[float] = _units(P.constant, A.constant).tolist()
        of_A = A.support
        self._rows, self._cols, self._neighbours = _Supports(of_A), _Supports(of_A.T.tocsr()), _Supports(P.support)
        lengths = self._rows.lengths
        self._longest = max(FREE_ROW_LENGTH, int(lengths[cones.zero :].max(initial=0)))
        self._values: dict[int, dict[int, TrackedNumber]] = {}
        self._multipliers: dict[int, dict[int, TrackedNumber]] = defaultdict(dict)
        varying_rows = np.zeros(m, dtype=bool)
        varying_rows[A.rows] = True
        candidates = np.flatnonzero(~varying_rows[: cones.zero] & (lengths[: cones.zero] > 0))
        self._candidates = dict.fromkeys(candidates[np.argsort(lengths[candidates], kind="stable")].tolist())
        self._count = (self._cols.lengths + self._neighbours.lengths).tolist()
        self._cliques: set[frozenset[int]] = set()
        varying = np.zeros(n, dtype=bool)
        varying[A.cols] = varying[P.cols] = True
        self._varying: list[bool] = varying.tolist()
        self._features_of_b: list[int] = b.varying_entries.tolist()
        self._features_of_q: list[int] = q.varying_entries.tolist()

    def eliminate_rows(self) -> bool:
        """Eliminate single rows whose elimination does not grow the program; return whether any was eliminated."""
        before = len(self.pivots)
        for i in list(self._candidates):
            if self._left == 1:
                break
            value, units = self._value(i), self._units
            growths = [(self._growth([(i, j)]), -abs(value[j][0]) * units[j], j) for j in self._admissible(i)]
            growth, _, j = min(growths, default=(1, 0.0, 0))
            if growth <= 0:
                self._eliminate(i, j)
        return len(self.pivots) > before

    def eliminate_groups(self) -> bool:
        """Eliminate groups of rows with a column singleton each; return whether any row was eliminated.

        The groups are first the rows with equal support (singletons excluded), then the rows of connected supports.
        """
        singletons = {i: j for i in self._candidates for j in self._singleton(i)}
        same: dict[frozenset[int], list[tuple[int, int]]] = defaultdict(list)
        for i, j in singletons.items():
            same[frozenset(self._rows[i] - {j})].append((i, j))
        before = len(self.pivots)
        for group in [*same.values(), *_connected_groups(same)]:
            remaining = [(i, j) for i, j in group if i in self._candidates]
            if 1 < len(remaining) < self._left and self._growth(remaining) <= 0:
                for i, j in remaining:
                    self._eliminate(i, j)
        return len(self.pivots) > before

    def _value(self, i: int) -> dict[int, TrackedNumber]:
        """Coefficients of a candidate row by column."""
        if i not in self._values:
            constant = self._constant
            part = slice(constant.indptr[i], constant.indptr[i + 1])
            numbers = zip(constant.data[part].tolist(), constant.bounds[part].tolist(), strict=True)
            self._values[i] = dict(zip(constant.indices[part].tolist(), numbers, strict=True))
        return self._values[i]

    def _admissible(self, i: int) -> list[int]:
        """Columns that row i may be solved for, sparsest first, at most MAX_PIVOT_CANDIDATES."""
        value, units = self._value(i), self._units
        largest = max((abs(v) * units[j] for j, (v, _) in value.items()), default=0.0)
        targets = len(value) - 1  # variables to which the substitution of x_j copies coefficients
        found: list[int] = []
        for j in sorted(value, key=self._count.__getitem__):
            size = abs(value[j][0]) * units[j]
            accurate = abs(value[j][0]) >= CANCELLATION_THRESHOLD * value[j][1]
            stable = size >= PIVOT_THRESHOLD * largest or (
                size >= SINGLETON_PIVOT_THRESHOLD * largest and len(self._cols[j]) == 1
            )
            bilinear = self._varying[j] and (self._features_of_b[i] or targets > MAX_COPIES)
            copies = targets > MAX_COPIES and self._features_of_b[i] + self._features_of_q[j] > MAX_COPIED_FEATURES
            if accurate and stable and not (bilinear or copies):
                found.append(j)
                if len(found) == MAX_PIVOT_CANDIDATES:
                    break
        return found

    def _singleton(self, i: int) -> Iterable[int]:
        """The first admissible column of row i that is a column singleton, or nothing."""
        return [j for j in self._admissible(i) if len(self._cols[j]) == 1][:1]

    def _growth(self, group: list[tuple[int, int]]) -> int:
        """Growth of the program size if the group is eliminated; 1 as soon as the program certainly grows.

        The columns of a group of several pivots must be column singletons.
        """
        columns = {j for _, j in group}
        supports = {frozenset(self._rows[i] - columns) for i, _ in group}
        fill, removed = 0, 2 * len(group)
        for i, j in group:
            row, others = self._rows[i], self._cols[j] - {i}
            removed += len(row) + len(others)
            if len(row) - 1 > self._longest and any(r >= self._zero for r in others):
                return 1
            for r in others:
                new = len(row - self._rows[r])
                fill += new
                if r >= self._zero and len(self._rows[r]) - 1 + new > self._longest:
                    return 1
        outside: set[int] = set()
        inside = False
        for j in columns:
            neighbours = self._neighbours[j]
            far = neighbours - columns
            removed += len(neighbours) + len(far)
            outside |= far
            inside |= len(far) < len(neighbours)
        if not (outside or inside):
            return fill - removed
        if inside:
            squares = [len(support) ** 2 for support in supports]
            there = [sum(len(self._neighbours[k]) for k in support) for support in supports]
            least = max(square - count for square, count in zip(squares, there, strict=True))
            if least + fill > removed or sum(squares) > MAX_GROUP_WORK:
                return 1
        joined: dict[int, set[int]] = defaultdict(set)
        for support in supports:
            for k in support:
                joined[k] |= outside
                if inside:
                    joined[k] |= support
        union = set(joined)
        for k in outside:
            joined[k] |= union
        return fill + sum(len(new - self._neighbours[k]) for k, new in joined.items()) - removed

    def _eliminate(self, i: int, j: int) -> None:
        """Solve row i for x_j and substitute x_j in the program."""
        value = self._value(i)
        support = self._rows[i] - {j}
        for r in self._cols[j] - {i}:
            row = self._rows[r]
            row.discard(j)
            for k in support - row:
                self._cols[k].add(r)
            row |= support
            if r in self._candidates:
                self._subtract(r, i, value, j)
            if r < self._zero:
                self._features_of_b[r] += self._features_of_b[i]
        neighbours, clique = self._neighbours[j], frozenset(support)
        outside, linked = neighbours - {j}, support & neighbours
        for k in outside:
            self._neighbours[k].discard(j)
            self._neighbours[k].update(support)
            self._features_of_q[k] += self._features_of_b[i]
        if j in neighbours and clique not in self._cliques:
            self._cliques.add(clique)
            linked = support
        for k in linked:
            self._neighbours[k].update(support)
        for k in support:
            self._neighbours[k].update(outside)
            self._cols[k].discard(i)
            self._features_of_q[k] += self._features_of_q[j] + (self._features_of_b[i] if neighbours else 0)
            self._count[k] = len(self._cols[k]) + len(self._neighbours[k])
            self._varying[k] |= self._varying[j]
        del self._candidates[i], self._values[i]
        self._left -= 1
        self.pivots.append(Pivot(i, j, value, self._multipliers.pop(i, {})))

    def _subtract(self, r: int, i: int, pivot_row: dict[int, TrackedNumber], j: int) -> None:
        """Subtract the multiple of row i from row r that eliminates column j, and drop entries that cancel."""
        row, pivot = self._value(r), pivot_row[j][0]
        removed, of_removed = row.pop(j)
        ratio, of_ratio = removed / pivot, of_removed / abs(pivot)
        self._multipliers[r][len(self.pivots)] = ratio, of_ratio
        for k, (v, of_v) in pivot_row.items():
            if k == j:
                continue
            before, of_before = row.get(k, (0.0, 0.0))
            after, size = before - ratio * v, of_before + of_ratio * of_v
            if abs(after) > CANCELLED * size:
                row[k] = after, size
            else:
                row.pop(k, None)
                self._rows[r].discard(k)
                self._cols[k].discard(r)


def _connected_groups(same: dict[frozenset[int], list[tuple[int, int]]]) -> Iterator[list[tuple[int, int]]]:
    """Merge groups whose supports are connected; components of a single group are skipped."""
    supports = list(same)
    if len(supports) < 2:
        return
    index = np.repeat(np.arange(len(supports)), [len(support) for support in supports])
    columns: IndexArray = np.array([k for support in supports for k in support], dtype=np.int64)
    _, columns = np.unique(columns, return_inverse=True)
    width = int(columns.max(initial=0)) + 1
    incidence = sp.csr_matrix((np.ones(len(index)), (index, columns)), shape=(len(supports), width))
    count, labels = sp.csgraph.connected_components(
        sp.bmat([[None, incidence], [incidence.T, None]], format="csr"), directed=False
    )
    for label in range(count):
        members = np.flatnonzero(labels[: len(supports)] == label)
        if len(members) > 1:
            yield [pivot for member in members for pivot in same[supports[member]]]
