"""Newton polish of a range of elements: each lane holds one element, and loads the next one when it has finished.

The method is that of ``diff.polish``, without its further attempts for elements whose first attempt fails.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from convexlayer.cones.kernels.block import BlocksDerivative
from convexlayer.cones.kernels.table import project
from convexlayer.diff.kkt_system import NEWTON_REFINEMENTS
from convexlayer.diff.lanes.layout import SystemLayout, unpack_layout
from convexlayer.diff.lanes.points import (
    Points,
    change_of,
    complete_point,
    copy_point,
    new_points,
    point_near,
    points_from,
)
from convexlayer.diff.lanes.system import (
    Derivative,
    derivative_of,
    derive_element,
    new_derivative,
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
    PATIENCE,
    POLISH_TOL,
    POLYHEDRAL_TOL,
    PROGRESS,
    REBALANCED,
)
from convexlayer.linalg.ldl.group import (
    factor_group,
    group_at,
    load_target,
    new_work,
    refine,
    write_solution,
)
from convexlayer.linalg.ldl.lanes import Indices, unpack
from convexlayer.program import Array, IndexArray
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.sparse.residual_kernels import nan_max, residuals_of_element
from convexlayer.sparse.row_kernels import RowWork, element_of, new_row_work, scales_of, scales_of_element
from convexlayer.sparse.structures import Point, Values

__all__ = ["KEPT", "STUCK", "TAKEN", "polish_range"]

TAKEN, KEPT, STUCK = 0, 1, 2
"""Outcome of an element: it has the complementary point; the solver's point, not to be polished; the solver's point,
because no attempt has converged yet."""

IDLE = -1
"""In place of the element of a lane."""


class Lanes(NamedTuple):
    """What the loop knows of each lane, (V,).

    Attributes:
        element: its element, or IDLE.
        here: index of its present point.
        best: index of its best point.
        backward: backward error of the best point.
        limit: norm of x at which a step is rejected.
        shortest: smallest change of a step so far.
        patience: remaining steps without progress.
        steps: remaining steps.
    """

    element: IndexArray
    here: IndexArray
    best: IndexArray
    backward: Array
    limit: Array
    shortest: Array
    patience: IndexArray
    steps: IndexArray


class Scratch(NamedTuple):
    """Scratch of one element.

    Attributes:
        rows: scratch of the scales.
        dx: (n,).
        dy: (m,).
        dw: (m,).
        products: (n,) and (m,).
    """

    rows: RowWork
    dx: Array
    dy: Array
    dw: Array
    products: tuple[Array, Array]


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
    point_fields: tuple[Any, ...],
    scale_fields: tuple[Any, ...],
    measures: tuple[Array, Array, IndexArray],
    first: int,
    last: int,
) -> None:
    """Polish the elements first ... last - 1 of a batch in V lanes, and measure the results.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        layout_fields: the result of ``pack_layout``.
        packed: the symbolic factorisation of K (see ``Symbolic.packed``).
        value_fields: the fields of ``Values``.
        r: constants of the objectives, (B,).
        given_fields: x (B, n), y (B, m) and s (B, m) of the solver; the results replace them.
        eligible: whether an element may be polished, (B,).
        limits: the backward error up to which no step is made, and the maximum number of steps; with 0, points with a
            backward error up to NEAR are taken as they are.
        point_fields: out, x, y, s, w, dual and primal of the complementary points.
        scale_fields: out, the fields of ``RowScales`` at them.
        measures: out, backward errors (B,), the rows of ``relative_residuals`` (6, B), and outcomes (B,).
        first: index of the first element.
        last: index after the last element.
    """
    layout = unpack_layout(layout_fields[0], layout_fields[1])
    values, given, (needed, steps) = Values(*value_fields), Point(*given_fields), limits
    plan, source = unpack(packed)
    V, N, n, m = len(lanes), layout.sizes.unknowns, layout.sizes.n, layout.sizes.m
    nothing = np.empty((0, 0))
    out = points_from(point_fields, scale_fields, nothing, nothing)
    points, D = new_points(layout, 3 * V), new_derivative(layout, V)
    K, rhs, z, error = np.zeros((V, layout.sizes.entries)), np.zeros((V, N)), np.zeros((V, N)), np.empty(V)
    group = group_at(plan, np.zeros((3 * N + len(plan.row) + len(plan.factor_row), V)))
    y, peak, target, best, work = np.zeros((N, V)), np.empty((N, V)), np.empty((N, V)), np.empty((N, V)), new_work(N, V)
    scratch = Scratch(new_row_work(n, m), np.empty(n), np.empty(m), np.empty(m), (np.empty(n), np.empty(m)))
    state = Lanes(
        np.full(V, IDLE), np.zeros(V, np.int64), np.zeros(V, np.int64), np.empty(V), np.empty(V), np.empty(V),
        np.zeros(V, np.int64), np.zeros(V, np.int64),
    )  # fmt: skip
    following = first
    while True:
        running = False
        for v in range(V):
            while state.element[v] == IDLE and following < last:
                _begin(
                    layout, values, r, given, eligible[following], needed, steps, points, v, following, state, out,
                    measures, scratch,
                )  # fmt: skip
                following += 1
            if state.element[v] != IDLE:
                running = True
                e, h, of = state.element[v], state.here[v], derivative_of(D, v)
                derive_element(layout, points.w[h], points.projection[h], points.saved[h], of)
                c = points.scales.c[h]
                write_system(layout, element_of(values, e), c, of, K[v])
                write_rhs(layout, points.dual[h], points.primal[h], -1.0, c, of, rhs[v])
        if not running:
            return
        factor_group(lanes, plan, source, K, 0, group, y, peak)
        finite = load_target(lanes, plan, rhs, 0, group.scale, target)
        least = refine(lanes, group.matrix, NEWTON_REFINEMENTS, target, best, work)
        write_solution(lanes, group, 0, finite, best, least, z, error)
        for v in range(V):
            if state.element[v] != IDLE and not _advance(layout, values, points, v, state, D, z[v], scratch):
                _finish(layout, values, r, given, points, v, state, out, measures, scratch)


@njit(nogil=True, error_model="numpy")
def _begin(
    layout: SystemLayout, values: Values, r: Array, given: Point, eligible: bool, needed: float, steps: int,
    points: Points, v: int, e: int, state: Lanes, out: Points, measures: tuple[Array, Array, IndexArray],
    scratch: Scratch,
) -> None:  # fmt: skip
    """Compute the complementary point of element e; load it into lane v if it needs polish, else write the result."""
    backward, _, outcome = measures
    element, here = element_of(values, e), 3 * v
    start = Point(given.x[e], given.y[e], given.s[e])
    backward[e] = point_near(layout, element, start, points, here, scratch.rows)
    copy_point(points, here, out, e)
    needs = eligible and np.isfinite(backward[e]) and backward[e] > needed and steps > 0
    if not needs:
        outcome[e] = TAKEN if eligible and backward[e] <= (needed if steps > 0 else NEAR) else KEPT
        _measure(layout, element, r[e], given, points, here, e, measures, scratch)
        return
    largest = 0.0
    for value in start.x:
        largest = nan_max(largest, abs(value))
    state.element[v], state.here[v], state.best[v], state.backward[v] = e, here, here, backward[e]
    state.limit[v], state.shortest[v] = MAX_GROWTH * max(largest, 1.0), np.inf
    state.patience[v], state.steps[v] = PATIENCE, steps


@njit(nogil=True, error_model="numpy")
def _advance(
    layout: SystemLayout, values: Values, points: Points, v: int, state: Lanes, D: Derivative, z: Array,
    scratch: Scratch,
) -> bool:  # fmt: skip
    """Take the Newton step with solution z in lane v; returns whether the element goes on."""
    h, e = state.here[v], state.element[v]
    t = 3 * v
    while t in (h, state.best[v]):
        t += 1
    change, backward = _step(layout, element_of(values, e), points, h, t, derivative_of(D, v), z, scratch)
    largest = 0.0
    for value in points.x[t]:
        largest = nan_max(largest, abs(value))
    if (backward < state.backward[v] or backward <= POLISH_TOL) and not largest > state.limit[v]:
        state.best[v], state.backward[v] = t, backward
    if state.backward[v] <= NEAR and not change < PROGRESS * state.shortest[v]:
        state.patience[v] -= 1
    state.shortest[v] = min(state.shortest[v], change)
    state.steps[v] -= 1
    converged = change <= CONVERGED and backward <= NEAR
    if len(layout.columns) == 0 and not converged and backward <= POLYHEDRAL_TOL:
        settled = True
        for i in range(layout.sizes.zero, layout.sizes.flat):
            settled = settled and (points.w[t, i] > 0.0) == (points.w[h, i] > 0.0)
        converged = settled
    state.here[v] = t
    return not converged and state.patience[v] > 0 and state.steps[v] > 0 and np.isfinite(backward)


@njit(nogil=True, error_model="numpy")
def _step(
    layout: SystemLayout, values: Values, points: Points, h: int, t: int, D: BlocksDerivative, z: Array,
    scratch: Scratch,
) -> tuple[float, float]:  # fmt: skip
    """Point t <- that after the step from point h; returns its change and its backward error (see ``polish._step``)."""
    sizes, old, scales = layout.sizes, points.w[h], scales_of(points.scales, h)
    x, w, projection, there = points.x[t], points.w[t], points.projection[t], scales_of(points.scales, t)
    dx, dy, dw, Adx = scratch.dx, scratch.dy, scratch.dw, scratch.products[1]
    c = scales.c
    solution_of(layout, z, c, D, dx, dy)
    times_A(layout.patterns, values.A, dx, Adx)
    finite = True
    for i in range(sizes.m):
        ds = -(Adx[i] + points.primal[h, i])
        dw[i] = c[i] * dy[i] - ds / c[i]
        w[i] = old[i] + dw[i]
        if sizes.zero <= i < sizes.flat and abs(w[i]) <= CANCELLED * abs(old[i]):
            w[i] = 0.0
        if not np.isfinite(w[i]):
            finite, w[i] = False, 0.0
    change = change_of(points.x[h], scales.variable, scales.size, dx, dw)
    for j in range(sizes.n):
        x[j] = points.x[h, j] + dx[j] if finite else np.nan
    project(layout.blocks, w, projection, points.saved[t])
    y, s = points.y[t], points.s[t]
    for i in range(sizes.m):
        if i < sizes.flat:
            projection[i] = w[i] if i < sizes.zero or w[i] > 0.0 else 0.0
        y[i], s[i] = projection[i] / c[i], (projection[i] - w[i]) * c[i]
    for p in range(len(layout.single_row)):
        i, j = layout.single_row[p], layout.single_column[p]
        small = max(NOTHING * scales.variable[j], CANCELLED * abs(points.x[h, j]))
        if s[i] == 0.0 and values.b[i] == 0.0 and abs(x[j]) <= small:
            x[j] = 0.0
    scales_of_element(layout.patterns, values, layout.starts, sizes.zero, Point(x, y, s), there, scratch.rows)
    moved = False
    for i in range(sizes.m):
        moved = moved or abs(np.log2(there.c[i] / c[i])) > np.log2(REBALANCED)
    if moved:
        for i in range(sizes.m):
            w[i] = there.c[i] * y[i] - s[i] / there.c[i]
        project(layout.blocks, w, projection, points.saved[t])
    else:
        there.c[:] = c
    return change, complete_point(layout, values, points, t)


@njit(nogil=True, error_model="numpy")
def _finish(
    layout: SystemLayout, values: Values, r: Array, given: Point, points: Points, v: int, state: Lanes, out: Points,
    measures: tuple[Array, Array, IndexArray], scratch: Scratch,
) -> None:  # fmt: skip
    """Write the result of lane v, and leave the lane idle."""
    backward, _, outcome = measures
    e, k = state.element[v], state.best[v]
    outcome[e] = STUCK
    if state.backward[v] <= NEAR:
        outcome[e], backward[e] = TAKEN, state.backward[v]
        copy_point(points, k, out, e)
    _measure(layout, element_of(values, e), r[e], given, points, k, e, measures, scratch)
    state.element[v] = IDLE


@njit(nogil=True, error_model="numpy")
def _measure(
    layout: SystemLayout, values: Values, r: float, given: Point, points: Points, k: int, e: int,
    measures: tuple[Array, Array, IndexArray], scratch: Scratch,
) -> None:  # fmt: skip
    """Write the solution of element e and its relative residuals; point k is its complementary point."""
    _, residuals, outcome = measures
    solution, projection = Point(given.x[e], given.y[e], given.s[e]), points.projection[k]
    if outcome[e] == TAKEN:
        solution.x[:], solution.y[:], solution.s[:] = points.x[k], points.y[k], points.s[k]
        projection[layout.sizes.flat :] = solution.y[layout.sizes.flat :]
    else:
        w = scratch.dw
        for i in range(len(w)):
            w[i] = solution.y[i] - solution.s[i]
            w[i] = w[i] if np.isfinite(w[i]) else 0.0
        project(layout.blocks, w, projection, points.saved[k])
    residuals_of_element(
        layout.patterns, values, layout.sizes.zero, r, solution, projection[layout.sizes.flat :], scratch.products,
        residuals[:, e],
    )  # fmt: skip
