"""Numeric LDL' factorisation of V matrices of one pattern at once, in SIMD lanes.

The batch is the innermost axis: a vector is an array (N, V), one column per lane, and every scalar operation of the
textbook algorithm becomes one vector instruction on V numbers (see ``simd``). V is the length of the tuple ``lanes``,
the first argument of every function, so that it is known at compile time: 8 for an AVX-512 register, 1 for one matrix.

The factorisation is up-looking, row by row (as QDLDL). Runs of four consecutive columns with the same pattern below
them (supernodes) are eliminated together, which saves most loads and stores of a dense block.

All functions are inlined into the few kernels that are cached on disk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import int64
from numpy.typing import NDArray

from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import absolute, broadcast, broadcast_load, load, store, where

__all__ = [
    "SUPERNODE_WIDTH",
    "Indices",
    "LaneMatrix",
    "LanePlan",
    "column_products",
    "factorise",
    "magnitudes",
    "multiply",
    "solve_in_place",
    "unpack",
]

Indices = NDArray[np.int32]
"""Index arrays: 32 bits, half the memory traffic of 64."""

SUPERNODE_WIDTH = 4
"""Number of columns of a supernode: consecutive columns of L with the same rows below them, eliminated together. The
kernels are unrolled for 4; wider supernodes are rarer and save fewer additional loads and stores."""

DYNAMIC_REG_EPS = 1e-13
"""Dynamic regularisation: pivots below this, or of the wrong sign, are replaced (Clarabel's default)."""

DYNAMIC_REG_DELTA = 2e-7
"""Dynamic regularisation: size of the pivot that replaces them, with the expected sign (Clarabel's default)."""


class LanePlan(NamedTuple):
    """Symbolic factorisation of the permuted matrix, as int32 index arrays.

    Attributes:
        column_start: start of each column of the upper triangle, (N + 1,).
        row: row of each entry of the upper triangle, the diagonal last in its column, (nnz,).
        factor_start: start of each column of L, (N + 1,).
        factor_row: row of each entry of L, ascending in a column, (nnz(L),).
        supernode_start: start of the runs of columns of each row of L, (N + 1,).
        supernode_column: first column of each run.
        supernode_length: number of columns of each run, 1 or SUPERNODE_WIDTH.
        supernode_end: position in L of the row's entry in the last column of the run.
        chunk_column: first columns of the runs that partition the columns of L, for the triangular solves.
        chunk_length: numbers of columns of those runs, 1 or SUPERNODE_WIDTH.
        signs: expected sign of each pivot, (N,).
        permutation: original index of each permuted index, (N,).
    """

    column_start: Indices
    row: Indices
    factor_start: Indices
    factor_row: Indices
    supernode_start: Indices
    supernode_column: Indices
    supernode_length: Indices
    supernode_end: Indices
    chunk_column: Indices
    chunk_length: Indices
    signs: Array
    permutation: Indices


class LaneMatrix(NamedTuple):
    """V symmetric matrices of one plan, in the permuted order, and their factors L D L'.

    The values and factors may also be those of one matrix for all lanes, without the last axis.

    Attributes:
        plan: the symbolic factorisation.
        values: upper triangles, (nnz, V).
        L: entries of the unit lower triangular L, (nnz(L), V).
        D_inverse: inverse pivots, (N, V).
    """

    plan: LanePlan
    values: Array
    L: Array
    D_inverse: Array


@inner_function
def factorise(lanes: Any, matrix: LaneMatrix, y: Array) -> None:
    """Compute the factors L and D^-1 of V matrices from their values.

    Dynamic regularisation: a pivot of the wrong sign or below DYNAMIC_REG_EPS is replaced by DYNAMIC_REG_DELTA with the
    expected sign; iterative refinement corrects its effect.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        matrix: the matrices; L and D^-1 are overwritten.
        y: scratch, (N, V), zero on entry and on return.
    """
    plan, values, L, D_inverse = matrix.plan, matrix.values, matrix.L, matrix.D_inverse
    start, row, Lp, Li = plan.column_start, plan.row, plan.factor_start, plan.factor_row
    zero = broadcast(lanes, 0.0)
    for k in range(len(Lp) - 1):
        last = start[k + 1] - 1
        for p in range(start[k], last):
            store(y, row[p], load(lanes, values, p))
        d = load(lanes, values, last)
        for t in range(plan.supernode_start[k], plan.supernode_start[k + 1]):
            j, end = plan.supernode_column[t], plan.supernode_end[t]
            y0 = load(lanes, y, j)
            if plan.supernode_length[t] == 1:
                first = int64(Lp[j])
                _eliminate_one(lanes, y, L, Li, first, end - first, y0)
                l0 = y0 * load(lanes, D_inverse, j)
                d = d - l0 * y0
                store(L, end, l0)
                store(y, j, zero)
            else:
                p0, p1, p2, p3 = int64(Lp[j]), int64(Lp[j + 1]), int64(Lp[j + 2]), int64(Lp[j + 3])
                count = end - p3
                y1, y2, y3 = _inside_run(lanes, y, L, j, p0, p1, p2, y0)
                _eliminate_run(lanes, y, L, Li, (p0, p1, p2, p3), count, (y0, y1, y2, y3))
                l0, l1 = y0 * load(lanes, D_inverse, j), y1 * load(lanes, D_inverse, j + 1)
                l2, l3 = y2 * load(lanes, D_inverse, j + 2), y3 * load(lanes, D_inverse, j + 3)
                d = d - l0 * y0 - l1 * y1 - l2 * y2 - l3 * y3
                store(L, p0 + 3 + count, l0)
                store(L, p1 + 2 + count, l1)
                store(L, p2 + 1 + count, l2)
                store(L, p3 + count, l3)
                for q in range(SUPERNODE_WIDTH):
                    store(y, j + q, zero)
        sign = float(plan.signs[k])
        pivot = where(d * sign > DYNAMIC_REG_EPS, d, sign * DYNAMIC_REG_DELTA)
        store(D_inverse, k, 1.0 / pivot)


@inner_function
def solve_in_place(lanes: Any, matrix: LaneMatrix, x: Array) -> None:
    """x <- (L D L')^-1 x, (N, V), permuted."""
    plan, L, D_inverse = matrix.plan, matrix.L, matrix.D_inverse
    Lp, Li = plan.factor_start, plan.factor_row
    chunks = len(plan.chunk_column)
    for chunk in range(chunks):
        j = plan.chunk_column[chunk]
        x0 = load(lanes, x, j)
        p0, p1 = int64(Lp[j]), int64(Lp[j + 1])
        if plan.chunk_length[chunk] == 1:
            _eliminate_one(lanes, x, L, Li, p0, p1 - p0, x0)
        else:
            p2, p3 = int64(Lp[j + 2]), int64(Lp[j + 3])
            x1, x2, x3 = _inside_run(lanes, x, L, j, p0, p1, p2, x0)
            store(x, j + 1, x1)
            store(x, j + 2, x2)
            store(x, j + 3, x3)
            _eliminate_run(lanes, x, L, Li, (p0, p1, p2, p3), Lp[j + 4] - p3, (x0, x1, x2, x3))
    for i in range(len(D_inverse)):
        store(x, i, load(lanes, x, i) * broadcast_load(lanes, D_inverse, i))
    for chunk in range(chunks - 1, -1, -1):
        j = plan.chunk_column[chunk]
        p0, p1 = int64(Lp[j]), int64(Lp[j + 1])
        if plan.chunk_length[chunk] == 1:
            total = load(lanes, x, j)
            for p in range(p0, p1):
                total = total - broadcast_load(lanes, L, p) * load(lanes, x, Li[p])
            store(x, j, total)
        else:
            p2, p3 = int64(Lp[j + 2]), int64(Lp[j + 3])
            x0, x1 = load(lanes, x, j), load(lanes, x, j + 1)
            x2, x3 = load(lanes, x, j + 2), load(lanes, x, j + 3)
            for c in range(Lp[j + 4] - p3):
                known = load(lanes, x, Li[p3 + c])
                x0 = x0 - broadcast_load(lanes, L, p0 + 3 + c) * known
                x1 = x1 - broadcast_load(lanes, L, p1 + 2 + c) * known
                x2 = x2 - broadcast_load(lanes, L, p2 + 1 + c) * known
                x3 = x3 - broadcast_load(lanes, L, p3 + c) * known
            x2 = x2 - broadcast_load(lanes, L, p2) * x3
            x1 = x1 - broadcast_load(lanes, L, p1) * x2 - broadcast_load(lanes, L, p1 + 1) * x3
            x0 = (
                x0
                - broadcast_load(lanes, L, p0) * x1
                - broadcast_load(lanes, L, p0 + 1) * x2
                - broadcast_load(lanes, L, p0 + 2) * x3
            )
            store(x, j, x0)
            store(x, j + 1, x1)
            store(x, j + 2, x2)
            store(x, j + 3, x3)


@inner_function
def unpack(packed: Indices) -> tuple[LanePlan, Indices]:
    """The plan, and for each of its values the entry of the pattern, from ``Symbolic.packed``."""
    plan = LanePlan(
        _part(packed, 0), _part(packed, 1), _part(packed, 2), _part(packed, 3), _part(packed, 4), _part(packed, 5),
        _part(packed, 6), _part(packed, 7), _part(packed, 8), _part(packed, 9), _part(packed, 10), _part(packed, 11),
    )  # fmt: skip
    return plan, _part(packed, 12)


@inner_function
def _part(packed: Indices, i: int) -> Indices:
    return packed[packed[i] : packed[i + 1]]


@inner_function
def multiply(lanes: Any, matrix: LaneMatrix, x: Array, out: Array) -> None:
    """Out <- M x, (N, V), permuted."""
    values, start, row = matrix.values, matrix.plan.column_start, matrix.plan.row
    for j in range(len(start) - 1):
        last = start[j + 1] - 1
        store(out, j, broadcast_load(lanes, values, last) * load(lanes, x, j))
        column_products(lanes, values, row, start[j], last, x, j, out, x, out)


@inner_function
def magnitudes(lanes: Any, matrix: LaneMatrix, x: Array, out: Array) -> None:
    """Out <- |M||x|, (N, V), permuted."""
    values, start, row = matrix.values, matrix.plan.column_start, matrix.plan.row
    for j in range(len(start) - 1):
        last, factor = start[j + 1] - 1, absolute(load(lanes, x, j))
        total = absolute(broadcast_load(lanes, values, last)) * factor
        for p in range(start[j], last):
            i, value = row[p], absolute(broadcast_load(lanes, values, p))
            total = total + value * absolute(load(lanes, x, i))
            store(out, i, load(lanes, out, i) + value * factor)
        store(out, j, total)


@inner_function
def column_products(
    lanes: Any, M: Array, row: Indices, first: int, last: int, x: Array, j: int, out: Array, z: Array, out_t: Array
) -> None:
    """One column of M x and of M'z: out[row[p]] += M[p] x[j] and out_t[j] += M[p] z[row[p]], for first <= p < last."""
    factor, total = load(lanes, x, j), broadcast(lanes, 0.0)
    for p in range(first, last):
        i, value = row[p], broadcast_load(lanes, M, p)
        total = total + value * load(lanes, z, i)
        store(out, i, load(lanes, out, i) + value * factor)
    store(out_t, j, load(lanes, out_t, j) + total)


@inner_function
def _inside_run(lanes: Any, y: Array, L: Array, j: int, p0: int, p1: int, p2: int, y0: Any) -> tuple[Any, Any, Any]:
    """Rows j + 1 ... j + 3 of y after elimination by the earlier columns of the run."""
    y1 = load(lanes, y, j + 1) - broadcast_load(lanes, L, p0) * y0
    y2 = load(lanes, y, j + 2) - broadcast_load(lanes, L, p0 + 1) * y0 - broadcast_load(lanes, L, p1) * y1
    y3 = (
        load(lanes, y, j + 3)
        - broadcast_load(lanes, L, p0 + 2) * y0
        - broadcast_load(lanes, L, p1 + 1) * y1
        - broadcast_load(lanes, L, p2) * y2
    )
    return y1, y2, y3


@inner_function
def _eliminate_one(lanes: Any, y: Array, L: Array, Li: Indices, first: int, count: int, y0: Any) -> None:
    """y[row] -= L[row, j] y0 for the first ``count`` rows of a column."""
    for p in range(first, first + count):
        i = Li[p]
        store(y, i, load(lanes, y, i) - broadcast_load(lanes, L, p) * y0)


@inner_function
def _eliminate_run(
    lanes: Any, y: Array, L: Array, Li: Indices, starts: tuple[int, int, int, int], count: int, heads: Any
) -> None:
    """y[row] -= sum over the four columns of a run of L[row, j] y_j, for ``count`` rows below the run.

    Args:
        lanes: a tuple of V floats.
        y: (N, V), in and out.
        L: entries of L.
        Li: their rows.
        starts: start of each column in L.
        count: number of rows below the run.
        heads: y_j of the four columns.
    """
    (p0, p1, p2, p3), (y0, y1, y2, y3) = starts, heads
    for c in range(count):
        i = Li[p3 + c]
        left = broadcast_load(lanes, L, p0 + 3 + c) * y0 + broadcast_load(lanes, L, p1 + 2 + c) * y1
        right = broadcast_load(lanes, L, p2 + 1 + c) * y2 + broadcast_load(lanes, L, p3 + c) * y3
        store(y, i, load(lanes, y, i) - left - right)
