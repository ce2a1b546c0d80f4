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
    combined_shift,
    enter_cone,
    new_scaling,
    set_unit,
    step_length,
    times_H,
    update_scaling,
    write_H,
)
from convexlayer.engine.loading import equilibrate
from convexlayer.engine.plan import Layout
from convexlayer.engine.system import REGULARISATION, products, solve_refined, times_P
from convexlayer.linalg.lanes import LanePlan, factorise
from convexlayer.program import Array, IndexArray

__all__ = ["INFEASIBLE", "ITERATION_LIMIT", "OPTIMAL", "STALLED", "TIME_LIMIT", "UNBOUNDED", "Limits", "solve_range"]

OPTIMAL, INFEASIBLE, UNBOUNDED, STALLED, ITERATION_LIMIT, TIME_LIMIT = 0, 1, 2, 3, 4, 5

IDLE, FRESH, RUNNING = 0, 1, 2
"""States of a lane: nothing left to do, loaded but without a starting point, iterating."""

STEP = 0.99
"""Part of the way to the boundary that is taken."""

SMALLEST_STEP = 1e-5
"""A step below this is a stall."""

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
    """Scaled data of the elements in the lanes, and their scales."""

    P: Array
    A: Array
    q: Array
    b: Array
    d: Array
    e: Array
    c: Array
    q_norm: Array
    b_norm: Array


@njit(nogil=True, error_model="numpy")
def _load(
    layout: Layout, plan: LanePlan, data: _Data, values: Array, P: Array, q: Array, A: Array, b: Array, v: int
) -> None:
    """Bring an element's data, (nnz(P),), (n,), (nnz(A),), (m,), into lane v, equilibrated."""
    n, m = len(q), len(b)
    q_norm, b_norm = 0.0, 0.0
    for value in q:
        q_norm = max(q_norm, abs(value))
    for value in b:
        b_norm = max(b_norm, abs(value))
    data.q_norm[v], data.b_norm[v] = q_norm, b_norm
    upper = np.empty(len(layout.P_source))
    for p in range(len(upper)):
        upper[p] = P[layout.P_source[p]]
    A, q, b, d, e = A.copy(), q.copy(), b.copy(), np.empty(n), np.empty(m)
    data.c[v] = equilibrate(layout, upper, A, q, b, d, e)
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


@njit(nogil=True, error_model="numpy", cache=True)
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
        np.ones((n, V)), np.ones((m, V)), np.ones(V), np.zeros(V), np.zeros(V),
    )  # fmt: skip
    values, L = np.zeros((len(plan.row), V)), np.zeros((len(plan.factor_row), V))
    D, D_inverse, row_work, work = np.zeros((N, V)), np.zeros((N, V)), np.zeros((N, V)), np.zeros((4, N, V))
    x, s, y = np.zeros((n, V)), np.zeros((m, V)), np.zeros((m, V))
    best_x, best_s, best_y = np.zeros((n, V)), np.zeros((m, V)), np.zeros((m, V))
    Px, Aty, Ax, P_difference, difference = (
        np.zeros((n, V)), np.zeros((n, V)), np.zeros((m, V)), np.zeros((n, V)), np.zeros((n, V)),
    )  # fmt: skip
    rhs, constant, step, ds, shift, Hy = (
        np.zeros((N, V)), np.zeros((N, V)), np.zeros((N, V)), np.zeros((m, V)), np.zeros((m, V)), np.zeros((m, V)),
    )  # fmt: skip
    scaling = new_scaling(lanes, layout, m)
    tau, kappa, mu = np.ones(V), np.ones(V), np.ones(V)
    alpha, sigma, target, d_tau, d_kappa = np.ones(V), np.zeros(V), np.zeros(V), np.zeros(V), np.zeros(V)
    correction, denominator, r_tau = np.zeros(V), np.ones(V), np.zeros(V)
    element, state, count = np.full(V, -1), np.full(V, IDLE), np.zeros(V, np.int64)
    best, best_tau, started = np.full(V, np.inf), np.ones(V), np.zeros(V)
    following = first
    while True:
        # residuals of the running lanes, and what follows from them
        products(lanes, layout, data.P, data.A, x, y, Px, Aty, Ax)
        measures = _measures(lanes, data, x, s, y, tau, Px, Aty, Ax)
        for v in range(V):
            if state[v] == RUNNING:
                worst = measures[0, v]
                xPx, qx, by = measures[1, v], measures[2, v], measures[3, v]
                r_tau[v] = kappa[v] + qx + by + xPx / tau[v]
                said = -1
                improved = worst < 0.5 * best[v]
                if worst < best[v]:
                    best[v], best_tau[v] = worst, tau[v]
                    if worst < 1e3 * limits.accepted:
                        _copy_lane(x, best_x, v)
                        _copy_lane(s, best_s, v)
                        _copy_lane(y, best_y, v)
                if worst <= limits.target or (best[v] <= limits.accepted and not improved):
                    said = OPTIMAL
                elif tau[v] < COLLAPSED * kappa[v] and by < 0.0 and measures[4, v] <= -RAY * by:
                    said = INFEASIBLE
                elif tau[v] < COLLAPSED * kappa[v] and qx < 0.0 and max(measures[5, v], measures[6, v]) <= -RAY * qx:
                    said = UNBOUNDED
                elif count[v] >= limits.max_iter:
                    said = ITERATION_LIMIT
                elif clock[0] - started[v] > limits.time_limit_s:
                    said = TIME_LIMIT
                elif alpha[v] < SMALLEST_STEP or not np.isfinite(worst):
                    said = STALLED
                if said > UNBOUNDED and best[v] <= limits.accepted:
                    said = OPTIMAL
                if said >= 0:
                    e = element[v]
                    word[e], iterations[e] = said, count[v]
                    if said == INFEASIBLE:
                        _write_ray(y, data.e, -by, y_out[e], v)
                    elif said == UNBOUNDED:
                        _write_ray(x, data.d, -qx / data.c[v], x_out[e], v)
                    elif best[v] < 1e3 * limits.accepted:
                        _write(data, best_x, best_y, best_s, best_tau[v], x_out[e], y_out[e], s_out[e], v)
                    else:
                        _write(data, x, y, s, tau[v], x_out[e], y_out[e], s_out[e], v)
                    state[v] = IDLE
            if state[v] == IDLE and following < last:
                e = following
                following += 1
                _load(layout, plan, data, values, P[e], q[e], A[e], b[e], v)
                element[v], count[v], best[v], started[v] = e, 0, np.inf, clock[0]
                set_unit(layout, s, y, v)
                tau[v], kappa[v], alpha[v] = 1.0, 1.0, 1.0
                state[v] = FRESH
        anyone, running = False, False
        for v in range(V):
            anyone = anyone or state[v] != IDLE
            running = running or state[v] == RUNNING
        if not anyone:
            return

        # the system, and its solution for (-q, b), which is also the starting point of fresh lanes
        update_scaling(lanes, layout, s, y, scaling)
        write_H(lanes, layout, n, scaling, values)
        factorise(lanes, plan, values, L, D, D_inverse, row_work)
        for j in range(n):
            for v in range(V):
                rhs[j, v] = -data.q[j, v]
        for i in range(m):
            for v in range(V):
                rhs[n + i, v] = data.b[i, v]
        solve_refined(lanes, plan, values, L, D_inverse, rhs, constant, work, True)
        if running:
            # affine direction
            for v in range(V):
                mu[v] = tau[v] * kappa[v]
            for i in range(m):
                for v in range(V):
                    mu[v] += s[i, v] * y[i, v]
            for v in range(V):
                mu[v] /= degree + 1
            for j in range(n):
                for v in range(V):
                    difference[j, v] = constant[j, v] - x[j, v] / tau[v]
            times_P(lanes, layout, data.P, difference, P_difference)
            times_H(lanes, layout, scaling, constant[n:], Hy)
            for v in range(V):
                denominator[v] = kappa[v] / tau[v]
            for j in range(n):
                for v in range(V):
                    denominator[v] += difference[j, v] * P_difference[j, v]
            for i in range(m):
                for v in range(V):
                    denominator[v] += constant[n + i, v] * Hy[i, v]
            sigma[:] = 0.0
            for v in range(V):
                correction[v] = tau[v] * kappa[v]
            for i in range(layout.zero, m):
                for v in range(V):
                    shift[i, v] = s[i, v]
            for stage in range(2):
                for j in range(n):
                    for v in range(V):
                        rhs[j, v] = -(1.0 - sigma[v]) * (Px[j, v] + Aty[j, v] + data.q[j, v] * tau[v])
                for i in range(m):
                    for v in range(V):
                        r_y = Ax[i, v] + s[i, v] - data.b[i, v] * tau[v]
                        rhs[n + i, v] = -(1.0 - sigma[v]) * r_y + shift[i, v]
                solve_refined(lanes, plan, values, L, D_inverse, rhs, step, work, stage == 1)
                for v in range(V):
                    d_tau[v] = (1.0 - sigma[v]) * r_tau[v] - correction[v] / tau[v]
                for j in range(n):
                    for v in range(V):
                        d_tau[v] += (data.q[j, v] + 2.0 * Px[j, v] / tau[v]) * step[j, v]
                for i in range(m):
                    for v in range(V):
                        d_tau[v] += data.b[i, v] * step[n + i, v]
                for v in range(V):
                    d_tau[v] /= denominator[v]
                    d_kappa[v] = -(correction[v] + kappa[v] * d_tau[v]) / tau[v]
                for i in range(n + m):
                    for v in range(V):
                        step[i, v] += d_tau[v] * constant[i, v]
                dy = step[n : n + m]
                times_H(lanes, layout, scaling, dy, Hy)
                for i in range(layout.zero, m):
                    for v in range(V):
                        ds[i, v] = -(Hy[i, v] + shift[i, v])
                for v in range(V):
                    alpha[v] = 1.0 if stage == 0 else 1.0 / STEP
                    if d_tau[v] < 0.0:
                        alpha[v] = min(alpha[v], -tau[v] / d_tau[v])
                    if d_kappa[v] < 0.0:
                        alpha[v] = min(alpha[v], -kappa[v] / d_kappa[v])
                step_length(lanes, layout, s, y, ds, dy, alpha)
                if stage == 0:
                    for v in range(V):
                        sigma[v] = (1.0 - alpha[v]) ** 3
                        target[v] = sigma[v] * mu[v]
                        correction[v] = tau[v] * kappa[v] + d_tau[v] * d_kappa[v] - target[v]
                    combined_shift(lanes, layout, scaling, s, y, ds, dy, target, shift)
            for v in range(V):
                alpha[v] *= STEP
                move = alpha[v] if state[v] == RUNNING else 0.0
                count[v] += state[v] == RUNNING
                if move > 0.0:
                    tau[v] += move * d_tau[v]
                    kappa[v] += move * d_kappa[v]
                target[v] = move
            _advance(lanes, target, step, ds, x, y, s)
        for v in range(V):
            if state[v] == FRESH:
                for j in range(n):
                    x[j, v] = constant[j, v]
                for i in range(m):
                    y[i, v] = constant[n + i, v]
                    s[i, v] = -constant[n + i, v] if i >= layout.zero else 0.0
                enter_cone(layout, s, v)
                enter_cone(layout, y, v)
                alpha[v], state[v] = 1.0, RUNNING


@njit(nogil=True, error_model="numpy")
def _measures(
    lanes: Any, data: _Data, x: Array, s: Array, y: Array, tau: Array, Px: Array, Aty: Array, Ax: Array
) -> Array:
    """Worst residual, x'Px, q'x, b'y, and the largest entries of A'y, Px and Ax + s without scaling, (7, V)."""
    V = len(lanes)
    out, sizes = np.zeros((7, V)), np.zeros((6, V))
    for j in range(len(x)):
        for v in range(V):
            back = 1.0 / data.d[j, v]
            out[1, v] += x[j, v] * Px[j, v]
            out[2, v] += x[j, v] * data.q[j, v]
            sizes[0, v] = max(sizes[0, v], abs(Px[j, v] + Aty[j, v] + data.q[j, v] * tau[v]) * back)
            sizes[1, v] = max(sizes[1, v], abs(Px[j, v]) * back)
            sizes[2, v] = max(sizes[2, v], abs(Aty[j, v]) * back)
    for i in range(len(s)):
        for v in range(V):
            back = 1.0 / data.e[i, v]
            out[3, v] += y[i, v] * data.b[i, v]
            out[6, v] = max(out[6, v], abs(Ax[i, v] + s[i, v]) * back)
            sizes[3, v] = max(sizes[3, v], abs(Ax[i, v] + s[i, v] - data.b[i, v] * tau[v]) * back)
            sizes[4, v] = max(sizes[4, v], abs(Ax[i, v]) * back)
            sizes[5, v] = max(sizes[5, v], abs(s[i, v]) * back)
    for v in range(V):
        t, c = 1.0 / tau[v], 1.0 / data.c[v]
        primal = sizes[3, v] * t / max(max(1.0, data.b_norm[v]), max(sizes[4, v], sizes[5, v]) * t)
        dual = sizes[0, v] * t * c / max(max(1.0, data.q_norm[v]), max(sizes[1, v], sizes[2, v]) * t * c)
        quadratic, linear, bound = out[1, v] * t * t * c, out[2, v] * t * c, out[3, v] * t * c
        gap = abs(quadratic + linear + bound) / max(max(1.0, abs(quadratic)), max(abs(linear), abs(bound)))
        out[0, v] = max(gap, max(primal, dual)) if np.isfinite(primal + dual + gap) else np.inf
        out[4, v] = sizes[2, v]
        out[5, v] = sizes[1, v]
        out[6, v] *= data.c[v]
    return out


@njit(nogil=True, error_model="numpy")
def _advance(lanes: Any, alpha: Array, step: Array, ds: Array, x: Array, y: Array, s: Array) -> None:
    """(x, y, s) += alpha (dx, dy, ds), in the lanes that move."""
    V, n = len(lanes), len(x)
    for j in range(n):
        for v in range(V):
            x[j, v] += alpha[v] * step[j, v] if alpha[v] > 0.0 else 0.0
    for i in range(len(s)):
        for v in range(V):
            y[i, v] += alpha[v] * step[n + i, v] if alpha[v] > 0.0 else 0.0
            s[i, v] += alpha[v] * ds[i, v] if alpha[v] > 0.0 else 0.0


@njit(nogil=True, error_model="numpy")
def _copy_lane(source: Array, target: Array, v: int) -> None:
    for i in range(len(source)):
        target[i, v] = source[i, v]


@njit(nogil=True, error_model="numpy")
def _write(
    data: _Data, x: Array, y: Array, s: Array, tau: float, x_out: Array, y_out: Array, s_out: Array, v: int
) -> None:
    """One lane's solution in the units of its element."""
    for j in range(len(x_out)):
        x_out[j] = x[j, v] * data.d[j, v] / tau
    for i in range(len(y_out)):
        y_out[i] = y[i, v] * data.e[i, v] / (data.c[v] * tau)
        s_out[i] = s[i, v] / (data.e[i, v] * tau)


@njit(nogil=True, error_model="numpy")
def _write_ray(u: Array, scale: Array, size: float, out: Array, v: int) -> None:
    """One lane's certificate in the units of its element, with value -1."""
    for i in range(len(out)):
        out[i] = u[i, v] * scale[i, v] / size
