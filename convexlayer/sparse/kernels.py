"""Kernels of ``products``; they process one element after another, so that its data stay in the cache."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.sparse.equilibration_kernels import equilibrate
from convexlayer.sparse.row_kernels import complementary, nan_max, residuals, scales

__all__ = [
    "accumulate",
    "apply_adjoint",
    "apply_program_map",
    "complementary",
    "equilibrate",
    "outer_entries",
    "residuals",
    "rotate_entries",
    "scales",
    "system_entries",
    "times",
    "warm_up",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]


@cached_kernel
def times(
    start: Integers, column: Integers, value: Floats, constant: Floats, x: Floats, out: Floats, first: int, last: int
) -> None:
    """out[e] = constant + M x[e] for first <= e < last, with M by rows (CSR)."""
    for e in range(first, last):
        for i in range(len(start) - 1):
            total = constant[i]
            for p in range(start[i], start[i + 1]):
                total += value[p] * x[e, column[p]]
            out[e, i] = total


@cached_kernel
def apply_program_map(
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
    """Write the blocks of constant + M x[e] to rows e of P, q, r, A and b, for first <= e < last.

    Args:
        ends: index after the last entry of M of each block, (5,).
        column: column of each entry.
        row: row of each entry within its block.
        value: value of each entry.
        constant: (rows of all blocks,).
        x: (B, columns).
        normalise: whether to divide P, q and r by a power of two near the largest entry of P and q.
        P: out, (B, nnz(P)).
        q: out, (B, n).
        r: out, (B, 1).
        A: out, (B, nnz(A)).
        b: out, (B, m).
        scale: out, the divisors, (B,).
        first: index of the first element.
        last: index after the last element.
    """
    for e in range(first, last):
        rest = _fill_block(0, ends[0], column, row, value, constant, x[e], P[e])
        rest = _fill_block(ends[0], ends[1], column, row, value, rest, x[e], q[e])
        rest = _fill_block(ends[1], ends[2], column, row, value, rest, x[e], r[e])
        rest = _fill_block(ends[2], ends[3], column, row, value, rest, x[e], A[e])
        _fill_block(ends[3], ends[4], column, row, value, rest, x[e], b[e])
        largest = 0.0
        if normalise:
            largest = nan_max(_largest(P[e]), _largest(q[e]))
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
    """Write one block, from the entries start ... stop - 1; returns the constants of the following blocks."""
    out[:] = constant[: len(out)]
    for p in range(start, stop):
        out[row[p]] += value[p] * x[column[p]]
    return constant[len(out) :]


@njit(nogil=True)
def _largest(values: Floats) -> float:
    largest = 0.0
    for number in values:
        largest = nan_max(largest, abs(number))
    return largest


@cached_kernel
def apply_adjoint(
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
    """Adjoint of ``apply_program_map``: out[e] = M'(inverse P, inverse q, inverse r, A, b)[e] for first <= e < last.

    Args:
        ends: index after the last entry of M of each block, (5,).
        column: column of each entry.
        row: row of each entry within its block.
        value: value of each entry.
        inverse: (B,).
        P: (B, nnz(P)).
        q: (B, n).
        r: (B, 1).
        A: (B, nnz(A)).
        b: (B, m).
        out: out, (B, columns).
        first: index of the first element.
        last: index after the last element.
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


@cached_kernel
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


@cached_kernel
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
    """Write the entries of ``EntriesOfSystem`` for first <= e < last, and zeros elsewhere."""
    for e in range(first, last):
        entries = out[e]
        entries[:] = 0.0
        for p in range(len(P_place)):
            entries[P_place[p]] = P[e, P_source[p]]
        for p in range(len(A_place)):
            entries[A_place[p]] = A[e, A_source[p]] * d[e, A_row[p]]
        for i in range(len(diagonal)):
            entries[diagonal[i]] = d[e, i] - 1.0


@cached_kernel
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
    """Compute the blocks diag(root) Q' M of each element, for first <= e < last.

    Args:
        place: position in out of entry (i, c) of each product, (blocks, size, columns).
        source: index in values of entry (k, c) of each M, -1 for zeros, (blocks, size, columns).
        block: index of each block in Q and root, (blocks,).
        values: (B, nnz).
        Q: (B, all blocks, size, size).
        root: (B, all blocks, size).
        out: out, (B, entries).
        first: index of the first element.
        last: index after the last element.
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


@cached_kernel
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
    """out[e, p] = (u1 v1' + u2 v2')[rows[p], cols[p]] for element e, first <= e < last."""
    for e in range(first, last):
        for p in range(len(rows)):
            i, j = rows[p], cols[p]
            out[e, p] = u1[e, i] * v1[e, j] + u2[e, i] * v2[e, j]


def warm_up() -> None:
    """Compile this package's kernels by calling them."""
    one, index, short = np.ones((1, 1)), np.zeros(1, np.int64), np.zeros(1, np.int32)
    times(np.zeros(2, np.int32), short, np.ones(1), np.ones(1), one, one.copy(), 0, 1)
    blocks = tuple(one.copy() for _ in range(5))
    apply_program_map(np.zeros(5, np.int32), short, short, np.ones(1), np.ones(5), one, True, *blocks, np.ones(1), 0, 1)
    apply_adjoint(np.zeros(5, np.int32), short, short, np.ones(1), np.ones(1), *blocks, one.copy(), 0, 1)
    accumulate(index, index, one, one, one.copy(), 0, 1)
    system_entries(*(index,) * 6, one, one, one, one.copy(), 0, 1)
    cube = np.zeros((1, 1, 1), np.int64)
    rotate_entries(cube, cube, index, one, np.ones((1, 1, 1, 1)), np.ones((1, 1, 1)), one.copy(), 0, 1)
    outer_entries(index, index, one, one, one, one, one.copy(), 0, 1)
    P, q, A, b = (one,) * 4
    patterns, end, curved = (index, np.array([0, 1])) * 2, np.ones(1, np.int64), one[:, 1:].copy()
    arrays = tuple(one.copy() for _ in range(7))
    scales(*patterns, end, 0, (1.0,) * 8, P, q, A, b, one, one, one, *arrays, 0, 1)
    equilibrate(*patterns, end, 1, 1.0, 0.0, P, q, A, b, one.copy(), one.copy(), np.empty(1), np.empty(1), 0, 1)
    outputs = (*(one.copy() for _ in range(4)), np.empty(1))
    complementary(*patterns, 0, P, q, A, b, one, one, curved, one, one, one, *outputs, 0, 1)
    residuals(*patterns, 0, 1, P, q, one[0], A, b, one, one, one, curved, np.empty((6, 1)), 0, 1)
