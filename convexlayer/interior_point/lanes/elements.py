"""Elements in lanes: loading their data, their starting point, and their results."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convexlayer.interior_point.lanes.kkt import REGULARISATION
from convexlayer.interior_point.lanes.layout import Blocks, Data, Layout, Point
from convexlayer.interior_point.lanes.product_cone import shift_to_interior
from convexlayer.interior_point.lanes.steps import B_NORM, OBJECTIVE, Q_NORM
from convexlayer.linalg.equilibration.element import Element, ElementPattern, equilibrate
from convexlayer.program import Array, IndexArray
from convexlayer.runtime.inner_function import inner_function

__all__ = ["Programs", "Solutions", "load_element", "start_near_least_squares", "write_ray", "write_solution"]

MAX_START_NORM = 1e4
"""Largest entry, in scaled units, of a least-squares starting point; above it (K is nearly singular) the method starts
from the central point."""


class Programs(NamedTuple):
    """The data of a batch, P (B, nnz(P)), q (B, n), A (B, nnz(A)) and b (B, m)."""

    P: Array
    q: Array
    A: Array
    b: Array


class Solutions(NamedTuple):
    """Results of a batch.

    Attributes:
        x: (B, n); a ray for unbounded elements.
        y: (B, m); a ray for infeasible elements.
        s: (B, m).
        status_code: (B,), OPTIMAL ... ITERATION_LIMIT.
        iterations: (B,).
    """

    x: Array
    y: Array
    s: Array
    status_code: IndexArray
    iterations: IndexArray


@inner_function
def load_element(v: int, layout: Layout, programs: Programs, element: int, data: Data, values: Array) -> None:
    """Equilibrate the data of an element and store it in lane v."""
    n, m = layout.n, len(data.b)
    P, A, q, b = programs.P[element], programs.A[element].copy(), programs.q[element].copy(), programs.b[element].copy()
    q_norm, b_norm = 0.0, 0.0
    for value in q:
        q_norm = max(q_norm, abs(value))
    for value in b:
        b_norm = max(b_norm, abs(value))
    data.scalars[Q_NORM, v], data.scalars[B_NORM, v] = q_norm, b_norm
    upper = np.empty(len(layout.P_source))
    for p in range(len(upper)):
        upper[p] = P[layout.P_source[p]]
    d, e = np.empty(n), np.empty(m)
    pattern = ElementPattern(layout.P_start, layout.P_row, layout.A_start, layout.A_row, layout.uniform)
    data.scalars[OBJECTIVE, v] = equilibrate(pattern, Element(upper, q, A, b), d, e)
    for p in range(len(values)):
        values[p, v] = 0.0
    for i in range(len(layout.diagonal)):
        values[layout.diagonal[i], v] = REGULARISATION if i < n else -REGULARISATION
    for p in range(len(upper)):
        data.P[p, v] = upper[p]
        values[layout.P_position[p], v] += upper[p]
    for p in range(len(A)):
        data.A[p, v] = A[p]
        values[layout.A_position[p], v] = A[p]
    for j in range(n):
        data.q[j, v], data.d[j, v] = q[j], d[j]
    for i in range(m):
        data.b[i, v], data.e[i, v] = b[i], e[i]


@inner_function
def start_near_least_squares(v: int, blocks: Blocks, constant: Array, point: Point) -> None:
    """Set lane v's starting point: least squares, or the central point if that is too large (K nearly singular)."""
    x, s, y = point.x, point.s, point.y
    n, largest = len(x), 0.0
    for i in range(n + len(s)):
        largest = max(largest, abs(constant[i, v]))
    near = largest < MAX_START_NORM
    for j in range(n):
        x[j, v] = constant[j, v] if near else 0.0
    if near:
        for i in range(len(s)):
            y[i, v] = constant[n + i, v]
            s[i, v] = -constant[n + i, v] if i >= blocks.zero else 0.0
        shift_to_interior(v, blocks, s)
        shift_to_interior(v, blocks, y)


@inner_function
def write_solution(v: int, data: Data, point: Point, tau: float, element: int, solutions: Solutions) -> None:
    """Write lane v's solution, with scaling and tau removed."""
    x, y, s, c = solutions.x[element], solutions.y[element], solutions.s[element], data.scalars[OBJECTIVE, v]
    for j in range(len(x)):
        x[j] = point.x[j, v] * data.d[j, v] / tau
    for i in range(len(y)):
        y[i] = point.y[i, v] * data.e[i, v] / (c * tau)
        s[i] = point.s[i, v] / (data.e[i, v] * tau)


@inner_function
def write_ray(v: int, u: Array, scale: Array, size: float, out: Array) -> None:
    """Write lane v's certificate, unscaled and normalised to the value b'y = -1 or q'x = -1."""
    for i in range(len(out)):
        out[i] = u[i, v] * scale[i, v] / size
