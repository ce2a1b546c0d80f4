"""Kernels of the refined factor: equilibration, LDL' factorisation and refined solves, one element per lane.

The results of a lane group are stored in one array, the state, (rows, V), whose rows are, in permuted order,

    scale (N) | D^-1 (N) | null direction of E (N) | E (nnz of the plan) | L (nnz(L))

If the batch does not fill the last group, its remaining lanes repeat the last element.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from convexlayer.linalg.equilibration.symmetric_lanes import equilibrate
from convexlayer.linalg.ldl.lanes import (
    Indices,
    LaneMatrix,
    LanePlan,
    factorise,
    magnitudes,
    multiply,
    solve_in_place,
    unpack,
)
from convexlayer.linalg.refined import (
    EPS,
    MIN_REDUCTION,
    POWER_STEPS,
    REFINEMENT_TOL,
    ROW_ACCEPTED,
    ROW_STEPS,
    TERMS_FLOOR,
    TINY,
)
from convexlayer.program import Array
from convexlayer.runtime.cached_kernel import cached_kernel
from convexlayer.runtime.simd import absolute, any_lane, broadcast, load, maximum, sqrt, store, where

__all__ = ["factor", "refine", "refine_row_by_row"]


class Group(NamedTuple):
    """The state of one lane group.

    Attributes:
        matrix: E and the factor of E + EPS diag(signs).
        scale: S, (N, V).
        direction: null direction of E, (N, V).
    """

    matrix: LaneMatrix
    scale: Array
    direction: Array


class Work(NamedTuple):
    """Vectors of a refinement, (N, V) each."""

    x: Array
    step: Array
    product: Array


@njit
def group_at(plan: LanePlan, state: Array) -> Group:
    """The parts of a group's state (rows, V)."""
    N = len(plan.signs)
    end = 3 * N + len(plan.row)
    matrix = LaneMatrix(plan, state[3 * N : end], state[end:], state[N : 2 * N])
    return Group(matrix, state[:N], state[2 * N : 3 * N])


@njit
def _new_work(N: int, V: int) -> Work:
    return Work(np.empty((N, V)), np.empty((N, V)), np.empty((N, V)))


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
    y, work = np.zeros((N, V)), np.empty((N, V))
    for number in range(first, last):
        group = group_at(plan, state[number])
        matrix, direction = group.matrix, group.direction
        E = matrix.values
        for p in range(entries):
            for v in range(V):
                E[p, v] = values[min(number * V + v, batch - 1), source[p]] if source[p] >= 0 else 0.0
        equilibrate(lanes, plan, E, group.scale, work)
        for k in range(N):
            diagonal = plan.column_start[k + 1] - 1
            exact = load(lanes, E, diagonal)
            store(work, k, exact)
            store(E, diagonal, exact + EPS * plan.signs[k])
        factorise(lanes, matrix, y)
        for k in range(N):
            store(E, plan.column_start[k + 1] - 1, load(lanes, work, k))

        _fill(lanes, plan, start, direction)
        for _ in range(POWER_STEPS):
            _normalise(lanes, direction, direction)
            multiply(lanes, matrix, direction, work)
            direction[:] = work
        norm = maximum(1.0, _norm(lanes, direction))  # that of a nonzero E is about 1 at least
        _fill(lanes, plan, start, direction)
        for _ in range(POWER_STEPS):
            _normalise(lanes, direction, direction)
            solve_in_place(lanes, matrix, direction)
        store(work, 0, norm * _normalise(lanes, direction, direction))
        for v in range(min(V, batch - number * V)):
            condition[number * V + v] = work[0, v]


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
    plan, _ = unpack(packed)
    N, V = len(plan.signs), len(lanes)
    target, best, work = np.empty((N, V)), np.empty((N, V)), _new_work(N, V)
    for number in range(first, last):
        group = group_at(plan, state[number])
        finite = _load_target(lanes, plan, rhs, number, group.scale, target)
        least = _refine(lanes, group.matrix, steps, target, best, work)
        _write_solution(lanes, group, number, finite, best, least, z, residual)


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
    """As ``refine``, then refine the residual while a row's residual exceeds ROW_ACCEPTED times the row's terms.

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
    plan, _ = unpack(packed)
    N, V = len(plan.signs), len(lanes)
    target, best, answer, rest = np.empty((N, V)), np.empty((N, V)), np.empty((N, V)), np.empty((N, V))
    work = _new_work(N, V)
    for number in range(first, last):
        group = group_at(plan, state[number])
        matrix = group.matrix
        finite = _load_target(lanes, plan, rhs, number, group.scale, target)
        _refine(lanes, matrix, steps, target, answer, work)
        error = _row_residual(lanes, matrix, target, answer, rest, work)
        for _ in range(ROW_STEPS):
            rough = error > ROW_ACCEPTED
            if not any_lane(rough):
                break
            for k in range(N):
                store(rest, k, where(rough, load(lanes, rest, k), 0.0))
            _refine(lanes, matrix, steps, rest, best, work)
            for k in range(N):
                store(answer, k, load(lanes, answer, k) + where(rough, load(lanes, best, k), 0.0))
            error = _row_residual(lanes, matrix, target, answer, rest, work)
        _write_solution(lanes, group, number, finite, answer, error, z, residual)


@njit
def _load_target(lanes: Any, plan: LanePlan, rhs: Array, number: int, scale: Array, target: Array) -> Any:
    """Target <- S rhs, 0 in lanes where rhs is not finite; returns the mask of the finite lanes."""
    V, last = len(lanes), len(rhs) - 1
    for k in range(len(target)):
        for v in range(V):
            target[k, v] = rhs[min(number * V + v, last), plan.permutation[k]]
    finite = _is_finite(lanes, target)
    for k in range(len(target)):
        store(target, k, where(finite, load(lanes, target, k) * load(lanes, scale, k), 0.0))
    return finite


@njit
def _write_solution(
    lanes: Any, group: Group, number: int, finite: Any, x: Array, error: Any, z: Array, residual: Array
) -> None:
    """Write z <- S x and the residuals, NaN in lanes whose right-hand side is not finite; overwrites x."""
    V, N, batch, permutation = len(lanes), len(x), len(z), group.matrix.plan.permutation
    for k in range(N):
        store(x, k, where(finite, load(lanes, group.scale, k) * load(lanes, x, k), math.nan))
    for v in range(min(V, batch - number * V)):
        for k in range(N):
            z[number * V + v, permutation[k]] = x[k, v]
    store(x, 0, where(finite, error, math.nan))
    for v in range(min(V, batch - number * V)):
        residual[number * V + v] = x[0, v]


@njit(error_model="numpy")
def _refine(lanes: Any, matrix: LaneMatrix, steps: int, target: Array, best: Array, work: Work) -> Any:
    """Best <- solutions of E x = target; returns their relative residuals."""
    x, step, product = work.x, work.step, work.product
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
        solve_in_place(lanes, matrix, step)
        for k in range(N):
            store(x, k, load(lanes, x, k) + load(lanes, step, k))
        multiply(lanes, matrix, x, product)
        error = _residual(lanes, target, product, step) / size
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
def _row_residual(lanes: Any, matrix: LaneMatrix, target: Array, x: Array, out: Array, work: Work) -> Any:
    """Out <- target - E x; returns its largest entry relative to the terms of its row (see ``refined``)."""
    product, terms = work.product, work.step
    multiply(lanes, matrix, x, product)
    magnitudes(lanes, matrix, x, terms)
    size = broadcast(lanes, 0.0)
    for k in range(len(x)):
        total = load(lanes, terms, k) + absolute(load(lanes, target, k))
        store(terms, k, total)
        size = maximum(total, size)
    error, poison = broadcast(lanes, 0.0), broadcast(lanes, 0.0)
    floor = maximum(TERMS_FLOOR * size, TINY)
    for k in range(len(x)):
        r = load(lanes, target, k) - load(lanes, product, k)
        store(out, k, r)
        error = maximum(absolute(r) / maximum(load(lanes, terms, k), floor), error)
        poison = poison + 0.0 * r
    return error + poison


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
def _residual(lanes: Any, target: Array, product: Array, out: Array) -> Any:
    """Out <- target - product; returns its maximum norm, NaN if an entry is NaN."""
    size, poison = broadcast(lanes, 0.0), broadcast(lanes, 0.0)
    for k in range(len(target)):
        r = load(lanes, target, k) - load(lanes, product, k)
        store(out, k, r)
        size = maximum(absolute(r), size)
        poison = poison + 0.0 * r
    return size + poison
