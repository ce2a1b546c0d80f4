"""The loops behind ``products``, compiled: element after element, so that everything touched fits in the cache."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from convexlayer.entry import entry

__all__ = ["accumulate", "outer_entries", "residuals", "times", "warm_up"]

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
    P_cols: NDArray[np.int64],
    A_rows: NDArray[np.int64],
    A_cols: NDArray[np.int64],
    zero: int,
    orthant: int,
    P: Floats,
    q: Floats,
    A: Floats,
    b: Floats,
    x: Floats,
    y: Floats,
    s: Floats,
    curved: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """The four residuals of ``Solution.residuals``, into rows of out (B, 4), for elements first <= e < last.

    ``curved`` (B, m - orthant) holds the projections of y - s on the duals of the cones that are not half-lines.
    """
    n, m = q.shape[1], b.shape[1]
    Px, Aty, Ax = np.empty(n), np.empty(n), np.empty(m)
    for e in range(first, last):
        Px[:], Aty[:], Ax[:] = 0.0, 0.0, 0.0
        for p in range(len(P_rows)):
            Px[P_rows[p]] += P[e, p] * x[e, P_cols[p]]
        for p in range(len(A_rows)):
            i, j = A_rows[p], A_cols[p]
            Ax[i] += A[e, p] * x[e, j]
            Aty[j] += A[e, p] * y[e, i]
        dual, dual_size, xPx, qx = 0.0, 1.0, 0.0, 0.0
        for j in range(n):
            dual = _larger(dual, abs(Px[j] + q[e, j] + Aty[j]))
            dual_size = max(dual_size, max(abs(Px[j]), max(abs(q[e, j]), abs(Aty[j]))))
            xPx += x[e, j] * Px[j]
            qx += x[e, j] * q[e, j]
        primal, primal_size, by, natural, size = 0.0, 1.0, 0.0, 0.0, 1.0
        for i in range(m):
            primal = _larger(primal, abs(Ax[i] + s[e, i] - b[e, i]))
            primal_size = max(primal_size, max(abs(Ax[i]), max(abs(s[e, i]), abs(b[e, i]))))
            by += b[e, i] * y[e, i]
            size = max(size, max(abs(y[e, i]), abs(s[e, i])))
            w = y[e, i] - s[e, i]
            projected = curved[e, i - orthant] if i >= orthant else (w if i < zero or w > 0.0 else 0.0)
            natural = _larger(natural, abs(y[e, i] - projected))
        gap_size = max(1.0, max(abs(xPx), max(abs(qx), abs(by))))
        out[e, 0], out[e, 1] = primal / primal_size, dual / dual_size
        out[e, 2], out[e, 3] = abs(xPx + qx + by) / gap_size, natural / size


@njit(nogil=True)
def _larger(largest: float, value: float) -> float:
    """The larger of the two; NaN where one is."""
    return largest if value <= largest or np.isnan(largest) else value


def warm_up() -> None:
    """Compile whatever this part of the library calls from Python."""
    one, index, short = np.ones((1, 1)), np.zeros(1, np.int64), np.zeros(1, np.int32)
    times(np.zeros(2, np.int32), short, np.ones(1), np.ones(1), one, one.copy(), 0, 1)
    accumulate(index, index, one, one, one.copy(), 0, 1)
    outer_entries(index, index, one, one, one, one, one.copy(), 0, 1)
    residuals(index, index, index, index, 0, 1, *(one,) * 7, one[:, 1:].copy(), np.empty((1, 4)), 0, 1)
