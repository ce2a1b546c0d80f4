"""The loops behind ``products``, compiled: element after element, so that everything touched fits in the cache."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from convexlayer.entry import entry

__all__ = [
    "accumulate",
    "fill",
    "gather",
    "outer_entries",
    "residuals",
    "rotate_entries",
    "system_entries",
    "times",
    "warm_up",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]


@entry
def times(
    start: Integers, column: Integers, value: Floats, constant: Floats, x: Floats, out: Floats, first: int, last: int
) -> None:
    """out[e] = constant + M x[e] for first <= e < last, of M by rows (CSR)."""
    for e in range(first, last):
        for i in range(len(start) - 1):
            total = constant[i]
            for p in range(start[i], start[i + 1]):
                total += value[p] * x[e, column[p]]
            out[e, i] = total


@entry
def fill(
    ends: Integers,
    column: Integers,
    row: Integers,
    value: Floats,
    constant: Floats,
    x: Floats,
    normalise: bool,
    P: Floats,
    q: Floats,
    r: Floats,
    A: Floats,
    b: Floats,
    scale: Floats,
    first: int,
    last: int,
) -> None:
    """The blocks of constant + M x[e] into rows e of P, q, r, A and b, for first <= e < last.

    To normalise is to divide P, q and r by a power of two near the largest entry of P and q, which scale (B,) tells.

    Args:
        ends: where the entries of M of each block end, (5,).
        column: of each entry.
        row: in its block, of each entry.
        value: of each entry.
        constant: (rows of all blocks,).
        x: (B, columns).
        normalise: see above.
        P: out, (B, ...), as q, r, A and b.
        q: see P.
        r: see P.
        A: see P.
        b: see P.
        scale: out, (B,).
        first: first element.
        last: behind the last element.
    """
    for e in range(first, last):
        rest = _fill_block(0, ends[0], column, row, value, constant, x[e], P[e])
        rest = _fill_block(ends[0], ends[1], column, row, value, rest, x[e], q[e])
        rest = _fill_block(ends[1], ends[2], column, row, value, rest, x[e], r[e])
        rest = _fill_block(ends[2], ends[3], column, row, value, rest, x[e], A[e])
        _fill_block(ends[3], ends[4], column, row, value, rest, x[e], b[e])
        largest = 0.0
        if normalise:
            largest = _larger(_largest(P[e]), _largest(q[e]))
        if largest == 0.0:
            scale[e] = 1.0
            continue
        scale[e] = np.exp2(np.rint(np.log2(largest)))
        inverse = 1.0 / scale[e]
        P[e] *= inverse
        q[e] *= inverse
        r[e] *= inverse


@njit(nogil=True)
def _fill_block(
    start: int,
    stop: int,
    column: Integers,
    row: Integers,
    value: Floats,
    constant: Floats,
    x: Floats,
    out: Floats,
) -> Floats:
    """One block, of which these are the entries; the constants of the blocks behind it."""
    out[:] = constant[: len(out)]
    for p in range(start, stop):
        out[row[p]] += value[p] * x[column[p]]
    return constant[len(out) :]


@njit(nogil=True)
def _largest(values: Floats) -> float:
    largest = 0.0
    for number in values:
        largest = _larger(largest, abs(number))
    return largest


@entry
def gather(
    ends: Integers,
    column: Integers,
    row: Integers,
    value: Floats,
    inverse: Floats,
    P: Floats,
    q: Floats,
    r: Floats,
    A: Floats,
    b: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """out[e] = M'(P, q, r, A, b)[e] for first <= e < last; P, q and r are multiplied by inverse[e] first.

    Args:
        ends: where the entries of M of each block end, (5,).
        column: of each entry.
        row: in its block, of each entry.
        value: of each entry.
        inverse: (B,).
        P: (B, ...), as q, r, A and b.
        q: see P.
        r: see P.
        A: see P.
        b: see P.
        out: (B, columns).
        first: first element.
        last: behind the last element.
    """
    for e in range(first, last):
        total = out[e]
        total[:] = 0.0
        _gather_block(0, ends[0], column, row, value, inverse[e], P[e], total)
        _gather_block(ends[0], ends[1], column, row, value, inverse[e], q[e], total)
        _gather_block(ends[1], ends[2], column, row, value, inverse[e], r[e], total)
        _gather_block(ends[2], ends[3], column, row, value, 1.0, A[e], total)
        _gather_block(ends[3], ends[4], column, row, value, 1.0, b[e], total)


@njit(nogil=True)
def _gather_block(
    start: int,
    stop: int,
    column: Integers,
    row: Integers,
    value: Floats,
    weight: float,
    block: Floats,
    total: Floats,
) -> None:
    for p in range(start, stop):
        total[column[p]] += weight * value[p] * block[row[p]]


@entry
def accumulate(
    into: NDArray[np.int64],
    of: NDArray[np.int64],
    values: Floats,
    x: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """out[e, into[p]] += values[e, p] x[e, of[p]], for first <= e < last; out is zero on entry."""
    for e in range(first, last):
        for p in range(len(into)):
            out[e, into[p]] += values[e, p] * x[e, of[p]]


@entry
def system_entries(
    P_source: NDArray[np.int64],
    P_place: NDArray[np.int64],
    A_source: NDArray[np.int64],
    A_row: NDArray[np.int64],
    A_place: NDArray[np.int64],
    diagonal: NDArray[np.int64],
    P: Floats,
    A: Floats,
    d: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """The entries of ``EntriesOfSystem`` for first <= e < last; all others are zero."""
    for e in range(first, last):
        entries = out[e]
        entries[:] = 0.0
        for p in range(len(P_place)):
            entries[P_place[p]] = P[e, P_source[p]]
        for p in range(len(A_place)):
            entries[A_place[p]] = A[e, A_source[p]] * d[e, A_row[p]]
        for i in range(len(diagonal)):
            entries[diagonal[i]] = d[e, i] - 1.0


@entry
def rotate_entries(
    place: NDArray[np.int64],
    source: NDArray[np.int64],
    block: NDArray[np.int64],
    values: Floats,
    Q: Floats,
    root: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """The blocks diag(root) Q' M of each element, for first <= e < last.

    Args:
        place: where entry (i, c) of the product goes in out, (blocks, size, columns).
        source: where entry (k, c) of M stands among the values, -1 where it is zero, of the same shape.
        block: which block of Q and root each is, (blocks,).
        values: (B, nnz).
        Q: (B, all blocks, size, size).
        root: (B, all blocks, size).
        out: (B, nnz of the product's matrix).
        first: first element.
        last: behind the last element.
    """
    blocks, size, columns = place.shape
    product = np.empty(size)
    for e in range(first, last):
        for k in range(blocks):
            basis, weight = Q[e, block[k]], root[e, block[k]]
            for c in range(columns):
                product[:] = 0.0
                for j in range(size):
                    if source[k, j, c] >= 0:
                        product += basis[j] * values[e, source[k, j, c]]
                for i in range(size):
                    out[e, place[k, i, c]] = product[i] * weight[i]


@entry
def outer_entries(
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    u1: Floats,
    v1: Floats,
    u2: Floats,
    v2: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """out[e, p] = (u1 v1' + u2 v2')[rows[p], cols[p]] of element e, for first <= e < last."""
    for e in range(first, last):
        for p in range(len(rows)):
            i, j = rows[p], cols[p]
            out[e, p] = u1[e, i] * v1[e, j] + u2[e, i] * v2[e, j]


@entry
def residuals(
    P_rows: NDArray[np.int64],
    P_starts: NDArray[np.int64],
    A_rows: NDArray[np.int64],
    A_starts: NDArray[np.int64],
    zero: int,
    orthant: int,
    P: Floats,
    q: Floats,
    r: Floats,
    A: Floats,
    b: Floats,
    x: Floats,
    y: Floats,
    s: Floats,
    curved: Floats,
    out: Floats,
    stationarity: Floats,
    feasibility: Floats,
    first: int,
    last: int,
) -> None:
    """The six numbers of ``Residuals``, into columns of out (6, B), for elements first <= e < last.

    And what two of them measure: Px + q + A'y (B, n) and Ax + s - b (B, m). ``curved`` (B, m - orthant) holds the
    projections of y - s on the duals of the cones that are not half-lines.
    """
    n, m = q.shape[1], b.shape[1]
    Px, Aty, Ax = np.empty(n), np.empty(n), np.empty(m)
    for e in range(first, last):
        Px[:], Ax[:] = 0.0, 0.0
        for j in range(n):
            for p in range(P_starts[j], P_starts[j + 1]):
                Px[P_rows[p]] += P[e, p] * x[e, j]
            total = 0.0
            for p in range(A_starts[j], A_starts[j + 1]):
                Ax[A_rows[p]] += A[e, p] * x[e, j]
                total += A[e, p] * y[e, A_rows[p]]
            Aty[j] = total
        dual, dual_size, xPx, qx = 0.0, 1.0, 0.0, 0.0
        for j in range(n):
            stationarity[e, j] = Px[j] + q[e, j] + Aty[j]
            dual = _larger(dual, abs(stationarity[e, j]))
            dual_size = max(dual_size, max(abs(Px[j]), max(abs(q[e, j]), abs(Aty[j]))))
            xPx += x[e, j] * Px[j]
            qx += x[e, j] * q[e, j]
        primal, primal_size, by, natural, size = 0.0, 1.0, 0.0, 0.0, 1.0
        for i in range(m):
            feasibility[e, i] = Ax[i] + s[e, i] - b[e, i]
            primal = _larger(primal, abs(feasibility[e, i]))
            primal_size = max(primal_size, max(abs(Ax[i]), max(abs(s[e, i]), abs(b[e, i]))))
            by += b[e, i] * y[e, i]
            size = max(size, max(abs(y[e, i]), abs(s[e, i])))
            w = y[e, i] - s[e, i]
            projected = curved[e, i - orthant] if i >= orthant else (w if i < zero or w > 0.0 else 0.0)
            natural = _larger(natural, abs(y[e, i] - projected))
        gap = abs(xPx + qx + by) / max(1.0, max(abs(xPx), max(abs(qx), abs(by))))
        primal, dual, natural = primal / primal_size, dual / dual_size, natural / size
        worst = _larger(_larger(primal, dual), _larger(gap, natural))
        out[0, e], out[1, e], out[2, e], out[3, e] = primal, dual, gap, natural
        out[4, e] = np.inf if np.isnan(worst) else worst
        out[5, e] = 0.5 * xPx + qx + r[e]


@njit(nogil=True)
def _larger(largest: float, value: float) -> float:
    """The larger of the two; NaN where one is."""
    return largest if value <= largest or np.isnan(largest) else value


def warm_up() -> None:
    """Compile whatever this part of the library calls from Python."""
    one, index, short = np.ones((1, 1)), np.zeros(1, np.int64), np.zeros(1, np.int32)
    times(np.zeros(2, np.int32), short, np.ones(1), np.ones(1), one, one.copy(), 0, 1)
    blocks = tuple(one.copy() for _ in range(5))
    fill(np.zeros(5, np.int32), short, short, np.ones(1), np.ones(5), one, True, *blocks, np.ones(1), 0, 1)
    gather(np.zeros(5, np.int32), short, short, np.ones(1), np.ones(1), *blocks, one.copy(), 0, 1)
    accumulate(index, index, one, one, one.copy(), 0, 1)
    system_entries(*(index,) * 6, one, one, one, one.copy(), 0, 1)
    cube = np.zeros((1, 1, 1), np.int64)
    rotate_entries(cube, cube, index, one, np.ones((1, 1, 1, 1)), np.ones((1, 1, 1)), one.copy(), 0, 1)
    outer_entries(index, index, one, one, one, one, one.copy(), 0, 1)
    P, q, A, b = (one,) * 4
    patterns, point, six = (index, np.array([0, 1])) * 2, (one, one, one), np.empty((6, 1))
    residuals(*patterns, 0, 1, P, q, one[0], A, b, *point, one[:, 1:].copy(), six, one.copy(), one.copy(), 0, 1)
