"""The KKT system of one element: values of K, right-hand sides and solutions, for one element each.

The formulas are those of ``diff.rows``. All vectors are views without a batch axis; c is 1 in flat rows of products.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from convexlayer.cones.kernels.block import Block, BlocksDerivative, block_at
from convexlayer.cones.kernels.table import derive
from convexlayer.diff.lanes.layout import BlockColumns, SystemLayout
from convexlayer.program import Array
from convexlayer.sparse.structures import Patterns, Values

__all__ = [
    "Derivative",
    "derivative_of",
    "derive_element",
    "new_derivative",
    "solution_of",
    "times_A",
    "write_rhs",
    "write_system",
]


class Derivative(NamedTuple):
    """The derivative D of the projection of the elements in the lanes.

    Attributes:
        d: its eigenvalues by row, (elements, m).
        complement: 1 - d in the rows of curved cones, (elements, m).
        basis: bases of the blocks of curved cones, (elements, entries).
    """

    d: Array
    complement: Array
    basis: Array


@njit(nogil=True)
def new_derivative(layout: SystemLayout, elements: int) -> Derivative:
    """Allocate the derivatives."""
    sizes = layout.sizes
    return Derivative(np.zeros((elements, sizes.m)), np.zeros((elements, sizes.m)), np.zeros((elements, sizes.basis)))


@njit(nogil=True)
def derivative_of(derivative: Derivative, e: int) -> BlocksDerivative:
    """The derivative of element e."""
    return BlocksDerivative(derivative.d[e], derivative.complement[e], derivative.basis[e])


@njit(nogil=True)
def columns_of(layout: SystemLayout, k: int) -> BlockColumns:
    """The index arrays of block k."""
    row = layout.columns[k]
    return BlockColumns(row[0], row[1], row[2], row[3], row[4], row[5], row[6])


@njit(nogil=True, error_model="numpy")
def derive_element(layout: SystemLayout, w: Array, y: Array, saved: Array, D: BlocksDerivative) -> None:
    """D at w, with projection y."""
    sizes = layout.sizes
    for i in range(sizes.flat):
        D.d[i] = 1.0 if i < sizes.zero or w[i] > 0.0 else 0.0
    derive(layout.blocks, w, y, saved, D)


@njit(nogil=True, error_model="numpy")
def write_system(layout: SystemLayout, values: Values, c: Array, D: BlocksDerivative, K: Array) -> None:
    """Write the upper triangle of K, in which rows of curved cones are divided by c."""
    positions = layout.positions
    K[:] = 0.0
    for p in range(len(positions.P_place)):
        K[positions.P_place[p]] = values.P[positions.P_source[p]]
    for p in range(len(positions.A_place)):
        K[positions.A_place[p]] = values.A[positions.A_source[p]] * D.d[positions.A_row[p]]
    for i in range(len(positions.diagonal)):
        K[positions.diagonal[i]] = D.d[i] - 1.0
    for k in range(len(layout.columns)):
        block = block_at(layout.blocks, k)
        if block.rank_two:
            _write_rank_two(layout, columns_of(layout, k), block, values.A, 1.0 / c[block.start], D, K)
        else:
            _write_basis(layout, columns_of(layout, k), block, values.A, 1.0 / c[block.start], D, K)


@njit(nogil=True, error_model="numpy")
def _write_basis(
    layout: SystemLayout, columns: BlockColumns, block: Block, A: Array, scale: float, D: BlocksDerivative, K: Array
) -> None:
    """diag(sqrt d) Q'A and the diagonal d - 1 of a block with an eigenbasis."""
    size, start, flat, Q = block.size, block.start, layout.sizes.flat, D.basis[block.basis :]
    for i in range(size):
        K[layout.diagonal[start + i - flat]] = -D.complement[start + i]
    for i in range(size):
        root = math.sqrt(D.d[start + i]) * scale
        at = columns.first + i * columns.columns
        for j in range(size):
            weight, of = root * Q[j * size + i], columns.first + j * columns.columns
            if weight != 0.0:
                for p in range(columns.columns):
                    if layout.source[of + p] >= 0:
                        K[layout.place[at + p]] += weight * A[layout.source[of + p]]


@njit(nogil=True, error_model="numpy")
def _write_rank_two(
    layout: SystemLayout, columns: BlockColumns, block: Block, A: Array, scale: float, D: BlocksDerivative, K: Array
) -> None:
    """The rows of a rank-two block, with those of xi and nu."""
    size, start, flat, q = block.size, block.start, layout.sizes.flat, D.basis[block.basis :]
    delta, complement = D.d[start], D.complement[start]
    root, lead, entries = math.sqrt(delta), math.sqrt(complement), layout.entries
    curved = 1.0 if q[size] > 0.0 else 0.0
    for p in range(columns.first, columns.stop):
        value = A[entries[p, 0]] * scale
        K[entries[p, 2]] = root * value
        K[entries[p, 3]] += lead * q[entries[p, 1] - start] * value
    for i in range(size):
        row = start + i - flat
        K[layout.diagonal[row]] = -complement
        K[layout.extra[row, 0]] = root * (lead * q[i])
        K[layout.extra[row, 1]] = q[size + i]
    K[columns.xi_place] = -delta if curved > 0.0 else -1.0
    K[columns.nu_place] = 1.0 - curved


@njit(nogil=True, error_model="numpy")
def write_rhs(
    layout: SystemLayout, top: Array, bottom: Array, sign: float, c: Array, D: BlocksDerivative, rhs: Array
) -> None:
    """rhs <- sign [top; L'bottom], with the rows of curved cones divided by c."""
    n, flat = layout.sizes.n, layout.sizes.flat
    for j in range(n):
        rhs[j] = sign * top[j]
    for i in range(flat):
        rhs[n + i] = D.d[i] * (sign * bottom[i])
    for k in range(len(layout.columns)):
        block = block_at(layout.blocks, k)
        size, start, Q = block.size, block.start, D.basis[block.basis :]
        scale = sign / c[start]
        if block.rank_two:
            columns = columns_of(layout, k)
            root, lead, along = math.sqrt(D.d[start]), math.sqrt(D.complement[start]), 0.0
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
                rhs[n + start + i] *= math.sqrt(D.d[start + i])


@njit(nogil=True, error_model="numpy")
def solution_of(layout: SystemLayout, z: Array, c: Array, D: BlocksDerivative, l: Array, v: Array) -> None:  # noqa: E741
    """l and v = L u from the unknowns z, with the rows of curved cones divided by c."""
    n, flat = layout.sizes.n, layout.sizes.flat
    for j in range(n):
        l[j] = z[j]
    for i in range(flat):
        v[i] = D.d[i] * z[n + i]
    for k in range(len(layout.columns)):
        block = block_at(layout.blocks, k)
        size, start, Q = block.size, block.start, D.basis[block.basis :]
        if block.rank_two:
            columns = columns_of(layout, k)
            root, lead = math.sqrt(D.d[start]), math.sqrt(D.complement[start]) * z[columns.xi]
            for i in range(size):
                v[start + i] = (root * z[n + start + i] + Q[i] * lead) / c[start]
        else:
            for i in range(size):
                total = 0.0
                for j in range(size):
                    total += Q[i * size + j] * (math.sqrt(D.d[start + j]) * z[n + start + j])
                v[start + i] = total / c[start]


@njit(nogil=True, error_model="numpy")
def times_A(patterns: Patterns, A: Array, x: Array, out: Array) -> None:
    """Out <- A x."""
    out[:] = 0.0
    for j in range(len(x)):
        for p in range(patterns.A_starts[j], patterns.A_starts[j + 1]):
            out[patterns.A_rows[p]] += A[p] * x[j]
