"""The exact derivative at the solutions of a range of lane groups: K, its factor, solves, and what the report needs.

The formulas are those of ``diff.exact``, which also says what the numbers mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convexlayer.cones.kernels.block import NEEDS_DISTANCE, block_at
from convexlayer.cones.kernels.table import margins, project
from convexlayer.cones.product import EIGENVALUE_FLOOR
from convexlayer.diff.lanes.layout import (
    SINGLE_COLUMN,
    SINGLE_ROW,
    Layout,
    blocks_of,
    part,
    sizes_of,
)
from convexlayer.diff.lanes.points import (
    DUAL,
    DUAL_ROUNDING,
    PRIMAL,
    PRIMAL_ROUNDING,
    SIZE,
    C,
    S,
    W,
    X,
    of_rows,
    of_variables,
)
from convexlayer.diff.lanes.system import (
    derive_element,
    new_derivatives,
    solution_of,
    times_A,
    write_rhs,
    write_system,
)
from convexlayer.linalg.ldl.group import (
    estimate_condition,
    factor_group,
    group_at,
    new_solve_scratch,
    solve_group_by_rows,
)
from convexlayer.linalg.ldl.lanes import Indices, unpack
from convexlayer.linalg.refined import MAX_REFINEMENTS
from convexlayer.program import Array, IndexArray
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import store
from convexlayer.sparse.residual_kernels import nan_max

__all__ = ["CONDITION", "ERROR", "MARGIN", "factor_groups", "solve_groups"]

CONDITION, MARGIN, ERROR = range(3)
"""Measures of an element: the condition estimate of K; the relative margin, or NaN where only the portable form can
compute it; the estimated error of w relative to its blocks, or of an eigenvalue of D relative to itself."""


@cached_kernel
def factor_groups(
    lanes: Any,
    layout_fields: tuple[IndexArray, Array],
    packed: Indices,
    values: tuple[Array, Array, Array],
    points: Array,
    signs: Array,
    start: Array,
    state: Array,
    D: Array,
    measures: Array,
    steps: Array,
    first: int,
    last: int,
) -> None:
    """Factorise K of the lane groups first ... last - 1, and estimate errors by a Newton step.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        layout_fields: the fields of ``Layout``.
        packed: the symbolic factorisation of K.
        values: P (B, nnz), A (B, nnz) and b (B, m).
        points: the complementary points (see ``points``), (B, entries).
        signs: random signs of the rounding errors of the residuals, (n + m,).
        start: starting vector of power iterations, (N,).
        state: out, the factors (see ``ldl.group``), (groups, rows, V).
        D: out, the derivatives of the projections (see ``system``), (B, entries).
        measures: out, (B, 3).
        steps: out, the step (dx, dy), with exact zeros of x held, (B, n + m).
        first: index of the first lane group.
        last: index after the last lane group.
    """
    layout, (P, A, b) = Layout(*layout_fields), values
    sizes, (plan, source) = sizes_of(layout), unpack(packed)
    V, N, n, m, batch = len(lanes), sizes.unknowns, sizes.n, sizes.m, len(points)
    K, rhs, z, error = np.zeros((V, sizes.entries)), np.zeros((V, N)), np.zeros((V, N)), np.empty(V)
    y, peak, solves = np.zeros((N, V)), np.empty((N, V)), new_solve_scratch(N, V)
    projection, saved, moved = np.zeros(m), np.empty(sizes.saved), new_derivatives(layout, 1)[0]
    top, bottom, dw, block_margins = np.empty(n), np.empty((V, m)), np.empty(m), np.empty(len(layout.exponents))
    for number in range(first, last):
        count = min(V, batch - number * V)
        for v in range(count):
            e = number * V + v
            point, derivative = points[e], D[e]
            w, c = of_rows(point, sizes, W), of_rows(point, sizes, C)
            project(blocks_of(layout), w, projection, saved)
            derive_element(layout, w, projection, saved, derivative)
            margins(blocks_of(layout), w, projection, saved, block_margins)
            measures[e, MARGIN] = _relative_margin(layout, w, of_rows(point, sizes, SIZE), block_margins)
            write_system(layout, P[e], A[e], c, derivative, K[v])
            _perturbed_residuals(layout, point, signs, top, bottom[v])
            write_rhs(layout, top, bottom[v], -1.0, c, derivative, rhs[v])
        group = group_at(plan, state[number])
        factor_group(lanes, plan, source, K, 0, group, y, peak)
        store(peak, 0, estimate_condition(lanes, plan, start, group, peak))
        for v in range(count):
            measures[number * V + v, CONDITION] = peak[0, v]
        solve_group_by_rows(lanes, group, rhs, 0, MAX_REFINEMENTS, solves, z, error)
        for v in range(count):
            e = number * V + v
            point = points[e]
            of_w = _write_step(layout, A[e], b[e], point, D[e], z[v], bottom[v], dw, steps[e])
            w = of_rows(point, sizes, W)
            for i in range(m):
                dw[i] = w[i] + dw[i]
                dw[i] = dw[i] if np.isfinite(dw[i]) else 0.0
            project(blocks_of(layout), dw, projection, saved)
            derive_element(layout, dw, projection, saved, moved)
            measures[e, ERROR] = nan_max(of_w, _eigenvalue_change(layout, D[e], moved))


@inner_function
def _perturbed_residuals(layout: Layout, point: Array, signs: Array, top: Array, bottom: Array) -> None:
    """The residuals of a point plus their rounding errors with random signs."""
    sizes = sizes_of(layout)
    dual, primal = of_variables(point, sizes, DUAL), of_rows(point, sizes, PRIMAL)
    rounding_x, rounding_y = of_variables(point, sizes, DUAL_ROUNDING), of_rows(point, sizes, PRIMAL_ROUNDING)
    for j in range(sizes.n):
        top[j] = dual[j] + signs[j] * rounding_x[j]
    for i in range(sizes.m):
        bottom[i] = primal[i] + signs[sizes.n + i] * rounding_y[i]


@inner_function
def _relative_margin(layout: Layout, w: Array, size: Array, of_blocks: Array) -> float:
    """The smallest margin relative to the size of its block; blocks of size 0 are ignored."""
    sizes, blocks, least = sizes_of(layout), blocks_of(layout), np.inf
    for i in range(sizes.zero, sizes.flat):
        if size[i] != 0.0:
            ratio = abs(w[i]) / size[i]
            least = ratio if ratio < least or np.isnan(ratio) else least
    for k in range(len(of_blocks)):
        scale = size[block_at(blocks, k).start]
        if scale != 0.0:
            ratio = of_blocks[k] / scale if of_blocks[k] != NEEDS_DISTANCE else np.nan
            least = ratio if ratio < least or np.isnan(ratio) else least
    return least


@inner_function
def _write_step(
    layout: Layout, A: Array, b: Array, point: Array, D: Array, z: Array, primal: Array, dw: Array, step: Array
) -> float:
    """The Newton step with solution z: (dx, dy) and the change of w; returns the latter relative to its blocks."""
    sizes = sizes_of(layout)
    dx, dy, c, size = step[: sizes.n], step[sizes.n :], of_rows(point, sizes, C), of_rows(point, sizes, SIZE)
    solution_of(layout, z, c, D, dx, dy)
    times_A(layout, A, dx, dw)
    largest = 0.0
    for i in range(sizes.m):
        dw[i] = c[i] * dy[i] + (dw[i] + primal[i]) / c[i]
        largest = nan_max(largest, abs(dw[i]) / size[i])
    x, s = of_variables(point, sizes, X), of_rows(point, sizes, S)
    rows, columns = part(layout, SINGLE_ROW), part(layout, SINGLE_COLUMN)
    for p in range(len(rows)):
        if s[rows[p]] == 0.0 and b[rows[p]] == 0.0 and x[columns[p]] == 0.0:
            dx[columns[p]] = 0.0
    return largest


@inner_function
def _eigenvalue_change(layout: Layout, D: Array, moved: Array) -> float:
    """The largest change of an eigenvalue d or 1 - d in the rows of curved cones, relative to itself."""
    sizes, largest = sizes_of(layout), 0.0
    for i in range(sizes.flat, sizes.m):
        for at in (i, sizes.m + i):
            largest = nan_max(largest, abs(moved[at] - D[at]) / max(D[at], EIGENVALUE_FLOOR))
    return largest


@cached_kernel
def solve_groups(
    lanes: Any,
    layout_fields: tuple[IndexArray, Array],
    packed: Indices,
    points: Array,
    state: Array,
    D: Array,
    rhs_fields: tuple[Array, Array],
    solution_fields: tuple[Array, Array, Array],
    first: int,
    last: int,
) -> None:
    """Solve K [l; u] = [top; L'bottom] for the lane groups first ... last - 1; v = L u.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        layout_fields: the fields of ``Layout``.
        packed: the symbolic factorisation of K.
        points: the complementary points, (B, entries).
        state: the factors computed by ``factor_groups``.
        D: the derivatives computed by it.
        rhs_fields: top (B, n) and bottom (B, m).
        solution_fields: out, l (B, n), v (B, m) and the largest relative residuals of a row (B,).
        first: index of the first lane group.
        last: index after the last lane group.
    """
    layout, (top, bottom), (l, v_out, residual) = Layout(*layout_fields), rhs_fields, solution_fields  # noqa: E741
    sizes, (plan, _) = sizes_of(layout), unpack(packed)
    V, N, batch = len(lanes), sizes.unknowns, len(points)
    rhs, z, error = np.zeros((V, N)), np.zeros((V, N)), np.empty(V)
    solves = new_solve_scratch(N, V)
    for number in range(first, last):
        count = min(V, batch - number * V)
        for v in range(count):
            e = number * V + v
            write_rhs(layout, top[e], bottom[e], 1.0, of_rows(points[e], sizes, C), D[e], rhs[v])
        group = group_at(plan, state[number])
        solve_group_by_rows(lanes, group, rhs, 0, MAX_REFINEMENTS, solves, z, error)
        for v in range(count):
            e = number * V + v
            solution_of(layout, z[v], of_rows(points[e], sizes, C), D[e], l[e], v_out[e])
            residual[e] = error[v]
