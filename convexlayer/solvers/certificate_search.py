"""Search for certificates of infeasibility and unboundedness that a solver did not return.

If a ray exists, the one of minimum norm solves a strictly convex program in y or in x alone:

    infeasible   minimize 1/2 y'y   subject to  A'y = 0,  b'y = -1,  y in K*
    unbounded    minimize 1/2 x'x   subject to  Px = 0,   q'x = -1,  -Ax in K

after equilibration of rows, blocks and columns. Clarabel solves both; ``rays`` checks whether the result is a
certificate.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from convexlayer.program import Array, ConeProgram, Cones, IndexArray, Pattern, Structure
from convexlayer.rays import block_of_rows
from convexlayer.solvers.options import Options
from convexlayer.solvers.registry import solver_for

__all__ = ["infeasibility_candidates", "reducing_candidate", "unboundedness_candidates"]

RUIZ_PASSES = 10
"""Passes of Ruiz equilibration; each halves the orders of magnitude that are left."""

NOISE = 1e-6
"""Entries below this, relative to the largest one, are solver error and set to 0."""

TOL = 1e-10
"""Tolerance of the solver; the rays are corrected to rounding afterwards (see ``rays``)."""


def infeasibility_candidates(program: ConeProgram, time_limit_s: float | None = None) -> Array:
    """Candidates y (B, m) for certificates of infeasibility; NaN if none was found."""
    cones, A, (n, m) = program.structure.cones, program.structure.A, (program.structure.n, program.structure.m)
    sums = _Entries.joined(_Entries(A.cols, A.rows, program.A), _Entries(np.full(m, n), np.arange(m), program.b))
    sums, unit = sums.equilibrated(np.arange(n + 1), block_of_rows(cones))
    dual = _dual_cone_rows(cones)
    inside = _Entries(n + 1 + dual.rows, dual.cols, np.broadcast_to(-dual.values, (program.batch, len(dual.rows))))
    return _minimum_norm(_Entries.joined(sums, inside), replace(cones, zero=n + 1), m, n, time_limit_s) * unit


def unboundedness_candidates(program: ConeProgram, time_limit_s: float | None = None) -> Array:
    """Candidates x (B, n) for certificates of unboundedness; NaN if none was found."""
    return _direction(program, None, time_limit_s)


def reducing_candidate(program: ConeProgram, centre: Array, time_limit_s: float | None = None) -> Array:
    """The x (B, n) of minimum norm with Px = 0, q'x = 0, -Ax in K and centre'(-Ax) = 1, for a centre (m,) inside K*.

    Entries that are small after equilibration (NOISE) are set to 0.
    """
    return _direction(program, centre, time_limit_s)


def _direction(program: ConeProgram, centre: Array | None, time_limit_s: float | None) -> Array:
    """The x of minimum norm with Px = 0, -Ax in K, and q'x = -1; with a centre, q'x = 0 and centre'(-Ax) = 1."""
    (P, A, cones), n = (program.structure.P, program.structure.A, program.structure.cones), program.structure.n
    occurring, place = np.unique(P.rows, return_inverse=True)
    falling = len(occurring)
    sums = _Entries.joined(
        _Entries(place, P.cols, program.P),
        _Entries(np.full(n, falling), np.arange(n), program.q),
        _Entries(falling + 1 + A.rows, A.cols, program.A),
    )
    rows = np.concatenate([np.arange(falling + 1), falling + 1 + block_of_rows(cones)])
    sums, unit = sums.equilibrated(rows, np.arange(n))
    first, at = falling + 1, falling
    if centre is not None:
        weight = np.zeros((program.batch, n))
        cone_rows = sums.rows >= first
        weights = centre[sums.rows[cone_rows] - first] * sums.values[:, cone_rows]
        np.add.at(weight.T, sums.cols[cone_rows], weights.T)
        sums = _Entries(sums.rows + cone_rows, sums.cols, sums.values)
        sums = _Entries.joined(sums, _Entries(np.full(n, first), np.arange(n), weight))
        first, at = first + 1, first
    found = _minimum_norm(sums, replace(cones, zero=first + cones.zero), n, at, time_limit_s)
    if centre is not None:
        found = np.where(np.abs(found) > NOISE * np.abs(found).max(axis=1, keepdims=True, initial=0.0), found, 0.0)
    return found * unit


class _Entries(NamedTuple):
    """Sparse matrices of one pattern: rows and columns of the entries, values (B, entries), or (entries,) for all."""

    rows: IndexArray
    cols: IndexArray
    values: Array

    @staticmethod
    def joined(*parts: _Entries) -> _Entries:
        """The sum of several sparse matrices with disjoint patterns, entries sorted by columns."""
        rows, cols = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        order = np.lexsort((rows, cols))
        return _Entries(rows[order], cols[order], np.concatenate([part.values for part in parts], axis=1)[:, order])

    def equilibrated(self, row_blocks: IndexArray, col_blocks: IndexArray) -> tuple[_Entries, Array]:
        """Ruiz equilibration (Ruiz 2001): the scaled matrices, and the scales of the columns, (B, columns).

        Args:
            row_blocks: block index of each row; the rows of a block have one scale.
            col_blocks: block index of each column.
        """
        values, unit = self.values, np.ones((len(self.values), len(col_blocks)))
        blocks = row_blocks[self.rows], col_blocks[self.cols]
        counts = [int(numbers[-1]) + 1 if len(numbers) else 0 for numbers in (row_blocks, col_blocks)]
        for _ in range(RUIZ_PASSES):
            sizes = [_largest(values, places, count) for places, count in zip(blocks, counts, strict=True)]
            row, col = (1.0 / np.sqrt(np.where(size > 0, size, 1.0)) for size in sizes)
            values = values * row[:, blocks[0]] * col[:, blocks[1]]
            unit *= col[:, col_blocks]
        return _Entries(self.rows, self.cols, values), unit


def _minimum_norm(entries: _Entries, cones: Cones, length: int, at: int, time_limit_s: float | None) -> Array:
    """The vectors v (B, length) of minimum norm with Ev + s = b, s in K, where b is -1 in row ``at``, 0 elsewhere."""
    batch, diagonal = len(entries.values), np.arange(length)
    structure = Structure(
        Pattern((length, length), diagonal, diagonal), Pattern((cones.m, length), entries.rows, entries.cols), cones
    )
    b = np.zeros((batch, cones.m))
    b[:, at] = -1.0
    posed = ConeProgram(
        structure, np.ones((batch, length)), np.zeros((batch, length)), np.zeros(batch), entries.values, b
    )
    solver = solver_for("clarabel", structure)[0]
    found = solver.solve(solver.init(structure), posed, Options(tol=TOL, time_limit_s=time_limit_s))
    usable = np.array([status.solved for status in found.status], dtype=bool)
    return np.where(usable[:, None], found.x, np.nan)


def _dual_cone_rows(cones: Cones) -> _Entries:
    """The matrix T with y in K* if and only if Ty in K, for all blocks but the zero cone's.

    The dual of the exponential cone is {(u, v, w): (-v, -u, e w) in K}, that of the power cone
    {(u, v, w): (u / alpha, v / (1 - alpha), w) in K}; the other cones are self-dual.
    """
    first, m = cones.zero, cones.m
    rows, cols, values = np.arange(m - first), np.arange(first, m), np.ones(m - first)
    exponential, power = cones.rows_of("exponential"), cones.rows_of("power")
    for start in range(exponential.start, exponential.stop, 3):
        here = slice(start - first, start - first + 3)
        cols[here] = start + 1, start, start + 2
        values[here] = -1.0, -1.0, math.e
    for start, alpha in zip(range(power.start, power.stop, 3), cones.power, strict=True):
        values[start - first : start - first + 3] = 1.0 / alpha, 1.0 / (1.0 - alpha), 1.0
    return _Entries(rows, cols, values)


def _largest(values: Array, places: IndexArray, count: int) -> Array:
    """The largest magnitude (B, count) of the values (B, entries) with each index, 0 if there is none."""
    largest = np.zeros((len(values), count))
    np.maximum.at(largest.T, places, np.abs(values).T)
    return largest
