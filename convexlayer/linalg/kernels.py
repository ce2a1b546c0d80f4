"""The compiled form of a refined factor: what ``refined`` says in NumPy, for several elements at once in one pass.

Everything that a lane group needs later lies in one array, the state, whose rows are lanes:

    scale (N) | D^-1 (N) | null direction of E (N) | E (nnz of the plan) | L (nnz(L))

in permuted order. A group's last lanes repeat the last element where the batch does not fill them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from convexlayer.linalg.entry import entry
from convexlayer.linalg.lanes import (
    LanePlan,
    column_magnitudes,
    factorise,
    largest,
    multiply,
    solve_in_place,
    squares,
)
from convexlayer.program import Array, IndexArray

__all__ = ["factor", "refine"]

EPS = 1e-7
RUIZ_PASSES = 4
POWER_STEPS = 3
TARGET = 1e-14
TINY = 1e-300


@entry
def factor(
    lanes: Any, packed: IndexArray, values: Array, first: int, last: int, start: Array, state: Array, condition: Array
) -> None:
    """Equilibrate, regularise and factorise the lane groups first to last - 1, and estimate their conditions.

    Args:
        lanes: a tuple of V floats.
        packed: the plan, and the source of its values in those of the pattern (see ``Symbolic.packed``).
        values: upper triangles in the order of the pattern, (B, nnz).
        first: first lane group.
        last: one beyond the last.
        start: where power iterations start, (N,), in original order.
        state: out, (groups, rows, V).
        condition: out, (B,).
    """
    V = len(lanes)
    plan, source = _unpacked(packed)
    N, nnz, batch = len(plan.signs), len(source), len(values)
    y, D, work, sums = np.zeros((N, V)), np.empty((N, V)), np.empty((N, V)), np.empty((1, V))
    for group in range(first, last):
        scale, D_inverse, direction = state[group, :N], state[group, N : 2 * N], state[group, 2 * N : 3 * N]
        E, L = state[group, 3 * N : 3 * N + nnz], state[group, 3 * N + nnz :]
        for v in range(V):
            element = values[min(group * V + v, batch - 1)]
            for p in range(nnz):
                E[p, v] = element[source[p]] if source[p] >= 0 else 0.0
        _equilibrate(lanes, plan, E, scale, work)
        for k in range(N):
            diagonal = plan.column_start[k + 1] - 1
            for v in range(V):
                work[k, v] = E[diagonal, v]
                E[diagonal, v] += EPS * plan.signs[k]
        factorise(lanes, plan, E, L, D, D_inverse, y)
        for k in range(N):
            diagonal = plan.column_start[k + 1] - 1
            for v in range(V):
                E[diagonal, v] = work[k, v]
        for norm_of_inverse in (False, True):
            for k in range(N):
                for v in range(V):
                    direction[k, v] = start[plan.permutation[k]]
            for _ in range(POWER_STEPS):
                _normalise(lanes, direction, sums)
                if norm_of_inverse:
                    solve_in_place(lanes, plan, L, D_inverse, direction)
                else:
                    multiply(lanes, plan, E, direction, work)
                    direction[:] = work
            _normalise(lanes, direction, sums)
            for v in range(V):
                if group * V + v < batch:
                    if norm_of_inverse:
                        condition[group * V + v] *= sums[0, v]
                    else:
                        condition[group * V + v] = 1.0 if sums[0, v] < 1.0 else sums[0, v]


@entry
def refine(
    lanes: Any, packed: IndexArray, rhs: Array, first: int, last: int, steps: int, state: Array, z: Array, residual: Array
) -> None:
    """Solve by iterative refinement, each lane until it makes no progress.

    Args:
        lanes: a tuple of V floats.
        packed: as for ``factor``.
        rhs: (B, N).
        first: first lane group.
        last: one beyond the last.
        steps: at most so many.
        state: as ``factor`` left it.
        z: out, solutions (B, N).
        residual: out, (B,).
    """
    V = len(lanes)
    plan, source = _unpacked(packed)
    N, nnz, batch = len(plan.signs), len(source), len(rhs)
    target, x, best = np.empty((N, V)), np.empty((N, V)), np.empty((N, V))
    step, product = np.empty((N, V)), np.empty((N, V))
    size, error, least = np.empty((1, V)), np.empty((1, V)), np.empty((1, V))
    finite, going, better = np.empty(V, np.bool_), np.empty(V, np.bool_), np.empty(V, np.bool_)
    for group in range(first, last):
        scale, D_inverse = state[group, :N], state[group, N : 2 * N]
        E, L = state[group, 3 * N : 3 * N + nnz], state[group, 3 * N + nnz :]
        for v in range(V):
            element = rhs[min(group * V + v, batch - 1)]
            poison = 0.0
            for k in range(N):
                entry = element[plan.permutation[k]]
                poison += 0.0 * entry
                target[k, v] = scale[k, v] * entry
            finite[v] = poison == 0.0
            if not finite[v]:
                target[:, v] = 0.0
        largest(lanes, target, N, size)
        x[:], best[:], step[:] = 0.0, 0.0, target
        for v in range(V):
            least[0, v] = 1.0 if size[0, v] > 0.0 else 0.0
            going[v] = size[0, v] > 0.0
        for _ in range(steps):
            solve_in_place(lanes, plan, L, D_inverse, step)
            _add(x, step)
            multiply(lanes, plan, E, x, product)
            _subtract(target, product, step)
            largest(lanes, step, N, error)
            improved, proceed = False, False
            for v in range(V):
                error[0, v] /= max(size[0, v], TINY)
                better[v] = going[v] and error[0, v] < least[0, v]
                going[v] = going[v] and error[0, v] < 0.5 * least[0, v] and error[0, v] > TARGET
                if better[v]:
                    least[0, v] = error[0, v]
                improved, proceed = improved or better[v], proceed or going[v]
            if improved:
                for k in range(N):
                    for v in range(V):
                        best[k, v] = x[k, v] if better[v] else best[k, v]
            if not proceed:
                break
        for v in range(V):
            if group * V + v < batch:
                out = z[group * V + v]
                for k in range(N):
                    out[plan.permutation[k]] = scale[k, v] * best[k, v] if finite[v] else math.nan
                residual[group * V + v] = least[0, v] if finite[v] else math.nan


@njit
def _unpacked(packed: IndexArray) -> tuple[LanePlan, IndexArray]:
    plan = LanePlan(
        _part(packed, 0), _part(packed, 1), _part(packed, 2), _part(packed, 3), _part(packed, 4), _part(packed, 5),
        _part(packed, 6), _part(packed, 7), _part(packed, 8), _part(packed, 9), _part(packed, 10), _part(packed, 11),
    )  # fmt: skip
    return plan, _part(packed, 12)


@njit
def _part(packed: IndexArray, i: int) -> IndexArray:
    return packed[packed[i] : packed[i + 1]]


@njit(error_model="numpy")
def _equilibrate(lanes: Any, plan: LanePlan, E: Array, scale: Array, peak: Array) -> None:
    """Scales (N, V) that bring the largest entry of every row of the symmetric matrix near 1 (Ruiz 2001), applied."""
    V = len(lanes)
    start, row = plan.column_start, plan.row
    N = len(plan.signs)
    scale[:] = 1.0
    for _ in range(RUIZ_PASSES):
        peak[:] = 0.0
        for j in range(N):
            column_magnitudes(lanes, E, row, start[j], start[j + 1], scale, j, peak)
        for k in range(N):
            for v in range(V):
                scale[k, v] /= math.sqrt(peak[k, v] if peak[k, v] > 0.0 else 1.0)
    for j in range(N):
        for p in range(start[j], start[j + 1]):
            i = row[p]
            for v in range(V):
                E[p, v] *= scale[i, v] * scale[j, v]


@njit(error_model="numpy")
def _normalise(lanes: Any, z: Array, norm: Array) -> None:
    """Divide by the Euclidean norms, which are returned in ``norm`` (1, V)."""
    V = len(lanes)
    squares(lanes, z, len(z), norm)
    for v in range(V):
        norm[0, v] = math.sqrt(norm[0, v])
    for k in range(len(z)):
        for v in range(V):
            z[k, v] /= max(norm[0, v], TINY)


@njit
def _add(x: Array, step: Array) -> None:
    flat, other = x.ravel(), step.ravel()
    for i in range(len(flat)):
        flat[i] += other[i]


@njit
def _subtract(target: Array, product: Array, out: Array) -> None:
    flat, left, right = out.ravel(), target.ravel(), product.ravel()
    for i in range(len(flat)):
        flat[i] = left[i] - right[i]


def warm_up() -> None:
    """Compile everything that this part calls from Python."""
