"""The KKT system of one element: values of K, right-hand sides and solutions, with the formulas of ``diff.rows``.

The derivative D of the projection is one array of an element,

    eigenvalues by row (m) | 1 - d by row (m) | bases of the blocks of curved cones

All vectors are views without a batch axis.
"""

from __future__ import annotations

import math

import numpy as np

from convexlayer.cones.kernels.block import Block, BlocksDerivative, block_at
from convexlayer.cones.kernels.table import derive
from convexlayer.diff.lanes.layout import (
    DIAGONAL,
    ENTRIES,
    EXTRA,
    FIRST_POSITION,
    PLACE,
    SOURCE,
    BlockColumns,
    Layout,
    blocks_of,
    columns_of,
    part,
    patterns_of,
    sizes_of,
)
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function

__all__ = ["derive_element", "new_derivatives", "solution_of", "times_A", "write_rhs", "write_system"]


@inner_function
def new_derivatives(layout: Layout, elements: int) -> Array:
    """Allocate D of some elements."""
    sizes = sizes_of(layout)
    return np.zeros((elements, 2 * sizes.m + sizes.basis))


@inner_function
def _derivative(D: Array, m: int) -> BlocksDerivative:
    return BlocksDerivative(D[:m], D[m : 2 * m], D[2 * m :])


@inner_function
def derive_element(layout: Layout, w: Array, y: Array, saved: Array, D: Array) -> None:
    """D at w, with projection y."""
    sizes = sizes_of(layout)
    for i in range(sizes.flat):
        D[i] = 1.0 if i < sizes.zero or w[i] > 0.0 else 0.0
    derive(blocks_of(layout), w, y, saved, _derivative(D, sizes.m))


@inner_function
def write_system(layout: Layout, P: Array, A: Array, c: Array, D: Array, K: Array) -> None:
    """Write the upper triangle of K, in which rows of curved cones are divided by c."""
    K[:] = 0.0
    source, place = part(layout, FIRST_POSITION), part(layout, FIRST_POSITION + 1)
    for p in range(len(place)):
        K[place[p]] = P[source[p]]
    source, row = part(layout, FIRST_POSITION + 2), part(layout, FIRST_POSITION + 3)
    place, diagonal = part(layout, FIRST_POSITION + 4), part(layout, FIRST_POSITION + 5)
    for p in range(len(place)):
        K[place[p]] = A[source[p]] * D[row[p]]
    for i in range(len(diagonal)):
        K[diagonal[i]] = D[i] - 1.0
    blocks = blocks_of(layout)
    for k in range(len(layout.exponents)):
        block, columns = block_at(blocks, k), columns_of(layout, k)
        if block.rank_two:
            _write_rank_two(layout, columns, block, A, 1.0 / c[block.start], D, K)
        else:
            _write_basis(layout, columns, block, A, 1.0 / c[block.start], D, K)


@inner_function
def _write_basis(
    layout: Layout, columns: BlockColumns, block: Block, A: Array, scale: float, D: Array, K: Array
) -> None:
    """diag(sqrt d) Q'A and the diagonal d - 1 of a block with an eigenbasis."""
    size, start, sizes = block.size, block.start, sizes_of(layout)
    Q, diagonal = D[2 * sizes.m + block.basis :], part(layout, DIAGONAL)
    source, place = part(layout, SOURCE), part(layout, PLACE)
    count = columns.columns
    for i in range(size):
        K[diagonal[start + i - sizes.flat]] = -D[sizes.m + start + i]
    for j in range(size):
        for c in range(count):
            entry = source[columns.first + j * count + c]
            if entry >= 0:
                value = A[entry] * scale
                for i in range(size):
                    K[place[columns.first + i * count + c]] += Q[j * size + i] * value
    for i in range(size):
        root = math.sqrt(D[start + i])
        for c in range(count):
            K[place[columns.first + i * count + c]] *= root


@inner_function
def _write_rank_two(
    layout: Layout, columns: BlockColumns, block: Block, A: Array, scale: float, D: Array, K: Array
) -> None:
    """The rows of a rank-two block, with those of xi and nu."""
    size, start, sizes = block.size, block.start, sizes_of(layout)
    q, diagonal = D[2 * sizes.m + block.basis :], part(layout, DIAGONAL)
    entries, extra = part(layout, ENTRIES), part(layout, EXTRA)
    delta, complement = D[start], D[sizes.m + start]
    root, lead = math.sqrt(delta), math.sqrt(complement)
    curved = q[size] > 0.0
    for p in range(columns.first, columns.stop):
        source, row, place, xi_place = entries[4 * p], entries[4 * p + 1], entries[4 * p + 2], entries[4 * p + 3]
        value = A[source] * scale
        K[place] = root * value
        K[xi_place] += lead * q[row - start] * value
    for i in range(size):
        row = start + i - sizes.flat
        K[diagonal[row]] = -complement
        K[extra[2 * row]] = root * (lead * q[i])
        K[extra[2 * row + 1]] = q[size + i]
    K[columns.xi_place] = -delta if curved else -1.0
    K[columns.nu_place] = 0.0 if curved else 1.0


@inner_function
def write_rhs(layout: Layout, top: Array, bottom: Array, sign: float, c: Array, D: Array, rhs: Array) -> None:
    """rhs <- sign [top; L'bottom], with the rows of curved cones divided by c."""
    sizes, blocks = sizes_of(layout), blocks_of(layout)
    n, m = sizes.n, sizes.m
    for j in range(n):
        rhs[j] = sign * top[j]
    for i in range(sizes.flat):
        rhs[n + i] = D[i] * (sign * bottom[i])
    for k in range(len(layout.exponents)):
        block = block_at(blocks, k)
        size, start = block.size, block.start
        Q, scale = D[2 * m + block.basis :], sign / c[start]
        if block.rank_two:
            columns = columns_of(layout, k)
            root, lead, along = math.sqrt(D[start]), math.sqrt(D[m + start]), 0.0
            for i in range(size):
                value = bottom[start + i] * scale
                rhs[n + start + i] = root * value
                along += lead * Q[i] * value
            rhs[columns.xi], rhs[columns.nu] = along, 0.0
        else:
            for i in range(size):
                rhs[n + start + i] = 0.0
            for j in range(size):
                value = bottom[start + j] * scale
                for i in range(size):
                    rhs[n + start + i] += Q[j * size + i] * value
            for i in range(size):
                rhs[n + start + i] *= math.sqrt(D[start + i])


@inner_function
def solution_of(layout: Layout, z: Array, c: Array, D: Array, l: Array, v: Array) -> None:  # noqa: E741
    """l and v = L u from the unknowns z, with the rows of curved cones divided by c."""
    sizes, blocks = sizes_of(layout), blocks_of(layout)
    n, m = sizes.n, sizes.m
    for j in range(n):
        l[j] = z[j]
    for i in range(sizes.flat):
        v[i] = D[i] * z[n + i]
    for k in range(len(layout.exponents)):
        block = block_at(blocks, k)
        size, start, Q = block.size, block.start, D[2 * m + block.basis :]
        if block.rank_two:
            root, lead = math.sqrt(D[start]), math.sqrt(D[m + start]) * z[columns_of(layout, k).xi]
            for i in range(size):
                v[start + i] = (root * z[n + start + i] + Q[i] * lead) / c[start]
        else:
            for i in range(size):
                total = 0.0
                for j in range(size):
                    total += Q[i * size + j] * (math.sqrt(D[start + j]) * z[n + start + j])
                v[start + i] = total / c[start]


@inner_function
def times_A(layout: Layout, A: Array, x: Array, out: Array) -> None:
    """Out <- A x."""
    patterns = patterns_of(layout)
    out[:] = 0.0
    for j in range(len(x)):
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            out[patterns.A_rows[p]] += A[p] * x[j]
