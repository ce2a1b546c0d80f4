"""Ruiz equilibration of one batch element when it is loaded into a lane."""

from __future__ import annotations

import numpy as np
from numba import njit

from convexlayer.interior_point.lanes.plan import Layout
from convexlayer.program import Array

__all__ = ["RUIZ_PASSES", "equilibrate"]

RUIZ_PASSES = 4
"""Maximum number of Ruiz passes over the data; fewer if all row norms are within RUIZ_TOL of 1. Each pass costs as much
as reading the data a few times; later passes change the scales little."""

RUIZ_TOL = 0.5
"""The passes end when every row norm is within this distance of 1 (the stopping test of Ruiz 2001)."""

SCALE_RANGE = 1e4
"""Every scale lies in [1 / SCALE_RANGE, SCALE_RANGE] (Clarabel's equilibrate_min_scaling, equilibrate_max_scaling)."""


@njit(nogil=True, error_model="numpy")
def equilibrate(layout: Layout, P: Array, A: Array, q: Array, b: Array, d: Array, e: Array) -> float:
    """Scale one element in place: P <- c D P D, q <- c D q, A <- E A D, b <- E b (Ruiz 2001).

    E is constant on each second-order, semidefinite, exponential and power block, so that E maps the cone to itself.

    Args:
        layout: index arrays.
        P: upper triangle, (nnz,); scaled on return, as A (nnz,), q (n,) and b (m,).
        A: see P.
        q: see P.
        b: see P.
        d: out, the diagonal of D, (n,).
        e: out, the diagonal of E, (m,).

    Returns:
        c, the scale of the objective.
    """
    n, m = len(q), len(b)
    d[:], e[:] = 1.0, 1.0
    column, row = np.empty(n), np.empty(m)
    for _ in range(RUIZ_PASSES):
        column[:], row[:] = 0.0, 0.0
        for j in range(n):
            for p in range(layout.P_start[j], layout.P_start[j + 1]):
                i, value = layout.P_row[p], abs(P[p])
                column[j], column[i] = max(column[j], value), max(column[i], value)
            for p in range(layout.A_start[j], layout.A_start[j + 1]):
                i, value = layout.A_row[p], abs(A[p])
                column[j], row[i] = max(column[j], value), max(row[i], value)
        _even_blocks(layout, row)
        worst = 0.0
        for j in range(n):
            if column[j] > 0.0:
                worst = max(worst, abs(1.0 - column[j]))
            column[j] = _limited(d[j], column[j])
            d[j] *= column[j]
        for i in range(m):
            if row[i] > 0.0:
                worst = max(worst, abs(1.0 - row[i]))
            row[i] = _limited(e[i], row[i])
            e[i] *= row[i]
        if worst < RUIZ_TOL:
            for j in range(n):
                d[j] /= column[j]
            for i in range(m):
                e[i] /= row[i]
            break
        for j in range(n):
            for p in range(layout.P_start[j], layout.P_start[j + 1]):
                P[p] *= column[j] * column[layout.P_row[p]]
            for p in range(layout.A_start[j], layout.A_start[j + 1]):
                A[p] *= column[j] * row[layout.A_row[p]]
    largest = 0.0
    for j in range(n):
        q[j] *= d[j]
        largest = max(largest, abs(q[j]))
    for p in range(len(P)):
        largest = max(largest, abs(P[p]))
    c = 1.0 / largest if largest > 0.0 else 1.0
    for j in range(n):
        q[j] *= c
    for p in range(len(P)):
        P[p] *= c
    for i in range(m):
        b[i] *= e[i]
    return c


@njit(nogil=True, error_model="numpy")
def _limited(scale: float, norm: float) -> float:
    """1 / sqrt(norm), clipped so that scale times it stays within SCALE_RANGE; 1 for an empty row."""
    if norm <= 0.0:
        return 1.0
    return min(max(scale / np.sqrt(norm), 1.0 / SCALE_RANGE), SCALE_RANGE) / scale


@njit(nogil=True, error_model="numpy")
def _even_blocks(layout: Layout, row: Array) -> None:
    """Replace the row norms within each block of a curved cone by their mean."""
    for block in range(len(layout.second_start)):
        _even(row, layout.second_start[block], layout.second_size[block])
    for block in range(len(layout.psd_start)):
        order = layout.psd_order[block]
        _even(row, layout.psd_start[block], order * (order + 1) // 2)
    for start in layout.exponential_start:
        _even(row, start, 3)
    for start in layout.power_start:
        _even(row, start, 3)


@njit(nogil=True, error_model="numpy")
def _even(row: Array, start: int, size: int) -> None:
    mean = 0.0
    for i in range(start, start + size):
        mean += row[i] / size
    for i in range(start, start + size):
        row[i] = mean
