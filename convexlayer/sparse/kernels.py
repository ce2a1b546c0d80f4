"""Kernels of ``products`` and ``pattern``: one element after another, so that its data stay in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.inner_function import inner_function
from convexlayer.sparse.products import EntriesOfSystem
from convexlayer.sparse.residual_kernels import complementary_residuals, nan_max, norm_of, relative_residuals
from convexlayer.sparse.row_kernels import row_scales
from convexlayer.sparse.structures import Entries, Floats, Integers, Positions, ProgramBlocks

__all__ = [
    "accumulate",
    "apply_adjoint",
    "apply_program_map",
    "complementary_residuals",
    "outer_entries",
    "relative_residuals",
    "rotate_entries",
    "row_scales",
    "system_entries",
    "times",
    "warm_up",
]


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
    entry_fields: tuple[Any, ...],
    constant: Floats,
    x: Floats,
    normalise: bool,
    block_fields: tuple[Floats, ...],
    scale: Floats,
    first: int,
    last: int,
) -> None:
    """Write the blocks of constant + M x[e] to rows e of P, q, r, A and b, for first <= e < last.

    Args:
        entry_fields: the fields of ``Entries``.
        constant: (rows of all blocks,).
        x: (B, columns).
        normalise: whether to divide P, q and r by a power of two near the largest entry of P and q.
        block_fields: out, the fields of ``ProgramBlocks``.
        scale: out, the divisors, (B,).
        first: index of the first element.
        last: index after the last element.
    """
    entries, blocks = Entries(*entry_fields), ProgramBlocks(*block_fields)
    P, q, r = blocks.P, blocks.q, blocks.r
    for e in range(first, last):
        rest = _fill_block(entries, 0, constant, x[e], P[e])
        rest = _fill_block(entries, 1, rest, x[e], q[e])
        rest = _fill_block(entries, 2, rest, x[e], r[e])
        rest = _fill_block(entries, 3, rest, x[e], blocks.A[e])
        _fill_block(entries, 4, rest, x[e], blocks.b[e])
        largest = 0.0
        if normalise:
            largest = nan_max(norm_of(P[e]), norm_of(q[e]))
        if largest == 0.0:
            scale[e] = 1.0
            continue
        scale[e] = np.exp2(np.rint(np.log2(largest)))
        inverse = 1.0 / scale[e]
        for p in range(P.shape[1]):
            P[e, p] *= inverse
        for j in range(q.shape[1]):
            q[e, j] *= inverse
        r[e, 0] *= inverse


@inner_function
def _fill_block(entries: Entries, block: int, constant: Floats, x: Floats, out: Floats) -> Floats:
    """Write one block; returns the constants of the following blocks."""
    for k in range(len(out)):
        out[k] = constant[k]
    for p in range(entries.ends[block - 1] if block else 0, entries.ends[block]):
        out[entries.row[p]] += entries.value[p] * x[entries.column[p]]
    return constant[len(out) :]


@cached_kernel
def apply_adjoint(
    entry_fields: tuple[Any, ...],
    block_fields: tuple[Floats, ...],
    out: Floats,
    first: int,
    last: int,
) -> None:
    """Adjoint of ``apply_program_map``: out[e] = M'(P, q, r, A, b)[e] for first <= e < last.

    Args:
        entry_fields: the fields of ``Entries``.
        block_fields: the fields of ``ProgramBlocks``.
        out: out, (B, columns).
        first: index of the first element.
        last: index after the last element.
    """
    entries, blocks = Entries(*entry_fields), ProgramBlocks(*block_fields)
    for e in range(first, last):
        total = out[e]
        total[:] = 0.0
        _gather_block(entries, 0, blocks.P[e], total)
        _gather_block(entries, 1, blocks.q[e], total)
        _gather_block(entries, 2, blocks.r[e], total)
        _gather_block(entries, 3, blocks.A[e], total)
        _gather_block(entries, 4, blocks.b[e], total)


@inner_function
def _gather_block(entries: Entries, block: int, values: Floats, total: Floats) -> None:
    for p in range(entries.ends[block - 1] if block else 0, entries.ends[block]):
        total[entries.column[p]] += entries.value[p] * values[entries.row[p]]


@cached_kernel
def accumulate(
    into: Positions,
    of: Positions,
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
    position_fields: tuple[Positions, ...], P: Floats, A: Floats, d: Floats, out: Floats, first: int, last: int
) -> None:
    """Write the entries of ``EntriesOfSystem`` for first <= e < last, and zeros elsewhere."""
    positions = EntriesOfSystem(*position_fields)
    for e in range(first, last):
        entries = out[e]
        entries[:] = 0.0
        for p in range(len(positions.P_place)):
            entries[positions.P_place[p]] = P[e, positions.P_source[p]]
        for p in range(len(positions.A_place)):
            entries[positions.A_place[p]] = A[e, positions.A_source[p]] * d[e, positions.A_row[p]]
        for i in range(len(positions.diagonal)):
            entries[positions.diagonal[i]] = d[e, i] - 1.0


@cached_kernel
def rotate_entries(
    place: Positions,
    source: Positions,
    block: Positions,
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
    rows: Positions,
    cols: Positions,
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
    entries = (np.zeros(5, np.int32), short, short, np.ones(1))
    blocks = tuple(one.copy() for _ in range(5))
    apply_program_map(entries, np.ones(5), one, True, blocks, np.ones(1), 0, 1)
    apply_adjoint(entries, blocks, one.copy(), 0, 1)
    accumulate(index, index, one, one, one.copy(), 0, 1)
    system_entries((index,) * 6, one, one, one, one.copy(), 0, 1)
    cube = np.zeros((1, 1, 1), np.int64)
    rotate_entries(cube, cube, index, one, np.ones((1, 1, 1, 1)), np.ones((1, 1, 1)), one.copy(), 0, 1)
    outer_entries(index, index, one, one, one, one, one.copy(), 0, 1)
    patterns, values, end, curved = (index, np.array([0, 1])) * 2, (one,) * 4, np.ones(1, np.int64), one[:, 1:].copy()
    row_scales(patterns, end, 0, values, (one,) * 3, tuple(one.copy() for _ in range(7)), 0, 1)
    outputs = (*(one.copy() for _ in range(4)), np.empty(1))
    complementary_residuals(patterns, 0, values, (one, one, curved), (one,) * 3, outputs, 0, 1)
    relative_residuals(patterns, 0, values, one[0], (one,) * 3, curved, np.empty((6, 1)), 0, 1)
