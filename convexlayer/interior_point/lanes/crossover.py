"""Crossover for programs with zero and nonnegative cones only: one Newton step on the estimated active set.

At the final iterate of the interior-point method a row is estimated to be active if y > s. With the multipliers of
inactive rows and the slacks of active rows fixed at 0, the optimality conditions are linear,

    P x + A'y = -q,    A x = b in active rows,    y = 0 in inactive rows,

which is the KKT system of the method with H = 0 in active rows and H infinite in inactive rows, so that one more
factorisation solves it. The result is accepted if every row's residual is small and all signs of y and s agree with the
active set. Otherwise the estimate was wrong or the solution is not unique, and the interior-point iterate is kept.
"""

from __future__ import annotations

import numpy as np

from convexlayer.interior_point.lanes.kkt import REGULARISATION
from convexlayer.interior_point.lanes.layout import Data, Layout, Point
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function

__all__ = ["CROSSOVER_REFINEMENTS", "accept_crossover", "crossover_rhs", "write_active_set"]

INACTIVE_H = 1e25
"""H of an inactive row, in scaled units: large enough that the step leaves its multiplier at 0 to rounding, small
enough that the factorisation does not overflow."""

ROW_RESIDUAL_TOL = 1e-12
"""Largest accepted residual of a row, relative to the sum of the magnitudes of its terms, about 10^4 rounding
errors. Smaller values reject correct active sets of badly conditioned systems, larger ones accept wrong sets."""

ZERO_RATIO = 1e-11
"""Largest ratio |new x| / |old x| at which a variable is set to exactly 0, if an active bound fixes it at 0."""

CROSSOVER_REFINEMENTS = 2
"""Additional steps of iterative refinement, which make small entries accurate relative to their own size."""


@inner_function
def write_active_set(v: int, layout: Layout, start: Point, values: Array) -> None:
    """Write the -H of the active set of ``start`` into the KKT values of lane v."""
    for i in range(layout.zero, layout.orthant):
        active = start.y[i, v] > start.s[i, v]
        values[layout.diagonal[layout.n + i], v] = -REGULARISATION if active else -INACTIVE_H


@inner_function
def crossover_rhs(v: int, layout: Layout, data: Data, start: Point, tau: float, rhs: Array) -> None:
    """Move lane v of ``start`` onto its active set and write the right-hand side of the crossover step into rhs (N, V).

    Afterwards s is 0 in active rows and 1, as a marker, in inactive rows.
    """
    x, s, y = start.x, start.s, start.y
    n, m = len(x), len(s)
    for j in range(n):
        x[j, v] /= tau
    for i in range(m):
        active = i < layout.zero or y[i, v] > s[i, v]
        y[i, v] = y[i, v] / tau if active else 0.0
        s[i, v] = 0.0 if active else 1.0
    dual, primal, _, _ = _residuals(v, layout, data, x[:, v], y[:, v])
    for j in range(n):
        rhs[j, v] = -dual[j]
    for i in range(m):
        rhs[n + i, v] = -primal[i] if s[i, v] == 0.0 else 0.0


@inner_function
def accept_crossover(v: int, layout: Layout, data: Data, start: Point, step: Array) -> bool:
    """Whether lane v's crossover step (N, V) is accepted; if so, ``start`` is overwritten with the solution."""
    x, s, y = start.x, start.s, start.y
    n, m = len(x), len(s)
    new_x, new_y = np.empty(n), np.empty(m)
    for j in range(n):
        new_x[j] = x[j, v] + step[j, v]
        if abs(new_x[j]) <= ZERO_RATIO * abs(x[j, v]):
            for p in range(layout.A_start[j], layout.A_start[j + 1]):
                i = layout.A_row[p]
                if layout.A_single[p] and s[i, v] == 0.0 and data.b[i, v] == 0.0:
                    new_x[j] = 0.0
    for i in range(m):
        new_y[i] = y[i, v] + step[n + i, v] if s[i, v] == 0.0 else 0.0
        if i >= layout.zero and s[i, v] == 0.0 and not new_y[i] > 0.0:
            return False
    dual, primal, dual_terms, primal_terms = _residuals(v, layout, data, new_x, new_y)
    for j in range(n):
        if not abs(dual[j]) <= ROW_RESIDUAL_TOL * dual_terms[j]:
            return False
    for i in range(m):
        if s[i, v] == 0.0:
            if not abs(primal[i]) <= ROW_RESIDUAL_TOL * primal_terms[i]:
                return False
        elif not primal[i] < -ROW_RESIDUAL_TOL * primal_terms[i]:
            return False
    for j in range(n):
        x[j, v] = new_x[j]
    for i in range(m):
        y[i, v] = new_y[i]
        s[i, v] = 0.0 if s[i, v] == 0.0 else -primal[i]
    return True


@inner_function
def _residuals(v: int, layout: Layout, data: Data, x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """P x + q + A'y and A x - b of lane v's program, and for each row the sum of the magnitudes of its terms."""
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
