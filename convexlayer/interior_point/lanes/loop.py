"""Main loop of the batched interior-point method: predictor-corrector steps on the homogeneous embedding, in lanes.

    P x + A'y + q tau = 0,   A x + s - b tau = 0,   kappa + q'x + b'y + x'Px / tau = 0,
    s in K, y in K*, s'y = 0, tau kappa = 0, tau, kappa >= 0

A point with tau > 0 gives the solution (x, y, s) / tau; a point with tau = 0 gives a certificate of infeasibility or
unboundedness. Each lane holds one element. A lane that has finished loads the next element immediately, without waiting
for the other lanes. All arithmetic is lane by lane, so that an element's result does not depend on its neighbours.

Reference: Goulart and Chen, Clarabel: an interior-point solver for conic programs with quadratic objectives (2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from convexlayer.interior_point.lanes.crossover import (
    CROSSOVER_REFINEMENTS,
    accept_crossover,
    crossover_rhs,
    write_active_set,
)
from convexlayer.interior_point.lanes.equilibration import equilibrate
from convexlayer.interior_point.lanes.kkt import REGULARISATION, products, refine_further, solve_refined
from convexlayer.interior_point.lanes.plan import Layout
from convexlayer.interior_point.lanes.product_cone import (
    MIN_STEP,
    combined_shift,
    new_scaling,
    set_unit,
    shift_to_interior,
    shorten_step,
    times_H,
    update_scaling,
    write_H,
)
from convexlayer.interior_point.lanes.steps import (
    ALPHA,
    ATY_SIZE,
    B_NORM,
    BY,
    KAPPA,
    MOVE,
    OBJECTIVE,
    PRODUCT,
    PX_SIZE,
    Q_NORM,
    QX,
    RAY_SIZE,
    RESIDUAL_ROWS,
    SCALARS,
    SIGMA,
    STEP_FRACTION,
    TARGET,
    TAU,
    WORST,
    Data,
    Point,
    Products,
    add_constant,
    advance,
    centring,
    new_point,
    residuals,
    step_scalars,
    tau_kappa_step,
)
from convexlayer.linalg.lanes import LanePlan, factorise
from convexlayer.linalg.simd import load, store
from convexlayer.program import Array, IndexArray
from convexlayer.runtime.cached_kernel import cached_kernel

__all__ = ["INFEASIBLE", "ITERATION_LIMIT", "OPTIMAL", "STALLED", "UNBOUNDED", "Limits", "solve_range"]

OPTIMAL, INFEASIBLE, UNBOUNDED, STALLED, ITERATION_LIMIT = 0, 1, 2, 3, 4

IDLE, LOADED, RUNNING, CROSSING = 0, 1, 2, 3
"""States of a lane: no element, element loaded but without a starting point, iterating, in the crossover step (see
``crossover``)."""

MAX_START_NORM = 1e4
"""Largest entry, in scaled units, of a least-squares starting point; above it (K is nearly singular) the method starts
from the central point."""

BEST_ITERATE_FACTOR = 1e3
"""The best iterate is stored, and returned, only if its residual is below this many times ``Limits.accepted``;
otherwise the last iterate is returned. This saves a copy in each of the first iterations."""

CERTIFICATE_TOL = 1e-8
"""Relative residual tolerance of an infeasibility certificate (Clarabel's tol_infeas_rel)."""

TAU_KAPPA_RATIO = 1e-2
"""Certificates are tested only while tau is below this many times kappa."""


class Limits(NamedTuple):
    """Termination criteria.

    Attributes:
        target: relative residuals, and natural residual of the nonnegative rows, at which the iterations stop.
        accepted: relative residuals that count as optimal once the iterations make no more progress.
        max_iter: maximum number of iterations of an element.
    """

    target: float
    accepted: float
    max_iter: int


@njit(nogil=True, error_model="numpy")
def _load(layout: Layout, data: Data, values: Array, P: Array, q: Array, A: Array, b: Array, v: int) -> None:
    """Equilibrate an element's data P (nnz(P),), q (n,), A (nnz(A),), b (m,) and store it in lane v."""
    n, m = len(q), len(b)
    q_norm, b_norm = 0.0, 0.0
    for value in q:
        q_norm = max(q_norm, abs(value))
    for value in b:
        b_norm = max(b_norm, abs(value))
    data.scalars[Q_NORM, v], data.scalars[B_NORM, v] = q_norm, b_norm
    upper = np.empty(len(layout.P_source))
    for p in range(len(upper)):
        upper[p] = P[layout.P_source[p]]
    A, q, b, d, e = A.copy(), q.copy(), b.copy(), np.empty(n), np.empty(m)
    data.scalars[OBJECTIVE, v] = equilibrate(layout, upper, A, q, b, d, e)
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


@cached_kernel
def solve_range(
    lanes: Any,
    layout: Layout,
    plan: LanePlan,
    limits: Limits,
    symmetric: bool,
    degree: int,
    P: Array,
    q: Array,
    A: Array,
    b: Array,
    first: int,
    last: int,
    x_out: Array,
    y_out: Array,
    s_out: Array,
    status_code: IndexArray,
    iterations: IndexArray,
) -> None:
    """Solve the elements first ... last - 1 of a batch in V lanes.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        layout: index arrays of the structure.
        plan: symbolic factorisation of its KKT matrix.
        limits: termination criteria.
        symmetric: whether all cones are symmetric.
        degree: degree of the barrier.
        P: values, (B, nnz(P)).
        q: (B, n).
        A: values, (B, nnz(A)).
        b: (B, m).
        first: index of the first element.
        last: index after the last element.
        x_out: out, (B, n); a ray for unbounded elements.
        y_out: out, (B, m); a ray for infeasible elements.
        s_out: out, (B, m).
        status_code: out, (B,), status code of each element, OPTIMAL ... ITERATION_LIMIT.
        iterations: out, (B,), iterations of each element.
    """
    V, n, m, N = len(lanes), q.shape[1], b.shape[1], len(plan.permutation)
    data = Data(
        np.zeros((len(layout.P_row), V)), np.zeros((len(layout.A_row), V)), np.zeros((n, V)), np.zeros((m, V)),
        np.ones((n, V)), np.ones((m, V)), np.ones((3, V)),
    )  # fmt: skip
    values, L = np.zeros((len(plan.row), V)), np.zeros((len(plan.factor_row), V))
    D, D_inverse, row_work, work = np.zeros((N, V)), np.zeros((N, V)), np.zeros((N, V)), np.zeros((3, N, V))
    point, best = new_point(n, m, V), new_point(n, m, V)
    x, s, y = point.x, point.s, point.y
    affine = Products(np.zeros((n, V)), np.zeros((n, V)), np.zeros((m, V)), np.zeros((n, V)), np.zeros((n, V)))
    rhs, constant, step = np.zeros((N, V)), np.zeros((N, V)), np.zeros((N, V))
    ds, shift, Hy = np.zeros((m, V)), np.zeros((m, V)), np.zeros((m, V))
    scaling = new_scaling(lanes, layout, m)
    lane, measures = np.ones((SCALARS, V)), np.zeros((RESIDUAL_ROWS, V))
    element, state, count = np.full(V, -1), np.full(V, IDLE), np.zeros(V, np.int64)
    least, least_tau, crossing = np.full(V, np.inf), np.ones(V), np.zeros((1, V))
    polyhedral = layout.orthant == m
    following = first
    while True:
        products(lanes, layout, data.P, data.A, x, y, affine.Px, affine.Aty, affine.Ax)
        residuals(lanes, layout, data, point, affine, lane, measures)
        anyone, running, anyone_crosses = False, False, False
        for v in range(V):
            if state[v] == RUNNING:
                e, worst = element[v], measures[WORST, v]
                improved = worst < 0.5 * least[v]
                if worst < least[v]:
                    least[v], least_tau[v] = worst, lane[TAU, v]
                    if worst < BEST_ITERATE_FACTOR * limits.accepted:
                        _copy_lane(point, best, v)
                said = _termination_status(limits, lane, measures, v, least[v], improved, count[v])
                if said >= 0:
                    status_code[e], iterations[e], state[v] = said, count[v], IDLE
                    if said == INFEASIBLE:
                        _write_ray(y, data.e, -measures[BY, v], y_out[e], v)
                    elif said == UNBOUNDED:
                        _write_ray(x, data.d, -measures[QX, v] / data.scalars[OBJECTIVE, v], x_out[e], v)
                    elif least[v] < BEST_ITERATE_FACTOR * limits.accepted:
                        _write(data, best, least_tau[v], x_out[e], y_out[e], s_out[e], v)
                    else:
                        _write(data, point, lane[TAU, v], x_out[e], y_out[e], s_out[e], v)
                    if said == OPTIMAL and polyhedral:
                        state[v] = CROSSING
            if state[v] == IDLE and following < last:
                e = following
                following += 1
                _load(layout, data, values, P[e], q[e], A[e], b[e], v)
                element[v], state[v], count[v], least[v] = e, LOADED, 0, np.inf
                set_unit(layout, s, y, v)
                x[:, v] = 0.0
                lane[TAU, v], lane[KAPPA, v], lane[ALPHA, v] = 1.0, 1.0, 1.0
                if not symmetric:
                    state[v] = RUNNING
                    _zero_lane(affine, v)
            anyone = anyone or state[v] != IDLE
            running = running or state[v] == RUNNING
            crossing[0, v] = 1.0 if state[v] == CROSSING else 0.0
            anyone_crosses = anyone_crosses or state[v] == CROSSING
        if not anyone:
            return

        # Factorise K and solve for (-q, b), which also gives the starting point of fresh lanes.
        update_scaling(lanes, layout, s, y, scaling)
        write_H(lanes, layout, n, scaling, values)
        for v in range(V):
            if state[v] == CROSSING:
                write_active_set(layout, n, best, values, v)
        factorise(lanes, plan, values, L, D, D_inverse, row_work)
        for j in range(n):
            store(rhs, j, -load(lanes, data.q, j))
        for i in range(m):
            store(rhs, n + i, load(lanes, data.b, i))
        for v in range(V):
            if state[v] == CROSSING:
                crossover_rhs(layout, data, best, least_tau[v], rhs, v)
        solve_refined(lanes, plan, values, L, D_inverse, rhs, constant, work)
        if anyone_crosses:
            refine_further(lanes, plan, values, L, D_inverse, rhs, constant, work, crossing, CROSSOVER_REFINEMENTS)
            for v in range(V):
                if state[v] == CROSSING:
                    if accept_crossover(layout, data, best, constant, v):
                        e = element[v]
                        _write(data, best, 1.0, x_out[e], y_out[e], s_out[e], v)
                    state[v] = IDLE
        if running:
            times_H(lanes, layout, scaling, constant[n : n + m], Hy)
            step_scalars(lanes, layout, degree, data, point, affine, constant, Hy, lane)
            for i in range(layout.zero, m):
                store(shift, i, load(lanes, s, i))
            dy = step[n : n + m]
            for stage in range(2):
                remaining = 1.0 - load(lanes, lane, SIGMA)
                tau = load(lanes, lane, TAU)
                for j in range(n):
                    r_x = load(lanes, affine.Px, j) + load(lanes, affine.Aty, j) + load(lanes, data.q, j) * tau
                    store(rhs, j, -remaining * r_x)
                for i in range(m):
                    r_y = load(lanes, affine.Ax, i) + load(lanes, s, i) - load(lanes, data.b, i) * tau
                    store(rhs, n + i, load(lanes, shift, i) - remaining * r_y)
                solve_refined(lanes, plan, values, L, D_inverse, rhs, step, work)
                add_constant(lanes, data, affine, constant, lane, step)
                times_H(lanes, layout, scaling, dy, Hy)
                for i in range(layout.zero, m):
                    store(ds, i, -(load(lanes, Hy, i) + load(lanes, shift, i)))
                tau_kappa_step(lanes, lane, 1.0 if stage == 0 else 1.0 / STEP_FRACTION)
                shorten_step(lanes, layout, scaling, s, y, ds, dy, lane[ALPHA])
                if stage == 0:
                    centring(lanes, lane)
                    combined_shift(lanes, layout, scaling, s, y, ds, dy, lane[TARGET], shift)
            for v in range(V):
                lane[ALPHA, v] *= scaling.ok[v]
                lane[MOVE, v] = 1.0 if state[v] == RUNNING else 0.0
                count[v] += state[v] == RUNNING
            advance(lanes, lane, step, ds, point)
        for v in range(V):
            if state[v] == LOADED:
                _start(layout, constant, point, v)
                lane[ALPHA, v], state[v] = 1.0, RUNNING


@njit(nogil=True, error_model="numpy")
def _termination_status(
    limits: Limits, lane: Array, measures: Array, v: int, least: float, improved: bool, count: int
) -> int:
    """Termination test of lane v: OPTIMAL, INFEASIBLE, UNBOUNDED, STALLED or ITERATION_LIMIT, or -1 to continue."""
    tau, kappa, worst, qx, by = lane[TAU, v], lane[KAPPA, v], measures[WORST, v], measures[QX, v], measures[BY, v]
    acceptable = least <= limits.accepted
    reached = worst <= limits.target and measures[PRODUCT, v] <= limits.target
    if reached or (acceptable and not improved):
        return OPTIMAL
    if tau < TAU_KAPPA_RATIO * kappa and by < 0.0 and measures[ATY_SIZE, v] <= -CERTIFICATE_TOL * by:
        return INFEASIBLE
    if (
        tau < TAU_KAPPA_RATIO * kappa
        and qx < 0.0
        and max(measures[PX_SIZE, v], measures[RAY_SIZE, v]) <= -CERTIFICATE_TOL * qx
    ):
        return UNBOUNDED
    said = -1
    if lane[ALPHA, v] < MIN_STEP or not np.isfinite(worst):
        said = STALLED
    elif count >= limits.max_iter:
        said = ITERATION_LIMIT
    return OPTIMAL if said >= 0 and acceptable else said


@njit(nogil=True, error_model="numpy")
def _start(layout: Layout, constant: Array, point: Point, v: int) -> None:
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
            s[i, v] = -constant[n + i, v] if i >= layout.zero else 0.0
        shift_to_interior(layout, s, v)
        shift_to_interior(layout, y, v)


@njit(nogil=True, error_model="numpy")
def _copy_lane(source: Point, target: Point, v: int) -> None:
    for j in range(len(source.x)):
        target.x[j, v] = source.x[j, v]
    for i in range(len(source.s)):
        target.s[i, v], target.y[i, v] = source.s[i, v], source.y[i, v]


@njit(nogil=True, error_model="numpy")
def _zero_lane(affine: Products, v: int) -> None:
    """Set the products Px, A'y and Ax of lane v to 0, as at x = y = 0."""
    affine.Px[:, v], affine.Aty[:, v], affine.Ax[:, v] = 0.0, 0.0, 0.0


@njit(nogil=True, error_model="numpy")
def _write(data: Data, point: Point, tau: float, x_out: Array, y_out: Array, s_out: Array, v: int) -> None:
    """Write lane v's solution, with scaling and tau removed."""
    c = data.scalars[OBJECTIVE, v]
    for j in range(len(x_out)):
        x_out[j] = point.x[j, v] * data.d[j, v] / tau
    for i in range(len(y_out)):
        y_out[i] = point.y[i, v] * data.e[i, v] / (c * tau)
        s_out[i] = point.s[i, v] / (data.e[i, v] * tau)


@njit(nogil=True, error_model="numpy")
def _write_ray(u: Array, scale: Array, size: float, out: Array, v: int) -> None:
    """Write lane v's certificate, unscaled and normalised to the value b'y = -1 or q'x = -1."""
    for i in range(len(out)):
        out[i] = u[i, v] * scale[i, v] / size
