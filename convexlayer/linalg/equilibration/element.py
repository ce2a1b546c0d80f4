"""Ruiz equilibration of one program, when it is loaded into a lane of the interior-point method (see ``ruiz``)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convexlayer.linalg.equilibration.ruiz import ELEMENT_PASSES, ELEMENT_TOL, MAX_SCALE, MIN_SCALE
from convexlayer.linalg.ldl.lanes import Indices
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function

__all__ = ["Element", "ElementPattern", "equilibrate"]


class ElementPattern(NamedTuple):
    """The pattern of a program.

    Attributes:
        P_start: column starts of the upper triangle of P, (n + 1,).
        P_row: row of each of its entries.
        A_start: column starts of A, (n + 1,).
        A_row: row of each of its entries.
        uniform: first row of each block that has one scale, ascending, and m; each earlier row has its own.
    """

    P_start: Indices
    P_row: Indices
    A_start: Indices
    A_row: Indices
    uniform: Indices


class Element(NamedTuple):
    """The data of one program: the upper triangle of P (nnz,), q (n,), A (nnz,) and b (m,)."""

    P: Array
    q: Array
    A: Array
    b: Array


@inner_function
def equilibrate(pattern: ElementPattern, element: Element, d: Array, e: Array) -> float:
    """Scale an element in place: P <- c D P D, q <- c D q, A <- E A D, b <- E b.

    Args:
        pattern: its pattern.
        element: its data, overwritten.
        d: out, the diagonal of D, (n,).
        e: out, the diagonal of E, (m,).

    Returns:
        c, the scale of the objective.
    """
    P, q, A, b = element.P, element.q, element.A, element.b
    n, m = len(q), len(b)
    d[:], e[:] = 1.0, 1.0
    column, row = np.empty(n), np.empty(m)
    for _ in range(ELEMENT_PASSES):
        column[:], row[:] = 0.0, 0.0
        for j in range(n):
            for p in range(pattern.P_start[j], pattern.P_start[j + 1]):
                i, value = pattern.P_row[p], abs(P[p])
                column[j], column[i] = max(column[j], value), max(column[i], value)
            for p in range(pattern.A_start[j], pattern.A_start[j + 1]):
                i, value = pattern.A_row[p], abs(A[p])
                column[j], row[i] = max(column[j], value), max(row[i], value)
        _average_blocks(pattern.uniform, row)
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
        if worst < ELEMENT_TOL:
            for j in range(n):
                d[j] /= column[j]
            for i in range(m):
                e[i] /= row[i]
            break
        for j in range(n):
            for p in range(pattern.P_start[j], pattern.P_start[j + 1]):
                P[p] *= column[j] * column[pattern.P_row[p]]
            for p in range(pattern.A_start[j], pattern.A_start[j + 1]):
                A[p] *= column[j] * row[pattern.A_row[p]]
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


@inner_function
def _limited(scale: float, norm: float) -> float:
    """1 / sqrt(norm), clipped so that scale times it stays within its bounds; 1 for an empty row."""
    if norm <= 0.0:
        return 1.0
    return min(max(scale / np.sqrt(norm), MIN_SCALE), MAX_SCALE) / scale


@inner_function
def _average_blocks(blocks: Indices, row: Array) -> None:
    """Replace the row norms within each block by their mean."""
    for k in range(len(blocks) - 1):
        start, stop = blocks[k], blocks[k + 1]
        mean = 0.0
        for i in range(start, stop):
            mean += row[i] / (stop - start)
        for i in range(start, stop):
            row[i] = mean
