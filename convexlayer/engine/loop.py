"""The batched interior-point method, compiled: predictor-corrector steps on the homogeneous embedding, in lanes.

    P x + A'y + q tau = 0,   A x + s - b tau = 0,   kappa + q'x + b'y + x'Px / tau = 0,
    s in K, y in K*, s'y = 0, tau kappa = 0, tau, kappa >= 0

A point with tau > 0 gives the solution (x, y, s) / tau; one with tau = 0 a certificate that there is none. Every lane
holds one element; a lane that is done takes the next element at once, so none waits for another. All arithmetic is lane
by lane: an element's answer does not depend on its neighbours.

Reference: Goulart and Chen, Clarabel: an interior-point solver for conic programs with quadratic objectives (2024).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from convexlayer.engine.cones import (
    SMALLEST_STEP,
    combined_shift,
    enter_cone,
    new_scaling,
    set_unit,
    shorten_step,
    times_H,
    update_scaling,
    write_H,
)
from convexlayer.engine.loading import equilibrate
from convexlayer.engine.plan import Layout
from convexlayer.engine.system import REGULARISATION, products, solve_refined, times_P
from convexlayer.linalg.entry import entry
from convexlayer.linalg.lanes import LanePlan, factorise
from convexlayer.linalg.simd import absolute, load, maximum, minimum, splat, store, where
from convexlayer.program import Array, IndexArray

__all__ = ["INFEASIBLE", "ITERATION_LIMIT", "OPTIMAL", "STALLED", "TIME_LIMIT", "UNBOUNDED", "Limits", "solve_range"]

OPTIMAL, INFEASIBLE, UNBOUNDED, STALLED, ITERATION_LIMIT, TIME_LIMIT = 0, 1, 2, 3, 4, 5

IDLE, FRESH, RUNNING = 0, 1, 2
"""States of a lane: nothing left to do, loaded but without a starting point, iterating."""

STEP = 0.99
"""Part of the way to the boundary that is taken."""

FAR = 1e4
"""Largest entry of a starting point, in scaled units."""

KEPT = 1e3
"""The best point is kept from this many times the accepted residual on."""

RAY = 1e-8
"""What remains of a certificate of infeasibility, relative to its value."""

COLLAPSED = 1e-2
"""A certificate is only looked at when tau is below this times kappa."""


class Limits(NamedTuple):
    """When to stop.

    Attributes:
        target: relative residuals to reach.
        accepted: residuals that are good enough when there is no more progress.
        max_iter: iterations.
        time_limit_s: seconds for one element.
    """

    target: float
    accepted: float
    max_iter: int
    time_limit_s: float


class _Data(NamedTuple):
    """Scaled data of the elements in the lanes, and their scales.

    Attributes:
        P: upper triangles, (nnz, V), as A, q (n, V), b (m, V).
        A: see P.
        q: see P.
        b: see P.
        d: scales of the variables, (n, V).
        e: scales of the rows, (m, V).
        scalars: rows OBJECTIVE (the scale of the objective), Q_NORM and B_NORM (before scaling).
    """

    P: Array
    A: Array
    q: Array
    b: Array
    d: Array
    e: Array
    scalars: Array


OBJECTIVE, Q_NORM, B_NORM = 0, 1, 2


class _Point(NamedTuple):
    """Where the lanes stand."""

    x: Array
    s: Array
    y: Array


class _Products(NamedTuple):
    """Products with the data at a point, and of the constant solution's difference from it."""

    Px: Array
    Aty: Array
    Ax: Array
    difference: Array
    P_difference: Array


TAU, KAPPA, MU, ALPHA, SIGMA, TARGET, D_TAU, D_KAPPA, CORRECTION, DENOMINATOR, R_TAU, MOVE = range(12)
SCALARS = 12
"""Rows of what each lane has one of."""

WORST, QX, BY, ATY_SIZE, PX_SIZE, RAY_SIZE = range(6)
MEASURES = 6
"""Rows of what is measured at a point."""


@njit(nogil=True, error_model="numpy")
def _load(
    layout: Layout, data: _Data, values: Array, P: Array, q: Array, A: Array, b: Array, v: int
) -> None:
    """Bring an element's data, (nnz(P),), (n,), (nnz(A),), (m,), into lane v, equilibrated."""
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
        values[layout.P_place[p], v] += upper[p]
    for p in range(len(A)):
        data.A[p, v] = A[p]
        values[layout.A_place[p], v] = A[p]
    for j in range(n):
        data.q[j, v], data.d[j, v] = q[j], d[j]
    for i in range(m):
        data.b[i, v], data.e[i, v] = b[i], e[i]


@entry
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
    clock: Array,
    x_out: Array,
    y_out: Array,
    s_out: Array,
    word: IndexArray,
    iterations: IndexArray,
) -> None:
    """Solve the elements first .. last - 1 of a batch, one after another, in V lanes.

    Args:
        lanes: a tuple of V floats.
        layout: of the structure.
        plan: of its system.
        limits: when to stop.
        symmetric: whether all cones are symmetric.
        degree: of the barrier.
        P: (B, nnz(P)), as q (B, n), A (B, nnz(A)) and b (B, m).
        q: see P.
        A: see P.
        b: see P.
        first: first element.
        last: behind the last element.
        clock: seconds, kept up to date by the caller where there is a time limit, (1,).
        x_out: out, (B, n), as y_out and s_out (B, m); rays of elements without a solution.
        y_out: see x_out.
        s_out: see x_out.
        word: out, (B,), one of OPTIMAL ... TIME_LIMIT.
        iterations: out, (B,).
    """
    V, n, m, N = len(lanes), q.shape[1], b.shape[1], len(plan.permutation)
    data = _Data(
        np.zeros((len(layout.P_row), V)), np.zeros((len(layout.A_row), V)), np.zeros((n, V)), np.zeros((m, V)),
        np.ones((n, V)), np.ones((m, V)), np.ones((3, V)),
    )  # fmt: skip
    values, L = np.zeros((len(plan.row), V)), np.zeros((len(plan.factor_row), V))
    D, D_inverse, row_work, work = np.zeros((N, V)), np.zeros((N, V)), np.zeros((N, V)), np.zeros((4, N, V))
    point, best = _point(n, m, V), _point(n, m, V)
    x, s, y = point.x, point.s, point.y
    affine = _Products(np.zeros((n, V)), np.zeros((n, V)), np.zeros((m, V)), np.zeros((n, V)), np.zeros((n, V)))
    rhs, constant, step = np.zeros((N, V)), np.zeros((N, V)), np.zeros((N, V))
    ds, shift, Hy = np.zeros((m, V)), np.zeros((m, V)), np.zeros((m, V))
    scaling = new_scaling(lanes, layout, m)
    lane, measures = np.ones((SCALARS, V)), np.zeros((MEASURES, V))
    element, state, count = np.full(V, -1), np.full(V, IDLE), np.zeros(V, np.int64)
    least, least_tau, started = np.full(V, np.inf), np.ones(V), np.zeros(V)
    following = first
    while True:
        products(lanes, layout, data.P, data.A, x, y, affine.Px, affine.Aty, affine.Ax)
        _measure(lanes, data, point, affine, lane, measures)
        anyone, running = False, False
        for v in range(V):
            if state[v] == RUNNING:
                e, worst = element[v], measures[WORST, v]
                improved = worst < 0.5 * least[v]
                if worst < least[v]:
                    least[v], least_tau[v] = worst, lane[TAU, v]
                    if worst < KEPT * limits.accepted:
                        _copy_lane(point, best, v)
                said = _judged(limits, lane, measures, v, least[v], improved, count[v], clock[0] - started[v])
                if said >= 0:
                    word[e], iterations[e], state[v] = said, count[v], IDLE
                    if said == INFEASIBLE:
                        _write_ray(y, data.e, -measures[BY, v], y_out[e], v)
                    elif said == UNBOUNDED:
                        _write_ray(x, data.d, -measures[QX, v] / data.scalars[OBJECTIVE, v], x_out[e], v)
                    elif least[v] < KEPT * limits.accepted:
                        _write(data, best, least_tau[v], x_out[e], y_out[e], s_out[e], v)
                    else:
                        _write(data, point, lane[TAU, v], x_out[e], y_out[e], s_out[e], v)
            if state[v] == IDLE and following < last:
                e = following
                following += 1
                _load(layout, data, values, P[e], q[e], A[e], b[e], v)
                element[v], state[v], count[v], least[v], started[v] = e, FRESH, 0, np.inf, clock[0]
                set_unit(layout, s, y, v)
                x[:, v] = 0.0
                lane[TAU, v], lane[KAPPA, v], lane[ALPHA, v] = 1.0, 1.0, 1.0
                if not symmetric:
                    state[v] = RUNNING
                    _zero_lane(affine, v)
            anyone = anyone or state[v] != IDLE
            running = running or state[v] == RUNNING
        if not anyone:
            return

        # K, and its solution for (-q, b), which is also the starting point of fresh lanes
        update_scaling(lanes, layout, s, y, scaling)
        write_H(lanes, layout, n, scaling, values)
        factorise(lanes, plan, values, L, D, D_inverse, row_work)
        for j in range(n):
            store(rhs, j, -load(lanes, data.q, j))
        for i in range(m):
            store(rhs, n + i, load(lanes, data.b, i))
        solve_refined(lanes, plan, values, L, D_inverse, rhs, constant, work)
        if running:
            times_H(lanes, layout, scaling, constant[n : n + m], Hy)
            _prepare(lanes, layout, degree, data, point, affine, constant, Hy, lane)
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
                _add_constant(lanes, data, affine, constant, lane, step)
                times_H(lanes, layout, scaling, dy, Hy)
                for i in range(layout.zero, m):
                    store(ds, i, -(load(lanes, Hy, i) + load(lanes, shift, i)))
                _longest_step(lanes, lane, 1.0 if stage == 0 else 1.0 / STEP)
                shorten_step(lanes, layout, scaling, s, y, ds, dy, lane[ALPHA])
                if stage == 0:
                    _centre(lanes, lane)
                    combined_shift(lanes, layout, scaling, s, y, ds, dy, lane[TARGET], shift)
            for v in range(V):
                lane[ALPHA, v] *= scaling.ok[v]
                lane[MOVE, v] = 1.0 if state[v] == RUNNING else 0.0
                count[v] += state[v] == RUNNING
            _advance(lanes, lane, step, ds, point)
        for v in range(V):
            if state[v] == FRESH:
                _start(layout, constant, point, v)
                lane[ALPHA, v], state[v] = 1.0, RUNNING


@njit(nogil=True, error_model="numpy")
def _judged(
    limits: Limits, lane: Array, measures: Array, v: int, least: float, improved: bool, count: int, seconds: float
) -> int:
    """What can be said of lane v's element, or -1 while it must go on."""
    tau, kappa, worst, qx, by = lane[TAU, v], lane[KAPPA, v], measures[WORST, v], measures[QX, v], measures[BY, v]
    acceptable = least <= limits.accepted
    if worst <= limits.target or (acceptable and not improved):
        return OPTIMAL
    if tau < COLLAPSED * kappa and by < 0.0 and measures[ATY_SIZE, v] <= -RAY * by:
        return INFEASIBLE
    if tau < COLLAPSED * kappa and qx < 0.0 and max(measures[PX_SIZE, v], measures[RAY_SIZE, v]) <= -RAY * qx:
        return UNBOUNDED
    said = -1
    if lane[ALPHA, v] < SMALLEST_STEP or not np.isfinite(worst):
        said = STALLED
    elif count >= limits.max_iter:
        said = ITERATION_LIMIT
    elif seconds > limits.time_limit_s:
        said = TIME_LIMIT
    return OPTIMAL if said >= 0 and acceptable else said


@njit(nogil=True, error_model="numpy")
def _prepare(
    lanes: Any,
    layout: Layout,
    degree: int,
    data: _Data,
    point: _Point,
    affine: _Products,
    constant: Array,
    Hy: Array,
    lane: Array,
) -> None:
    """What a pair of steps shares: mu, the residual in tau, and the denominator of d tau.

    With K (x2, y2) = (-q, b) the denominator is kappa / tau + |x2 - x / tau|_P^2 + y2'H y2. The last term is taken as
    -q'x2 - b'y2 - |x2|_P^2 where that is more: where K is singular its regularisation is in there.
    """
    n, m = len(point.x), len(point.s)
    tau, kappa = load(lanes, lane, TAU), load(lanes, lane, KAPPA)
    inverse = 1.0 / tau
    sy, curvature, left, distance = tau * kappa, splat(lanes, 0.0), splat(lanes, 0.0), splat(lanes, 0.0)
    xPx, qx, by = splat(lanes, 0.0), splat(lanes, 0.0), splat(lanes, 0.0)
    for j in range(n):
        x_j = load(lanes, point.x, j)
        store(affine.difference, j, load(lanes, constant, j) - x_j * inverse)
        xPx = xPx + x_j * load(lanes, affine.Px, j)
        qx = qx + x_j * load(lanes, data.q, j)
    times_P(lanes, layout, data.P, affine.difference, affine.P_difference)
    for j in range(n):
        P_difference = load(lanes, affine.P_difference, j)
        distance = distance + load(lanes, affine.difference, j) * P_difference
        P_x2 = P_difference + load(lanes, affine.Px, j) * inverse
        left = left - load(lanes, constant, j) * (load(lanes, data.q, j) + P_x2)
    for i in range(m):
        y2 = load(lanes, constant, n + i)
        curvature = curvature + y2 * load(lanes, Hy, i)
        left = left - y2 * load(lanes, data.b, i)
        sy = sy + load(lanes, point.s, i) * load(lanes, point.y, i)
        by = by + load(lanes, point.y, i) * load(lanes, data.b, i)
    store(lane, MU, sy * (1.0 / (degree + 1.0)))
    store(lane, R_TAU, kappa + qx + by + xPx * inverse)
    store(lane, DENOMINATOR, kappa * inverse + distance + maximum(left, curvature))
    store(lane, SIGMA, splat(lanes, 0.0))
    store(lane, CORRECTION, tau * kappa)


@njit(nogil=True, error_model="numpy")
def _add_constant(lanes: Any, data: _Data, affine: _Products, constant: Array, lane: Array, step: Array) -> None:
    """D tau and d kappa, of a solution (x1, y1) of K in ``step``; which then becomes (x1, y1) + d tau (x2, y2)."""
    n, m = len(data.q), len(data.b)
    tau, kappa, correction = load(lanes, lane, TAU), load(lanes, lane, KAPPA), load(lanes, lane, CORRECTION)
    inverse = 1.0 / tau
    total = (1.0 - load(lanes, lane, SIGMA)) * load(lanes, lane, R_TAU) - correction * inverse
    for j in range(n):
        slope = load(lanes, data.q, j) + 2.0 * inverse * load(lanes, affine.Px, j)
        total = total + slope * load(lanes, step, j)
    for i in range(m):
        total = total + load(lanes, data.b, i) * load(lanes, step, n + i)
    d_tau = total / load(lanes, lane, DENOMINATOR)
    store(lane, D_TAU, d_tau)
    store(lane, D_KAPPA, -(correction + kappa * d_tau) * inverse)
    for i in range(n + m):
        store(step, i, load(lanes, step, i) + d_tau * load(lanes, constant, i))


@njit(nogil=True, error_model="numpy")
def _longest_step(lanes: Any, lane: Array, longest: float) -> None:
    """Alpha: the longest step for which tau and kappa stay nonnegative."""
    alpha = splat(lanes, longest)
    for value, change in ((TAU, D_TAU), (KAPPA, D_KAPPA)):
        u, du = load(lanes, lane, value), load(lanes, lane, change)
        alpha = where(du < 0.0, minimum(-u / du, alpha), alpha)
    store(lane, ALPHA, alpha)


@njit(nogil=True, error_model="numpy")
def _centre(lanes: Any, lane: Array) -> None:
    """Sigma = (1 - alpha)^3 of the affine step, the target sigma mu, and the right-hand side for kappa."""
    left = 1.0 - load(lanes, lane, ALPHA)
    sigma = left * left * left
    target = sigma * load(lanes, lane, MU)
    product = load(lanes, lane, D_TAU) * load(lanes, lane, D_KAPPA)
    store(lane, SIGMA, sigma)
    store(lane, TARGET, target)
    store(lane, CORRECTION, load(lanes, lane, TAU) * load(lanes, lane, KAPPA) + product - target)


@njit(nogil=True, error_model="numpy")
def _measure(lanes: Any, data: _Data, point: _Point, affine: _Products, lane: Array, out: Array) -> None:
    """Worst relative residual, q'x, b'y, and the largest entries of A'y, Px and Ax + s in the element's units."""
    zero, one = splat(lanes, 0.0), splat(lanes, 1.0)
    inverse, c = 1.0 / load(lanes, lane, TAU), 1.0 / load(lanes, data.scalars, OBJECTIVE)
    tau = load(lanes, lane, TAU)
    xPx, qx, by, r_x, r_y, Px, Aty, Ax, s, ray = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    for j in range(len(point.x)):
        back = 1.0 / load(lanes, data.d, j)
        x_j, q_j, P_j, A_j = (
            load(lanes, point.x, j), load(lanes, data.q, j), load(lanes, affine.Px, j), load(lanes, affine.Aty, j),
        )  # fmt: skip
        xPx = xPx + x_j * P_j
        qx = qx + x_j * q_j
        r_x = maximum(absolute(P_j + A_j + q_j * tau) * back, r_x)
        Px = maximum(absolute(P_j) * back, Px)
        Aty = maximum(absolute(A_j) * back, Aty)
    for i in range(len(point.s)):
        back = 1.0 / load(lanes, data.e, i)
        b_i, s_i, A_i = load(lanes, data.b, i), load(lanes, point.s, i), load(lanes, affine.Ax, i)
        by = by + load(lanes, point.y, i) * b_i
        r_y = maximum(absolute(A_i + s_i - b_i * tau) * back, r_y)
        ray = maximum(absolute(A_i + s_i) * back, ray)
        Ax = maximum(absolute(A_i) * back, Ax)
        s = maximum(absolute(s_i) * back, s)
    primal = r_y * inverse / maximum(maximum(Ax, s) * inverse, maximum(load(lanes, data.scalars, B_NORM), one))
    largest = maximum(maximum(Px, Aty) * inverse * c, maximum(load(lanes, data.scalars, Q_NORM), one))
    dual = r_x * inverse * c / largest
    quadratic, linear, bound = xPx * inverse * inverse * c, qx * inverse * c, by * inverse * c
    size = maximum(maximum(absolute(quadratic), absolute(linear)), maximum(absolute(bound), one))
    gap = absolute(quadratic + linear + bound) / size
    worst = maximum(primal, maximum(dual, gap))
    finite = primal + dual + gap >= 0.0
    store(out, WORST, where(finite, worst, np.inf))
    store(out, QX, qx)
    store(out, BY, by)
    store(out, ATY_SIZE, Aty)
    store(out, PX_SIZE, Px)
    store(out, RAY_SIZE, ray / c)


@njit(nogil=True, error_model="numpy")
def _advance(lanes: Any, lane: Array, step: Array, ds: Array, point: _Point) -> None:
    """(x, y, s, tau, kappa) += alpha (dx, dy, ds, d tau, d kappa), in the lanes that move."""
    n = len(point.x)
    alpha = STEP * load(lanes, lane, ALPHA)
    moves = (load(lanes, lane, MOVE) > 0.0) & (alpha > 0.0)
    store(lane, ALPHA, alpha)
    for j in range(n):
        x_j = load(lanes, point.x, j)
        store(point.x, j, where(moves, x_j + alpha * load(lanes, step, j), x_j))
    for i in range(len(point.s)):
        y_i, s_i = load(lanes, point.y, i), load(lanes, point.s, i)
        store(point.y, i, where(moves, y_i + alpha * load(lanes, step, n + i), y_i))
        store(point.s, i, where(moves, s_i + alpha * load(lanes, ds, i), s_i))
    for value, change in ((TAU, D_TAU), (KAPPA, D_KAPPA)):
        u = load(lanes, lane, value)
        store(lane, value, where(moves, u + alpha * load(lanes, lane, change), u))


@njit(nogil=True, error_model="numpy")
def _start(layout: Layout, constant: Array, point: _Point, v: int) -> None:
    """One lane's starting point: of least squares, or the central point where that is far away (K nearly singular)."""
    x, s, y = point.x, point.s, point.y
    n, largest = len(x), 0.0
    for i in range(n + len(s)):
        largest = max(largest, abs(constant[i, v]))
    near = largest < FAR
    for j in range(n):
        x[j, v] = constant[j, v] if near else 0.0
    if near:
        for i in range(len(s)):
            y[i, v] = constant[n + i, v]
            s[i, v] = -constant[n + i, v] if i >= layout.zero else 0.0
        enter_cone(layout, s, v)
        enter_cone(layout, y, v)


@njit(nogil=True, error_model="numpy")
def _point(n: int, m: int, V: int) -> _Point:
    return _Point(np.zeros((n, V)), np.zeros((m, V)), np.zeros((m, V)))


@njit(nogil=True, error_model="numpy")
def _copy_lane(source: _Point, target: _Point, v: int) -> None:
    for j in range(len(source.x)):
        target.x[j, v] = source.x[j, v]
    for i in range(len(source.s)):
        target.s[i, v], target.y[i, v] = source.s[i, v], source.y[i, v]


@njit(nogil=True, error_model="numpy")
def _zero_lane(affine: _Products, v: int) -> None:
    """The products at x = y = 0 ..."""
    affine.Px[:, v], affine.Aty[:, v], affine.Ax[:, v] = 0.0, 0.0, 0.0


@njit(nogil=True, error_model="numpy")
def _write(data: _Data, point: _Point, tau: float, x_out: Array, y_out: Array, s_out: Array, v: int) -> None:
    """Lane v's solution in the units of its element."""
    c = data.scalars[OBJECTIVE, v]
    for j in range(len(x_out)):
        x_out[j] = point.x[j, v] * data.d[j, v] / tau
    for i in range(len(y_out)):
        y_out[i] = point.y[i, v] * data.e[i, v] / (c * tau)
        s_out[i] = point.s[i, v] / (data.e[i, v] * tau)


@njit(nogil=True, error_model="numpy")
def _write_ray(u: Array, scale: Array, size: float, out: Array, v: int) -> None:
    """Lane v's certificate in the units of its element, with value -1."""
    for i in range(len(out)):
        out[i] = u[i, v] * scale[i, v] / size
