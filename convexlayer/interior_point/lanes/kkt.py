"""Linear algebra of the Newton steps in lanes: products with P and A, and refined solves with the KKT matrix K."""

from __future__ import annotations

from typing import Any

from convexlayer.interior_point.lanes.layout import Data, Layout, Point, Products
from convexlayer.linalg.ldl.lanes import LaneMatrix, column_products, multiply, solve_in_place
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import absolute, any_lane, broadcast, load, maximum, store, where

__all__ = ["REGULARISATION", "refine_further", "solve_refined", "times_P", "update_products"]

REGULARISATION = 1e-7
"""Static regularisation: added to the diagonal of the equilibrated K with the sign of each pivot. Refinement removes
its effect from the solution. Larger values make the factorisation more stable but the refinement slower."""

REFINEMENT_RELTOL = 1e-13
"""Refinement stops at this residual relative to the right-hand side (Clarabel's iterative_refinement_reltol)."""

SINGLE_STEP_RELTOL = 1e-7
"""Relative residual below which a single refinement step is taken to reach REFINEMENT_RELTOL, without computing the
residual again: a step reduces it by about the regularisation."""

MAX_REFINEMENT_STEPS = 6
"""Maximum number of refinement steps of a solve (Clarabel: 10)."""

STOP_RATIO = 0.2
"""A lane stops after a step that does not reduce its residual below this fraction of the one before (Clarabel's
iterative_refinement_stop_ratio is 5, the inverse)."""

UNDO_RATIO = 0.5
"""A step that does not reduce the residual below this fraction is undone. If K is singular, such a step only adds a
multiple of a null vector, and all solves of an iteration must share the multiple that the regularisation selects."""


@inner_function
def times_P(lanes: Any, layout: Layout, P: Array, x: Array, out: Array) -> None:
    """Out <- P x, with P given by its upper triangle."""
    out[:] = 0.0
    start, row = layout.P_start, layout.P_row
    for j in range(len(start) - 1):
        last = start[j + 1]
        if last > start[j] and row[last - 1] == j:
            last -= 1
            store(out, j, load(lanes, out, j) + load(lanes, P, last) * load(lanes, x, j))
        column_products(lanes, P, row, start[j], last, x, j, out, x, out)


@inner_function
def update_products(lanes: Any, layout: Layout, data: Data, point: Point, out: Products) -> None:
    """Compute P x, A'y and A x."""
    times_P(lanes, layout, data.P, point.x, out.Px)
    out.Aty[:], out.Ax[:] = 0.0, 0.0
    start, row = layout.A_start, layout.A_row
    for j in range(len(start) - 1):
        column_products(lanes, data.A, row, start[j], start[j + 1], point.x, j, out.Ax, point.y, out.Aty)


@inner_function
def solve_refined(lanes: Any, K: LaneMatrix, rhs: Array, out: Array, work: Array) -> None:
    """Out <- K^-1 rhs, (N, V), with iterative refinement against K without its regularisation; lanes are independent.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        K: the regularised matrices, factorised.
        rhs: right-hand sides in the order of K, (N, V).
        out: solutions in the order of K, (N, V).
        work: scratch, (3, N, V).
    """
    z, residual, correction = work[0], work[1], work[2]
    order = K.plan.permutation
    size = len(order)
    norm = broadcast(lanes, 0.0)
    for i in range(size):
        value = load(lanes, rhs, order[i])
        store(z, i, value)
        norm = maximum(absolute(value), norm)
    solve_in_place(lanes, K, z)
    before, going = norm, norm >= 0.0
    for step in range(MAX_REFINEMENT_STEPS):
        left = _residual(lanes, K, rhs, z, residual)
        if step > 0:
            worse = going & ~(left < UNDO_RATIO * before)
            if any_lane(worse):
                for i in range(size):
                    back = load(lanes, z, i) - load(lanes, correction, i)
                    store(z, i, where(worse, back, load(lanes, z, i)))
            going = going & (left < STOP_RATIO * before)
        going = going & (left > REFINEMENT_RELTOL * norm)
        if not any_lane(going):
            break
        before = left
        solve_in_place(lanes, K, residual)
        for i in range(size):
            change = where(going, load(lanes, residual, i), 0.0)
            store(correction, i, change)
            store(z, i, load(lanes, z, i) + change)
        going = going & (left > SINGLE_STEP_RELTOL * norm)
        if not any_lane(going):
            break
    for i in range(size):
        store(out, order[i], load(lanes, z, i))


@inner_function
def refine_further(lanes: Any, K: LaneMatrix, rhs: Array, out: Array, work: Array, chosen: Array, steps: int) -> None:
    """Refine the solution ``out`` of ``solve_refined`` by ``steps`` more steps, in the lanes where ``chosen`` > 0."""
    z, residual, order = work[0], work[1], K.plan.permutation
    for i in range(len(order)):
        store(z, i, load(lanes, out, order[i]))
    for _ in range(steps):
        _residual(lanes, K, rhs, z, residual)
        solve_in_place(lanes, K, residual)
        for i in range(len(order)):
            store(z, i, load(lanes, z, i) + load(lanes, residual, i))
    refined = load(lanes, chosen, 0) > 0.0
    for i in range(len(order)):
        store(out, order[i], where(refined, load(lanes, z, i), load(lanes, out, order[i])))


@inner_function
def _residual(lanes: Any, K: LaneMatrix, rhs: Array, z: Array, out: Array) -> Any:
    """Out <- rhs - K z, for K without regularisation and in the permuted order of z; returns its maximum norm."""
    multiply(lanes, K, z, out)
    order, signs, size = K.plan.permutation, K.plan.signs, broadcast(lanes, 0.0)
    for i in range(len(order)):
        regular = load(lanes, out, i) - REGULARISATION * float(signs[i]) * load(lanes, z, i)
        value = load(lanes, rhs, order[i]) - regular
        store(out, i, value)
        size = maximum(absolute(value), size)
    return size
