"""From the interior to the solution, where all cones are half-lines: one step with the active set known.

At the end of the interior-point method a row counts as active where y > s. With inactive multipliers at 0 and active
slacks at 0 the optimality conditions are linear,

    P x + A'y = -q,    A x = b in active rows,    y = 0 in the others,

which is the method's own system with H = 0 in active rows and H infinite in the others: one factorisation more. The
result is taken where it is right row by row and all signs are as supposed; else the set was another, or is not unique.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from convexlayer.interior_point.lanes.kkt import REGULARISATION
from convexlayer.interior_point.lanes.plan import Layout
from convexlayer.interior_point.lanes.steps import Data, Point
from convexlayer.program import Array

__all__ = ["REFINEMENTS", "ahead", "arrived", "set_active"]

INFINITE = 1e25
"""H of an inactive row."""

RIGHT = 1e-12
"""Residual of a row, relative to its terms, up to which the result is taken."""

CANCELLED = 1e-11
"""Of a variable that is 0 by an active row of its own the step leaves no more than this share."""

REFINEMENTS = 2
"""Steps of refinement more: small entries are to be right relative to themselves."""


@njit(nogil=True)
def set_active(layout: Layout, n: int, start: Point, values: Array, v: int) -> None:
    """H of lane v, of the active set of a point."""
    for i in range(layout.zero, layout.orthant):
        active = start.y[i, v] > start.s[i, v]
        values[layout.diagonal[n + i], v] = -REGULARISATION if active else -INFINITE


@njit(nogil=True)
def ahead(layout: Layout, data: Data, start: Point, tau: float, rhs: Array, v: int) -> None:
    """Put lane v's start on its active set, and the right-hand side of the step from there into rhs (N, V)."""
    x, s, y = start.x, start.s, start.y
    n, m = len(x), len(s)
    for j in range(n):
        x[j, v] /= tau
    for i in range(m):
        active = i < layout.zero or y[i, v] > s[i, v]
        y[i, v] = y[i, v] / tau if active else 0.0
        s[i, v] = 0.0 if active else 1.0
    dual, primal, _, _ = _residuals(layout, data, x[:, v], y[:, v], v)
    for j in range(n):
        rhs[j, v] = -dual[j]
    for i in range(m):
        rhs[n + i, v] = -primal[i] if s[i, v] == 0.0 else 0.0


@njit(nogil=True)
def arrived(layout: Layout, data: Data, start: Point, step: Array, v: int) -> bool:
    """Whether lane v's step (N, V) leads to the solution; if so, the start becomes that."""
    x, s, y = start.x, start.s, start.y
    n, m = len(x), len(s)
    new_x, new_y = np.empty(n), np.empty(m)
    for j in range(n):
        new_x[j] = x[j, v] + step[j, v]
        if abs(new_x[j]) <= CANCELLED * abs(x[j, v]):
            for p in range(layout.A_start[j], layout.A_start[j + 1]):
                i = layout.A_row[p]
                if layout.A_single[p] and s[i, v] == 0.0 and data.b[i, v] == 0.0:
                    new_x[j] = 0.0
    for i in range(m):
        new_y[i] = y[i, v] + step[n + i, v] if s[i, v] == 0.0 else 0.0
        if i >= layout.zero and s[i, v] == 0.0 and not new_y[i] > 0.0:
            return False
    dual, primal, dual_terms, primal_terms = _residuals(layout, data, new_x, new_y, v)
    for j in range(n):
        if not abs(dual[j]) <= RIGHT * dual_terms[j]:
            return False
    for i in range(m):
        if s[i, v] == 0.0:
            if not abs(primal[i]) <= RIGHT * primal_terms[i]:
                return False
        elif not primal[i] < -RIGHT * primal_terms[i]:
            return False
    for j in range(n):
        x[j, v] = new_x[j]
    for i in range(m):
        y[i, v] = new_y[i]
        s[i, v] = 0.0 if s[i, v] == 0.0 else -primal[i]
    return True


@njit(nogil=True)
def _residuals(layout: Layout, data: Data, x: Array, y: Array, v: int) -> tuple[Array, Array, Array, Array]:
    """P x + q + A'y and A x - b of lane v's program, and the sums of the magnitudes of their terms."""
    n, m = len(x), len(y)
    dual, primal, dual_terms, primal_terms = np.empty(n), np.empty(m), np.empty(n), np.empty(m)
    for i in range(m):
        primal[i], primal_terms[i] = -data.b[i, v], abs(data.b[i, v])
    for j in range(n):
        dual[j], dual_terms[j] = data.q[j, v], abs(data.q[j, v])
        for p in range(layout.A_start[j], layout.A_start[j + 1]):
            i, value = layout.A_row[p], data.A[p, v]
            primal[i] += value * x[j]
            primal_terms[i] += abs(value * x[j])
            dual[j] += value * y[i]
            dual_terms[j] += abs(value * y[i])
    for j in range(n):
        for p in range(layout.P_start[j], layout.P_start[j + 1]):
            i, value = layout.P_row[p], data.P[p, v]
            dual[j] += value * x[i]
            dual_terms[j] += abs(value * x[i])
            if i != j:
                dual[i] += value * x[j]
                dual_terms[i] += abs(value * x[j])
    return dual, primal, dual_terms, primal_terms
