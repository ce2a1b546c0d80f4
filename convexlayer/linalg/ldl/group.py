"""LDL' factors of one lane group: equilibration, factorisation, condition estimates and refined solves.

The results of a lane group are stored in one array, the state, (rows, V), whose rows are, in permuted order,

    scale (N) | D^-1 (N) | null direction of E (N) | E (nnz of the plan) | L (nnz(L))

If a batch does not fill its last group, the remaining lanes repeat the last element.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from convexlayer.linalg.equilibration.symmetric_lanes import equilibrate
from convexlayer.linalg.ldl.lanes import (
    Indices,
    LaneMatrix,
    LanePlan,
    factorise,
    magnitudes,
    multiply,
    solve_in_place,
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
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import absolute, any_lane, broadcast, load, maximum, sqrt, store, where

__all__ = [
    "Group",
    "SolveScratch",
    "estimate_condition",
    "factor_group",
    "group_at",
    "new_solve_scratch",
    "solve_group",
    "solve_group_by_rows",
]


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


class SolveScratch(NamedTuple):
    """Vectors of refined solves, (N, V) each."""

    target: Array
    best: Array
    answer: Array
    rest: Array
    x: Array
    step: Array
    product: Array


@inner_function
def group_at(plan: LanePlan, state: Array) -> Group:
    """The parts of a group's state (rows, V)."""
    N = len(plan.signs)
    end = 3 * N + len(plan.row)
    matrix = LaneMatrix(plan, state[3 * N : end], state[end:], state[N : 2 * N])
    return Group(matrix, state[:N], state[2 * N : 3 * N])


@inner_function
def new_solve_scratch(N: int, V: int) -> SolveScratch:
    """Allocate the vectors."""
    return SolveScratch(
        np.empty((N, V)), np.empty((N, V)), np.empty((N, V)), np.empty((N, V)), np.empty((N, V)), np.empty((N, V)),
        np.empty((N, V)),
    )  # fmt: skip


@inner_function
def factor_group(
    lanes: Any, plan: LanePlan, source: Indices, values: Array, first: int, group: Group, y: Array, work: Array
) -> None:
    """Equilibrate, regularise and factorise K of the rows ``first`` ... ``first`` + V - 1 of ``values``.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        plan: the symbolic factorisation.
        source: for each value of the plan the entry of the pattern, or -1.
        values: upper triangles in the order of the pattern, (B, nnz).
        first: the row of the first lane.
        group: out, its scale and matrix.
        y: scratch, (N, V), zero on entry and on return.
        work: scratch, (N, V).
    """
    V, N, last, E = len(lanes), len(plan.signs), len(values) - 1, group.matrix.values
    for p in range(len(source)):
        for v in range(V):
            E[p, v] = values[min(first + v, last), source[p]] if source[p] >= 0 else 0.0
    equilibrate(lanes, plan, E, group.scale, work)
    for k in range(N):
        diagonal = plan.column_start[k + 1] - 1
        exact = load(lanes, E, diagonal)
        store(work, k, exact)
        store(E, diagonal, exact + EPS * plan.signs[k])
    factorise(lanes, group.matrix, y)
    for k in range(N):
        store(E, plan.column_start[k + 1] - 1, load(lanes, work, k))


@inner_function
def estimate_condition(lanes: Any, plan: LanePlan, start: Array, group: Group, work: Array) -> Any:
    """Condition estimates of E by power iterations from ``start`` (N,); writes the null direction of the group."""
    direction = group.direction
    _fill(lanes, plan, start, direction)
    for _ in range(POWER_STEPS):
        _normalise(lanes, direction, direction)
        multiply(lanes, group.matrix, direction, work)
        for k in range(len(work)):
            store(direction, k, load(lanes, work, k))
    norm = maximum(1.0, _norm(lanes, direction))  # that of a nonzero E is about 1 at least
    _fill(lanes, plan, start, direction)
    for _ in range(POWER_STEPS):
        _normalise(lanes, direction, direction)
        solve_in_place(lanes, group.matrix, direction)
    return norm * _normalise(lanes, direction, direction)


@inner_function
def solve_group(
    lanes: Any, group: Group, rhs: Array, number: int, steps: int, scratch: SolveScratch, z: Array, residual: Array
) -> None:
    """Solve with iterative refinement, each lane until it makes no progress.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        group: the group, factorised.
        rhs: right-hand sides, (B, N).
        number: number of the group, whose lanes have the rows from ``number`` V on.
        steps: maximum number of solves with the factor.
        scratch: scratch.
        z: out, solutions, (B, N).
        residual: out, relative residuals, (B,).
    """
    finite = _load_target(lanes, group.matrix.plan, rhs, number, group.scale, scratch.target)
    least = _refine(lanes, group.matrix, steps, scratch.target, scratch.best, scratch)
    _write_solution(lanes, group, number, finite, scratch.best, least, z, residual)


@inner_function
def solve_group_by_rows(
    lanes: Any, group: Group, rhs: Array, number: int, steps: int, scratch: SolveScratch, z: Array, residual: Array
) -> None:
    """As ``solve_group``, with a small residual in every row; ``residual`` is the largest relative one of a row."""
    finite = _load_target(lanes, group.matrix.plan, rhs, number, group.scale, scratch.target)
    error = _refine_rows(lanes, group.matrix, steps, scratch)
    _write_solution(lanes, group, number, finite, scratch.answer, error, z, residual)


@inner_function
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


@inner_function
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


@inner_function
def _refine(lanes: Any, matrix: LaneMatrix, steps: int, target: Array, best: Array, scratch: SolveScratch) -> Any:
    """Best <- solutions of E x = target; returns their relative residuals."""
    x, step, product = scratch.x, scratch.step, scratch.product
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


@inner_function
def _refine_rows(lanes: Any, matrix: LaneMatrix, steps: int, scratch: SolveScratch) -> Any:
    """scratch.answer <- solutions of E x = target with small residuals in every row; returns the largest of each lane.

    As ``_refine``, then the residual is refined while a row's residual exceeds ROW_ACCEPTED times the row's terms.
    """
    target, best, answer, rest = scratch.target, scratch.best, scratch.answer, scratch.rest
    _refine(lanes, matrix, steps, target, answer, scratch)
    error = _row_residual(lanes, matrix, target, answer, rest, scratch)
    for _ in range(ROW_STEPS):
        rough = error > ROW_ACCEPTED
        if not any_lane(rough):
            break
        for k in range(len(target)):
            store(rest, k, where(rough, load(lanes, rest, k), 0.0))
        _refine(lanes, matrix, steps, rest, best, scratch)
        for k in range(len(target)):
            store(answer, k, load(lanes, answer, k) + where(rough, load(lanes, best, k), 0.0))
        error = _row_residual(lanes, matrix, target, answer, rest, scratch)
    return error


@inner_function
def _row_residual(lanes: Any, matrix: LaneMatrix, target: Array, x: Array, out: Array, scratch: SolveScratch) -> Any:
    """Out <- target - E x; returns its largest entry relative to the terms of its row (see ``refined``)."""
    product, terms = scratch.product, scratch.step
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


@inner_function
def _fill(lanes: Any, plan: LanePlan, start: Array, out: Array) -> None:
    """Out <- start, permuted, in every lane."""
    for k in range(len(out)):
        store(out, k, broadcast(lanes, start[plan.permutation[k]]))


@inner_function
def _norm(lanes: Any, z: Array) -> Any:
    """Euclidean norms."""
    total = broadcast(lanes, 0.0)
    for k in range(len(z)):
        total = total + load(lanes, z, k) * load(lanes, z, k)
    return sqrt(total)


@inner_function
def _normalise(lanes: Any, z: Array, out: Array) -> Any:
    """Out <- z / norm(z); returns the Euclidean norm."""
    norm = _norm(lanes, z)
    inverse = 1.0 / maximum(norm, TINY)
    for k in range(len(z)):
        store(out, k, load(lanes, z, k) * inverse)
    return norm


@inner_function
def _is_finite(lanes: Any, z: Array) -> Any:
    """Mask of the lanes without infinities and NaN."""
    poison = broadcast(lanes, 0.0)
    for k in range(len(z)):
        poison = poison + 0.0 * load(lanes, z, k)
    return poison >= 0.0


@inner_function
def _residual(lanes: Any, target: Array, product: Array, out: Array) -> Any:
    """Out <- target - product; returns its maximum norm, NaN if an entry is NaN."""
    size, poison = broadcast(lanes, 0.0), broadcast(lanes, 0.0)
    for k in range(len(target)):
        r = load(lanes, target, k) - load(lanes, product, k)
        store(out, k, r)
        size = maximum(absolute(r), size)
        poison = poison + 0.0 * r
    return size + poison
