"""Kernels of the refined factor: equilibration, LDL' factorisation and refined solves, one element per lane.

The results of a lane group are stored in one array, the state, (rows, V), whose rows are, in permuted order,

    scale (N) | D^-1 (N) | null direction of E (N) | E (nnz of the plan) | L (nnz(L))

If the batch does not fill the last group, its remaining lanes repeat the last element.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from convexlayer.linalg.lanes import Indices, LanePlan, factorise, magnitudes, multiply, solve_in_place, unpack
from convexlayer.linalg.refined import (
    EPS,
    MIN_REDUCTION,
    POWER_STEPS,
    REFINEMENT_TOL,
    ROW_ACCEPTED,
    ROW_STEPS,
    RUIZ_PASSES,
    TERMS_FLOOR,
    TINY,
)
from convexlayer.linalg.simd import absolute, any_lane, broadcast, load, maximum, sqrt, store, where
from convexlayer.program import Array
from convexlayer.runtime.cached_kernel import cached_kernel

__all__ = ["factor", "refine", "refine_row_by_row"]


@cached_kernel
def factor(
    lanes: Any, packed: Indices, values: Array, first: int, last: int, start: Array, state: Array, condition: Array
) -> None:
    """Equilibrate, regularise and factorise the lane groups first ... last - 1, and estimate condition numbers.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        packed: the symbolic factorisation (see ``Symbolic.packed``).
        values: upper triangles in the order of the pattern, (B, nnz).
        first: index of the first lane group.
        last: index after the last lane group.
        start: starting vector of the power iterations, (N,).
        state: out, (groups, rows, V).
        condition: out, condition estimates, (B,).
    """
    V = len(lanes)
    plan, source = unpack(packed)
    N, entries, batch = len(plan.signs), len(source), len(values)
    y, D, work = np.zeros((N, V)), np.empty((N, V)), np.empty((N, V))
    for group in range(first, last):
        scale, D_inverse, direction = state[group, :N], state[group, N : 2 * N], state[group, 2 * N : 3 * N]
        E, L = state[group, 3 * N : 3 * N + entries], state[group, 3 * N + entries :]
        for p in range(entries):
            for v in range(V):
                E[p, v] = values[min(group * V + v, batch - 1), source[p]] if source[p] >= 0 else 0.0
        _equilibrate(lanes, plan, E, scale, work)
        for k in range(N):
            diagonal = plan.column_start[k + 1] - 1
            exact = load(lanes, E, diagonal)
            store(work, k, exact)
            store(E, diagonal, exact + EPS * plan.signs[k])
        factorise(lanes, plan, E, L, D, D_inverse, y)
        for k in range(N):
            store(E, plan.column_start[k + 1] - 1, load(lanes, work, k))

        _fill(lanes, plan, start, direction)
        for _ in range(POWER_STEPS):
            _normalise(lanes, direction, direction)
            multiply(lanes, plan, E, direction, work)
            direction[:] = work
        norm = maximum(1.0, _norm(lanes, direction))  # that of a nonzero E is about 1 at least
        _fill(lanes, plan, start, direction)
        for _ in range(POWER_STEPS):
            _normalise(lanes, direction, direction)
            solve_in_place(lanes, plan, L, D_inverse, direction)
        store(work, 0, norm * _normalise(lanes, direction, direction))
        for v in range(min(V, batch - group * V)):
            condition[group * V + v] = work[0, v]


@cached_kernel
def refine(
    lanes: Any,
    packed: Indices,
    rhs: Array,
    first: int,
    last: int,
    steps: int,
    state: Array,
    z: Array,
    residual: Array,
) -> None:
    """Solve with iterative refinement, each lane until it makes no progress.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        packed: the symbolic factorisation.
        rhs: right-hand sides, (B, N).
        first: index of the first lane group.
        last: index after the last lane group.
        steps: maximum number of solves with the factor.
        state: the state computed by ``factor``.
        z: out, solutions, (B, N).
        residual: out, relative residuals, (B,).
    """
    V = len(lanes)
    plan, source = unpack(packed)
    N, entries = len(plan.signs), len(source)
    target, best = np.empty((N, V)), np.empty((N, V))
    x, step, product = np.empty((N, V)), np.empty((N, V)), np.empty((N, V))
    for group in range(first, last):
        scale, D_inverse = state[group, :N], state[group, N : 2 * N]
        E, L = state[group, 3 * N : 3 * N + entries], state[group, 3 * N + entries :]
        finite = _load_target(lanes, plan, rhs, group, scale, target)
        least = _refine(lanes, plan, E, L, D_inverse, steps, target, best, x, step, product)
        _write_solution(lanes, plan, group, scale, finite, best, least, z, residual)


@cached_kernel
def refine_row_by_row(
    lanes: Any,
    packed: Indices,
    rhs: Array,
    first: int,
    last: int,
    steps: int,
    state: Array,
    z: Array,
    residual: Array,
) -> None:
    """As ``refine``, then refine the remainder while a row's residual exceeds ROW_ACCEPTED times the row's terms.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        packed: the symbolic factorisation.
        rhs: right-hand sides, (B, N).
        first: index of the first lane group.
        last: index after the last lane group.
        steps: maximum number of solves with the factor per refinement.
        state: the state computed by ``factor``.
        z: out, solutions, (B, N).
        residual: out, largest row-wise relative residual of each element, (B,).
    """
    V = len(lanes)
    plan, source = unpack(packed)
    N, entries = len(plan.signs), len(source)
    target, best, answer, remainder = np.empty((N, V)), np.empty((N, V)), np.empty((N, V)), np.empty((N, V))
    x, step, product = np.empty((N, V)), np.empty((N, V)), np.empty((N, V))
    for group in range(first, last):
        scale, D_inverse = state[group, :N], state[group, N : 2 * N]
        E, L = state[group, 3 * N : 3 * N + entries], state[group, 3 * N + entries :]
        finite = _load_target(lanes, plan, rhs, group, scale, target)
        _refine(lanes, plan, E, L, D_inverse, steps, target, answer, x, step, product)
        error = _row_residual(lanes, plan, E, target, answer, product, remainder, step)
        for _ in range(ROW_STEPS):
            rough = error > ROW_ACCEPTED
            if not any_lane(rough):
                break
            for k in range(N):
                store(remainder, k, where(rough, load(lanes, remainder, k), 0.0))
            _refine(lanes, plan, E, L, D_inverse, steps, remainder, best, x, step, product)
            for k in range(N):
                store(answer, k, load(lanes, answer, k) + where(rough, load(lanes, best, k), 0.0))
            error = _row_residual(lanes, plan, E, target, answer, product, remainder, step)
        _write_solution(lanes, plan, group, scale, finite, answer, error, z, residual)


@njit
def _load_target(lanes: Any, plan: LanePlan, rhs: Array, group: int, scale: Array, target: Array) -> Any:
    """Target <- S rhs, 0 in lanes where rhs is not finite; returns the mask of the finite lanes."""
    V, last = len(lanes), len(rhs) - 1
    for k in range(len(target)):
        for v in range(V):
            target[k, v] = rhs[min(group * V + v, last), plan.permutation[k]]
    finite = _is_finite(lanes, target)
    for k in range(len(target)):
        store(target, k, where(finite, load(lanes, target, k) * load(lanes, scale, k), 0.0))
    return finite


@njit
def _write_solution(
    lanes: Any, plan: LanePlan, group: int, scale: Array, finite: Any, x: Array, error: Any, z: Array, residual: Array
) -> None:
    """Write z <- S x and the residuals, NaN in lanes whose right-hand side is not finite; overwrites x."""
    V, N, batch = len(lanes), len(x), len(z)
    for k in range(N):
        store(x, k, where(finite, load(lanes, scale, k) * load(lanes, x, k), math.nan))
    for v in range(min(V, batch - group * V)):
        for k in range(N):
            z[group * V + v, plan.permutation[k]] = x[k, v]
    store(x, 0, where(finite, error, math.nan))
    for v in range(min(V, batch - group * V)):
        residual[group * V + v] = x[0, v]


@njit(error_model="numpy")
def _refine(
    lanes: Any,
    plan: LanePlan,
    E: Array,
    L: Array,
    D_inverse: Array,
    steps: int,
    target: Array,
    best: Array,
    x: Array,
    step: Array,
    product: Array,
) -> Any:
    """Best <- solutions of E x = target; returns their relative residuals. x, step and product are scratch, (N, V)."""
    N, size = len(target), broadcast(lanes, 0.0)
    for k in range(N):
        t = load(lanes, target, k)
        store(step, k, t)
        store(x, k, broadcast(lanes, 0.0))
        store(best, k, broadcast(lanes, 0.0))
        size = maximum(absolute(t), size)
    least = where(size > 0.0, broadcast(lanes, 1.0), 0.0)
    going = size > 0.0
    size = maximum(size, TINY)
    for _ in range(steps):
        solve_in_place(lanes, plan, L, D_inverse, step)
        for k in range(N):
            store(x, k, load(lanes, x, k) + load(lanes, step, k))
        multiply(lanes, plan, E, x, product)
        error = _remainder(lanes, target, product, step) / size
        better = going & (error < least)
        going = going & (error < MIN_REDUCTION * least) & (error > REFINEMENT_TOL)
        least = where(better, error, least)
        if any_lane(better):
            for k in range(N):
                store(best, k, where(better, load(lanes, x, k), load(lanes, best, k)))
        if not any_lane(going):
            break
    return least


@njit(error_model="numpy")
def _row_residual(
    lanes: Any, plan: LanePlan, E: Array, target: Array, x: Array, product: Array, remainder: Array, terms: Array
) -> Any:
    """Remainder <- target - E x; returns its largest entry relative to the terms of its row (see ``refined``)."""
    multiply(lanes, plan, E, x, product)
    magnitudes(lanes, plan, E, x, terms)
    size = broadcast(lanes, 0.0)
    for k in range(len(x)):
        total = load(lanes, terms, k) + absolute(load(lanes, target, k))
        store(terms, k, total)
        size = maximum(total, size)
    error, poison = broadcast(lanes, 0.0), broadcast(lanes, 0.0)
    floor = maximum(TERMS_FLOOR * size, TINY)
    for k in range(len(x)):
        r = load(lanes, target, k) - load(lanes, product, k)
        store(remainder, k, r)
        error = maximum(absolute(r) / maximum(load(lanes, terms, k), floor), error)
        poison = poison + 0.0 * r
    return error + poison


@njit(error_model="numpy")
def _equilibrate(lanes: Any, plan: LanePlan, E: Array, scale: Array, peak: Array) -> None:
    """Symmetric Ruiz equilibration (Ruiz 2001): scale E so that the maximum norm of every row is near 1."""
    start, row = plan.column_start, plan.row
    scale[:] = 1.0
    for _ in range(RUIZ_PASSES):
        peak[:] = 0.0
        for j in range(len(scale)):
            factor, highest = load(lanes, scale, j), load(lanes, peak, j)
            for p in range(start[j], start[j + 1]):
                i = row[p]
                size = absolute(load(lanes, E, p)) * load(lanes, scale, i) * factor
                highest = maximum(size, highest)
                store(peak, i, maximum(size, load(lanes, peak, i)))
            store(peak, j, highest)
        for k in range(len(scale)):
            highest = load(lanes, peak, k)
            store(scale, k, load(lanes, scale, k) / sqrt(where(highest > 0.0, highest, 1.0)))
    for j in range(len(scale)):
        factor = load(lanes, scale, j)
        for p in range(start[j], start[j + 1]):
            store(E, p, load(lanes, E, p) * (load(lanes, scale, row[p]) * factor))


@njit
def _fill(lanes: Any, plan: LanePlan, start: Array, out: Array) -> None:
    """Out <- start, permuted, in every lane."""
    for k in range(len(out)):
        store(out, k, broadcast(lanes, start[plan.permutation[k]]))


@njit
def _norm(lanes: Any, z: Array) -> Any:
    """Euclidean norms."""
    total = broadcast(lanes, 0.0)
    for k in range(len(z)):
        total = total + load(lanes, z, k) * load(lanes, z, k)
    return sqrt(total)


@njit(error_model="numpy")
def _normalise(lanes: Any, z: Array, out: Array) -> Any:
    """Out <- z / norm(z); returns the Euclidean norm."""
    norm = _norm(lanes, z)
    inverse = 1.0 / maximum(norm, TINY)
    for k in range(len(z)):
        store(out, k, load(lanes, z, k) * inverse)
    return norm


@njit
def _is_finite(lanes: Any, z: Array) -> Any:
    """Mask of the lanes without infinities and NaN."""
    poison = broadcast(lanes, 0.0)
    for k in range(len(z)):
        poison = poison + 0.0 * load(lanes, z, k)
    return poison >= 0.0


@njit
def _remainder(lanes: Any, target: Array, product: Array, out: Array) -> Any:
    """Out <- target - product; returns its maximum norm, NaN if an entry is NaN."""
    size, poison = broadcast(lanes, 0.0), broadcast(lanes, 0.0)
    for k in range(len(target)):
        r = load(lanes, target, k) - load(lanes, product, k)
        store(out, k, r)
        size = maximum(absolute(r), size)
        poison = poison + 0.0 * r
    return size + poison
