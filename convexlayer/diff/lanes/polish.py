"""Newton polish of a range of elements: each lane holds one element, and loads the next one when it has finished.

The method is that of ``diff.polish``, without its further attempts for elements whose first attempt fails.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from convexlayer.cones.kernels.table import project
from convexlayer.diff.kkt_system import NEWTON_REFINEMENTS
from convexlayer.diff.lanes.layout import SINGLE_COLUMN, SINGLE_ROW, Layout, blocks_of, part, patterns_of, sizes_of
from convexlayer.diff.lanes.points import (
    DUAL,
    PRIMAL,
    PROJECTION,
    VARIABLE,
    C,
    S,
    W,
    X,
    Y,
    change_of,
    complete_point,
    copy_to,
    of_rows,
    of_variables,
    point_near,
    point_size,
    project_point,
    saved_of,
    write_scales,
)
from convexlayer.diff.lanes.system import (
    derive_element,
    new_derivatives,
    solution_of,
    times_A,
    write_rhs,
    write_system,
)
from convexlayer.diff.polish import (
    CANCELLED,
    CONVERGED,
    MAX_GROWTH,
    NEAR,
    NOTHING,
    POLISH_TOL,
    POLYHEDRAL_TOL,
    PROGRESS,
    REBALANCED,
)
from convexlayer.diff.polish import PATIENCE as PATIENCE_STEPS
from convexlayer.linalg.ldl.group import factor_group, group_at, new_solve_scratch, solve_group
from convexlayer.linalg.ldl.lanes import Indices, unpack
from convexlayer.program import Array, IndexArray
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.inner_function import inner_function
from convexlayer.sparse.residual_kernels import norm_of, residuals_of_element
from convexlayer.sparse.row_kernels import RowWork, element_of, new_row_work
from convexlayer.sparse.structures import Point, Values

__all__ = ["KEPT", "STUCK", "TAKEN", "polish_range"]

TAKEN, KEPT, STUCK = 0, 1, 2
"""Outcome of an element: it has the complementary point; the solver's point, not to be polished; the solver's point,
because no attempt has converged yet."""

ELEMENT, HERE, BEST, PATIENCE, STEPS = range(5)
"""What the loop counts for each lane, (V, 5): its element, or IDLE; the present and the best of its three points; the
remaining steps without progress, and all remaining steps."""

BACKWARD, LIMIT, SHORTEST = range(3)
"""What the loop measures for each lane, (V, 3): the backward error of the best point, the norm of x at which a step is
rejected, and the smallest change of a step so far."""

IDLE = -1
"""In place of the element of a lane."""


class Scratch(NamedTuple):
    """Scratch of one element.

    Attributes:
        rows: scratch of the scales.
        dx: (n,).
        dy: (m,).
        dw: (m,).
        Px: (n,).
        Ax: (m,).
    """

    rows: RowWork
    dx: Array
    dy: Array
    dw: Array
    Px: Array
    Ax: Array


@cached_kernel
def polish_range(
    lanes: Any,
    layout_fields: tuple[IndexArray, Array],
    packed: Indices,
    value_fields: tuple[Array, ...],
    r: Array,
    given_fields: tuple[Array, ...],
    eligible: Any,
    limits: tuple[float, int],
    out: Array,
    residuals: Array,
    outcome: IndexArray,
    first: int,
    last: int,
) -> None:
    """Polish the elements first ... last - 1 of a batch in V lanes, and measure the results.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        layout_fields: the fields of ``Layout``.
        packed: the symbolic factorisation of K (see ``Symbolic.packed``).
        value_fields: the fields of ``Values``.
        r: constants of the objectives, (B,).
        given_fields: x (B, n), y (B, m) and s (B, m) of the solver; the results replace them.
        eligible: whether an element may be polished, (B,).
        limits: the backward error up to which no step is made, and the maximum number of steps; with 0, points with a
            backward error up to NEAR are taken as they are.
        out: out, the complementary points without projections, (B, entries).
        residuals: out, the rows of ``relative_residuals``, and backward errors, (B, 7).
        outcome: out, (B,).
        first: index of the first element.
        last: index after the last element.
    """
    layout, values, given = Layout(*layout_fields), Values(*value_fields), Point(*given_fields)
    sizes, (plan, source), (needed, steps) = sizes_of(layout), unpack(packed), limits
    V, N, n, m = len(lanes), sizes.unknowns, sizes.n, sizes.m
    points, D = np.zeros((3 * V, point_size(sizes))), new_derivatives(layout, V)
    K, rhs, z, error = np.zeros((V, sizes.entries)), np.zeros((V, N)), np.zeros((V, N)), np.empty(V)
    group = group_at(plan, np.zeros((3 * N + len(plan.row) + len(plan.factor_row), V)))
    y, peak, solves = np.zeros((N, V)), np.empty((N, V)), new_solve_scratch(N, V)
    scratch = Scratch(new_row_work(n, m), np.empty(n), np.empty(m), np.empty(m), np.empty(n), np.empty(m))
    counts, measures = np.full((V, 5), IDLE), np.zeros((V, 3))
    following = first
    while True:
        running = False
        for v in range(V):
            while counts[v, ELEMENT] == IDLE and following < last:
                e = following
                element, start = element_of(values, e), Point(given.x[e], given.y[e], given.s[e])
                backward = point_near(layout, element, start, points[3 * v], scratch.rows)
                copy_to(out[e], points[3 * v])
                residuals[e, 6] = backward
                if eligible[e] and np.isfinite(backward) and backward > needed and steps > 0:
                    _begin(v, e, start.x, backward, steps, counts, measures)
                else:
                    taken = eligible[e] and backward <= (needed if steps > 0 else NEAR)
                    outcome[e] = TAKEN if taken else KEPT
                    _measure(layout, element, r[e], start, points[3 * v], taken, residuals[e], scratch)
                following += 1
            e = counts[v, ELEMENT]
            if e != IDLE:
                running = True
                point, derivative = points[counts[v, HERE]], D[v]
                c, projection = of_rows(point, sizes, C), of_rows(point, sizes, PROJECTION)
                derive_element(layout, of_rows(point, sizes, W), projection, saved_of(point, sizes), derivative)
                write_system(layout, values.P[e], values.A[e], c, derivative, K[v])
                top, bottom = of_variables(point, sizes, DUAL), of_rows(point, sizes, PRIMAL)
                write_rhs(layout, top, bottom, -1.0, c, derivative, rhs[v])
        if not running:
            return
        factor_group(lanes, plan, source, K, 0, group, y, peak)
        solve_group(lanes, group, rhs, 0, NEWTON_REFINEMENTS, solves, z, error)
        for v in range(V):
            e = counts[v, ELEMENT]
            if e == IDLE:
                continue
            element = element_of(values, e)
            if not _advance(layout, element, points, v, counts[v], measures[v], D[v], z[v], scratch):
                point, taken = points[counts[v, BEST]], measures[v, BACKWARD] <= NEAR
                outcome[e], counts[v, ELEMENT] = (TAKEN if taken else STUCK), IDLE
                if taken:
                    copy_to(out[e], point)
                    residuals[e, 6] = measures[v, BACKWARD]
                start = Point(given.x[e], given.y[e], given.s[e])
                _measure(layout, element, r[e], start, point, taken, residuals[e], scratch)


@inner_function
def _begin(v: int, e: int, x: Array, backward: float, steps: int, counts: IndexArray, measures: Array) -> None:
    """Load element e, whose point is the first of lane v, into the lane."""
    counts[v, ELEMENT], counts[v, HERE], counts[v, BEST] = e, 3 * v, 3 * v
    counts[v, PATIENCE], counts[v, STEPS] = PATIENCE_STEPS, steps
    measures[v, BACKWARD], measures[v, LIMIT] = backward, MAX_GROWTH * max(norm_of(x), 1.0)
    measures[v, SHORTEST] = np.inf


@inner_function
def _advance(
    layout: Layout, values: Values, points: Array, v: int, counts: IndexArray, measures: Array, D: Array, z: Array,
    scratch: Scratch,
) -> bool:  # fmt: skip
    """Take the Newton step with solution z in lane v; returns whether the element goes on."""
    h, t, sizes = counts[HERE], 3 * v, sizes_of(layout)
    while t in (h, counts[BEST]):
        t += 1
    here, there = points[h], points[t]
    change = _step(layout, values, here, there, D, z, scratch)
    backward = complete_point(layout, values, there)
    astray = norm_of(of_variables(there, sizes, X)) > measures[LIMIT]
    if (backward < measures[BACKWARD] or backward <= POLISH_TOL) and not astray:
        counts[BEST], measures[BACKWARD] = t, backward
    if measures[BACKWARD] <= NEAR and not change < PROGRESS * measures[SHORTEST]:
        counts[PATIENCE] -= 1
    measures[SHORTEST] = min(measures[SHORTEST], change)
    counts[STEPS] -= 1
    counts[HERE] = t
    converged = change <= CONVERGED and backward <= NEAR
    if len(layout.exponents) == 0 and not converged and backward <= POLYHEDRAL_TOL:
        old, new = of_rows(here, sizes, W), of_rows(there, sizes, W)
        converged = True
        for i in range(sizes.zero, sizes.flat):
            converged = converged and (new[i] > 0.0) == (old[i] > 0.0)
    return not converged and counts[PATIENCE] > 0 and counts[STEPS] > 0 and np.isfinite(backward)


@inner_function
def _step(layout: Layout, values: Values, here: Array, there: Array, D: Array, z: Array, scratch: Scratch) -> float:
    """The step from one point to the next (see ``polish._step``), without residuals; returns its relative change."""
    sizes, dx, dy, dw, Adx = sizes_of(layout), scratch.dx, scratch.dy, scratch.dw, scratch.Ax
    old, c, primal = of_rows(here, sizes, W), of_rows(here, sizes, C), of_rows(here, sizes, PRIMAL)
    w, new_c, projection = of_rows(there, sizes, W), of_rows(there, sizes, C), of_rows(there, sizes, PROJECTION)
    solution_of(layout, z, c, D, dx, dy)
    times_A(layout, values.A, dx, Adx)
    finite = True
    for i in range(sizes.m):
        ds = -(Adx[i] + primal[i])
        dw[i] = c[i] * dy[i] - ds / c[i]
        w[i] = old[i] + dw[i]
        if sizes.zero <= i < sizes.flat and abs(w[i]) <= CANCELLED * abs(old[i]):
            w[i] = 0.0
        if not np.isfinite(w[i]):
            finite, w[i] = False, 0.0
    change = change_of(sizes, here, dx, dw)
    project_point(layout, there)
    y, s = of_rows(there, sizes, Y), of_rows(there, sizes, S)
    for i in range(sizes.m):
        if i < sizes.flat:
            projection[i] = w[i] if i < sizes.zero or w[i] > 0.0 else 0.0
        y[i], s[i] = projection[i] / c[i], (projection[i] - w[i]) * c[i]
    x, old_x, variable = (
        of_variables(there, sizes, X),
        of_variables(here, sizes, X),
        of_variables(here, sizes, VARIABLE),
    )
    for j in range(sizes.n):
        x[j] = old_x[j] + dx[j] if finite else np.nan
    rows, columns = part(layout, SINGLE_ROW), part(layout, SINGLE_COLUMN)
    for p in range(len(rows)):
        i, j = rows[p], columns[p]
        small = max(NOTHING * variable[j], CANCELLED * abs(old_x[j]))
        if s[i] == 0.0 and values.b[i] == 0.0 and abs(x[j]) <= small:
            x[j] = 0.0
    write_scales(layout, values, Point(x, y, s), there, scratch.rows)
    moved = False
    for i in range(sizes.m):
        moved = moved or abs(np.log2(new_c[i] / c[i])) > np.log2(REBALANCED)
    if moved:
        for i in range(sizes.m):
            w[i] = new_c[i] * y[i] - s[i] / new_c[i]
        project_point(layout, there)
    else:
        copy_to(new_c, c)
    return change


@inner_function
def _measure(
    layout: Layout, values: Values, r: float, solution: Point, point: Array, taken: bool, residuals: Array,
    scratch: Scratch,
) -> None:  # fmt: skip
    """Write the solution of an element, its complementary point if ``taken``, and its relative residuals."""
    sizes, w = sizes_of(layout), scratch.dw
    projection = of_rows(point, sizes, PROJECTION)
    if taken:
        copy_to(solution.x, of_variables(point, sizes, X))
        copy_to(solution.y, of_rows(point, sizes, Y))
        copy_to(solution.s, of_rows(point, sizes, S))
        copy_to(projection, solution.y)
    else:
        for i in range(sizes.m):
            w[i] = solution.y[i] - solution.s[i]
            w[i] = w[i] if np.isfinite(w[i]) else 0.0
        project(blocks_of(layout), w, projection, saved_of(point, sizes))
    residuals_of_element(
        patterns_of(layout), values, sizes.zero, r, solution, projection[sizes.flat :], (scratch.Px, scratch.Ax),
        residuals,
    )  # fmt: skip
