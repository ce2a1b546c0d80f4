"""Which variables to eliminate by which equality rows: a symbolic elimination, greedy in the number of coefficients.

A pivot (i, j) solves row i for x_j. It must be an equality row with constant coefficients, so that x stays linear in
what remains; it must be of the size of its row, each variable in its own unit (threshold pivoting: Duff, Erisman and
Reid, Direct Methods for Sparse Matrices, 2017, section 5.2); neither of two factors that meet may both depend on the
parameters; and the matrices may not fill (Markowitz, Management Science 3, 1957), counting nnz(P) + nnz(A) and one for
every variable and row. Rows that are expensive one by one may be cheap together: the rows of t = L x fill the same
block of P.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import scipy.sparse as sp

from convexlayer.canon.affine_matrix import AffineMatrix
from convexlayer.canon.rounded import CANCELLED, Rounded
from convexlayer.program import Array, Cones, IndexArray

__all__ = ["Number", "Pivot", "pivots"]

Number = tuple[float, float]
"""A value, and the sum of the absolute values of the terms that made it."""

STABLE = 0.1
"""Smallest pivot relative to its row, where its column has other rows."""

STABLE_ALONE = 1e-3
"""The same where it has none: nothing is cancelled then, but P is multiplied by the square."""

ACCURATE = 1e-3
"""Smallest pivot relative to the terms that made it; one in which much was cancelled is inaccurate."""

EQUILIBRATIONS = 5
"""Passes in which the units of the variables are estimated."""

SHORT = 4
"""A row of a cone may always have so many entries; longer ones only up to the longest that is there already."""

SPREAD = 2
"""Coefficients that depend on parameters are copied to at most so many others: the affine map must not fill either."""

FEATURES = 8
"""The same for right-hand sides and linear costs, unless they depend on no more features than this."""

TRIED = 3
"""Columns tried for a row, those with the fewest coefficients first."""

LARGEST_GROUP = 10**8
"""Work in comparing supports, beyond which rows are not tried together."""


@dataclass(frozen=True)
class Pivot:
    """A row that is solved for a column, after the pivots before it.

    Attributes:
        row: the row.
        column: the column.
        values: the row's coefficients by column, the columns of earlier pivots having been removed.
        multipliers: how much of the rows of earlier pivots, by their place in the order, was subtracted to that end.
    """

    row: int
    column: int
    values: dict[int, Number]
    multipliers: dict[int, Number]


def pivots(P: AffineMatrix, A: AffineMatrix, q: Rounded, b: Rounded, cones: Cones) -> list[Pivot]:
    """The pivots in the order of their elimination.

    Args:
        P: of the program, with both triangles.
        A: of the program.
        q: [slopes, constant] of q, (n, features + 1).
        b: [slopes, constant] of b, (m, features + 1).
        cones: of the program.
    """
    work = _Elimination(P, A, q.values, b.values, cones)
    while work.singly() or work.together():
        pass
    return work.chosen


def _units(P: sp.csr_matrix, A: sp.csr_matrix) -> Array:
    """A scale for each variable, with which, and with some for the rows, the entries of P and A are at most 1.

    Ruiz's equilibration of the matrix [P A'; A 0] in the maximum norm, the entries of P divided by the largest.
    """
    A, P = A.tocoo(), P.tocoo()
    of_A, of_P = np.abs(A.data), np.abs(P.data) / np.abs(P.data).max(initial=1e-300)
    cols, rows = np.ones(A.shape[1]), np.ones(A.shape[0])
    by_row, by_col, by_curved = (_groups(index) for index in (A.row, A.col, P.row))
    for _ in range(EQUILIBRATIONS):
        scaled = rows[A.row] * of_A * cols[A.col]
        curved = cols[P.row] * of_P * cols[P.col]
        largest_of_rows, largest_of_cols = np.zeros(len(rows)), np.zeros(len(cols))
        _raise(largest_of_rows, scaled, by_row)
        _raise(largest_of_cols, scaled, by_col)
        _raise(largest_of_cols, curved, by_curved)
        rows /= np.sqrt(np.where(largest_of_rows > 0, largest_of_rows, 1.0))
        cols /= np.sqrt(np.where(largest_of_cols > 0, largest_of_cols, 1.0))
    return cols


def _groups(index: IndexArray) -> tuple[IndexArray, IndexArray, IndexArray]:
    """An order in which equal indices stand together, where each group starts in it, and the groups' indices."""
    order = np.argsort(index, kind="stable")
    groups, starts = np.unique(index[order], return_index=True)
    return order, starts, groups


def _raise(largest: Array, values: Array, groups: tuple[IndexArray, IndexArray, IndexArray]) -> None:
    """Raise each group's entry to the largest of its values."""
    order, starts, places = groups
    if len(places):
        largest[places] = np.maximum(largest[places], np.maximum.reduceat(values[order], starts))


@final
class _Elimination:
    """Sparsity patterns during the elimination, and values of the rows that may be pivots; read when first needed."""

    def __init__(self, P: AffineMatrix, A: AffineMatrix, q: sp.csr_matrix, b: sp.csr_matrix, cones: Cones) -> None:
        self.chosen: list[Pivot] = []
        n, m = A.shape[1], A.shape[0]
        self._zero, self._left = cones.zero, n
        self._constant = A.constant
        self._units: list[float] = _units(P.constant.values, A.constant.values).tolist()
        self._sets = {"row": A.support, "col": A.support.T.tocsr(), "P": P.support}
        self._read: dict[str, dict[int, set[int]]] = {"row": {}, "col": {}, "P": {}}
        lengths = np.diff(self._sets["row"].indptr)
        self._longest = max(SHORT, int(lengths[cones.zero :].max(initial=0)))
        self._values: dict[int, dict[int, Number]] = {}
        self._multipliers: dict[int, dict[int, Number]] = defaultdict(dict)
        varying_rows = np.zeros(m, dtype=bool)
        varying_rows[A.rows] = True
        candidates = np.flatnonzero(~varying_rows[: cones.zero] & (lengths[: cones.zero] > 0))
        self._candidates = dict.fromkeys(candidates[np.argsort(lengths[candidates], kind="stable")].tolist())
        self._count = (np.diff(self._sets["col"].indptr) + np.diff(self._sets["P"].indptr)).tolist()
        self._cliques: set[frozenset[int]] = set()
        varying = np.zeros(n, dtype=bool)
        varying[A.cols] = varying[P.cols] = True
        self._varying: list[bool] = varying.tolist()
        self._features_of_b: list[int] = np.diff(b[:, :-1].tocsr().indptr).tolist()
        self._features_of_q: list[int] = np.diff(q[:, :-1].tocsr().indptr).tolist()

    def singly(self) -> bool:
        """Eliminate row by row while it pays; whether anything was."""
        before = len(self.chosen)
        for i in list(self._candidates):
            if self._left == 1:
                break
            value, units = self._value(i), self._units
            growths = [(self._growth([(i, j)]), -abs(value[j][0]) * units[j], j) for j in self._admissible(i)]
            growth, _, j = min(growths, default=(1, 0.0, 0))
            if growth <= 0:
                self._eliminate(i, j)
        return len(self.chosen) > before

    def together(self) -> bool:
        """Eliminate groups of definitions of variables that have no other row, where it pays; whether any was.

        Groups are rows over the same variables, and then rows linked by common variables.
        """
        alone = {i: j for i in self._candidates for j in self._alone(i)}
        same: dict[frozenset[int], list[tuple[int, int]]] = defaultdict(list)
        for i, j in alone.items():
            same[frozenset(self._row(i) - {j})].append((i, j))
        before = len(self.chosen)
        for group in [*same.values(), *_linked(same)]:
            remaining = [(i, j) for i, j in group if i in self._candidates]
            if 1 < len(remaining) < self._left and self._growth(remaining) <= 0:
                for i, j in remaining:
                    self._eliminate(i, j)
        return len(self.chosen) > before

    def _row(self, i: int) -> set[int]:
        return self._set("row", i)

    def _col(self, j: int) -> set[int]:
        return self._set("col", j)

    def _neighbours(self, j: int) -> set[int]:
        """Columns of P's row j."""
        return self._set("P", j)

    def _set(self, kind: str, index: int) -> set[int]:
        read = self._read[kind]
        if index not in read:
            matrix = self._sets[kind]
            read[index] = set(matrix.indices[matrix.indptr[index] : matrix.indptr[index + 1]].tolist())
        return read[index]

    def _value(self, i: int) -> dict[int, Number]:
        """Values of a row that may be a pivot."""
        if i not in self._values:
            values, sizes = self._constant.values, self._constant.sizes
            part = slice(values.indptr[i], values.indptr[i + 1])
            numbers = zip(values.data[part].tolist(), sizes.data[part].tolist(), strict=True)
            self._values[i] = dict(zip(values.indices[part].tolist(), numbers, strict=True))
        return self._values[i]

    def _admissible(self, i: int) -> list[int]:
        """Columns that row i can be solved for, the emptiest ones."""
        value, units = self._value(i), self._units
        largest = max((abs(v) * units[j] for j, (v, _) in value.items()), default=0.0)
        spread = len(value) - 1
        found: list[int] = []
        for j in sorted(value, key=self._count.__getitem__):
            size = abs(value[j][0]) * units[j]
            accurate = abs(value[j][0]) >= ACCURATE * value[j][1]
            stable = size >= STABLE * largest or (size >= STABLE_ALONE * largest and len(self._col(j)) == 1)
            meets = self._varying[j] and (self._features_of_b[i] or spread > SPREAD)
            copies = spread > SPREAD and self._features_of_b[i] + self._features_of_q[j] > FEATURES
            if accurate and stable and not (meets or copies):
                found.append(j)
                if len(found) == TRIED:
                    break
        return found

    def _alone(self, i: int) -> Iterable[int]:
        """The first column of row i that has no other row."""
        return [j for j in self._admissible(i) if len(self._col(j)) == 1][:1]

    def _growth(self, group: list[tuple[int, int]]) -> int:
        """By how much the program grows; a positive number where it does for certain.

        Columns of a group of several have no other rows.
        """
        columns = {j for _, j in group}
        supports = {frozenset(self._row(i) - columns) for i, _ in group}
        fill, removed = 0, 2 * len(group)
        for i, j in group:
            row, others = self._row(i), self._col(j) - {i}
            removed += len(row) + len(others)
            if len(row) - 1 > self._longest and any(r >= self._zero for r in others):
                return 1
            for r in others:
                new = len(row - self._row(r))
                fill += new
                if r >= self._zero and len(self._row(r)) - 1 + new > self._longest:
                    return 1
        outside: set[int] = set()
        inside = False
        for j in columns:
            neighbours = self._neighbours(j)
            far = neighbours - columns
            removed += len(neighbours) + len(far)
            outside |= far
            inside |= len(far) < len(neighbours)
        if not (outside or inside):
            return fill - removed
        if inside:
            squares = [len(support) ** 2 for support in supports]
            there = [sum(len(self._neighbours(k)) for k in support) for support in supports]
            least = max(square - count for square, count in zip(squares, there, strict=True))
            if least + fill > removed or sum(squares) > LARGEST_GROUP:
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
        return fill + sum(len(new - self._neighbours(k)) for k, new in joined.items()) - removed

    def _eliminate(self, i: int, j: int) -> None:
        """Solve row i for x_j and substitute it everywhere."""
        value = self._value(i)
        support = self._row(i) - {j}
        for r in self._col(j) - {i}:
            row = self._row(r)
            row.discard(j)
            for k in support - row:
                self._col(k).add(r)
            row |= support
            if r in self._candidates:
                self._subtract(r, i, value, j)
            if r < self._zero:
                self._features_of_b[r] += self._features_of_b[i]
        neighbours, clique = self._neighbours(j), frozenset(support)
        outside, linked = neighbours - {j}, support & neighbours
        for k in outside:
            self._neighbours(k).discard(j)
            self._neighbours(k).update(support)
            self._features_of_q[k] += self._features_of_b[i]
        if j in neighbours and clique not in self._cliques:
            self._cliques.add(clique)
            linked = support
        for k in linked:
            self._neighbours(k).update(support)
        for k in support:
            self._neighbours(k).update(outside)
            self._col(k).discard(i)
            self._features_of_q[k] += self._features_of_q[j] + (self._features_of_b[i] if neighbours else 0)
            self._count[k] = len(self._col(k)) + len(self._neighbours(k))
            self._varying[k] |= self._varying[j]
        del self._candidates[i], self._values[i]
        self._left -= 1
        self.chosen.append(Pivot(i, j, value, self._multipliers.pop(i, {})))

    def _subtract(self, r: int, i: int, pivot_row: dict[int, Number], j: int) -> None:
        """Subtract the multiple of row i from row r that removes column j, and what cancels with it."""
        row, pivot = self._value(r), pivot_row[j][0]
        removed, of_removed = row.pop(j)
        ratio, of_ratio = removed / pivot, of_removed / abs(pivot)
        self._multipliers[r][len(self.chosen)] = ratio, of_ratio
        for k, (v, of_v) in pivot_row.items():
            if k == j:
                continue
            before, of_before = row.get(k, (0.0, 0.0))
            after, size = before - ratio * v, of_before + of_ratio * of_v
            if abs(after) > CANCELLED * size:
                row[k] = after, size
            else:
                row.pop(k, None)
                self._row(r).discard(k)
                self._col(k).discard(r)


def _linked(same: dict[frozenset[int], list[tuple[int, int]]]) -> Iterator[list[tuple[int, int]]]:
    """Groups of groups whose supports are connected, where there are several."""
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
