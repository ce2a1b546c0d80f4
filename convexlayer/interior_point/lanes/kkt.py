"""Linear algebra of the Newton steps in lanes: products with P and A, and refined solves with the KKT matrix K."""

from __future__ import annotations

from typing import Any

from numba import njit

from convexlayer.interior_point.lanes.plan import Layout
from convexlayer.linalg.lanes import LanePlan, column_products, multiply, solve_in_place
from convexlayer.linalg.simd import absolute, any_lane, broadcast, load, maximum, store, where
from convexlayer.program import Array

__all__ = ["REGULARISATION", "products", "refine_further", "solve_refined", "times_P"]

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


@njit(nogil=True, error_model="numpy")
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


@njit(nogil=True, error_model="numpy")
def products(
    lanes: Any, layout: Layout, P: Array, A: Array, x: Array, y: Array, Px: Array, Aty: Array, Ax: Array
) -> None:
    """Compute P x, A'y and A x."""
    times_P(lanes, layout, P, x, Px)
    Aty[:], Ax[:] = 0.0, 0.0
    start, row = layout.A_start, layout.A_row
    for j in range(len(start) - 1):
        column_products(lanes, A, row, start[j], start[j + 1], x, j, Ax, y, Aty)


@njit(nogil=True, error_model="numpy")
def solve_refined(
    lanes: Any, plan: LanePlan, values: Array, L: Array, D_inverse: Array, rhs: Array, out: Array, work: Array
) -> None:
    """Out <- K^-1 rhs, (N, V), with iterative refinement against K without its regularisation; lanes are independent.

    A lane stops after a step that reduces its residual by a factor of less than 5 (Clarabel's
    iterative_refinement_stop_ratio); a step that reduces it by less than 2 is undone.

    Args:
        lanes: a tuple of V floats, whose length sets the number of lanes.
        plan: the symbolic factorisation.
        values: entries of the regularised K.
        L: factor of the regularised K.
        D_inverse: inverse of the diagonal factor.
        rhs: right-hand sides in the order of K, (N, V).
        out: solutions in the order of K, (N, V).
        work: scratch, (3, N, V).
    """
    z, remainder, correction = work[0], work[1], work[2]
    order = plan.permutation
    size = len(order)
    norm = broadcast(lanes, 0.0)
    for i in range(size):
        value = load(lanes, rhs, order[i])
        store(z, i, value)
        norm = maximum(absolute(value), norm)
    solve_in_place(lanes, plan, L, D_inverse, z)
    before, going = norm, norm >= 0.0
    for step in range(MAX_REFINEMENT_STEPS):
        left = _residual(lanes, plan, values, rhs, z, remainder)
        if step > 0:
            # Undo a step that hardly reduces the residual: if K is singular, such a step only adds a multiple of a
            # null vector, and all solves of an iteration must share the multiple that the regularisation selects.
            worse = going & ~(left < 0.5 * before)
            if any_lane(worse):
                for i in range(size):
                    back = load(lanes, z, i) - load(lanes, correction, i)
                    store(z, i, where(worse, back, load(lanes, z, i)))
            going = going & (left < 0.2 * before)
        going = going & (left > REFINEMENT_RELTOL * norm)
        if not any_lane(going):
            break
        before = left
        solve_in_place(lanes, plan, L, D_inverse, remainder)
        for i in range(size):
            change = where(going, load(lanes, remainder, i), 0.0)
            store(correction, i, change)
            store(z, i, load(lanes, z, i) + change)
        going = going & (left > SINGLE_STEP_RELTOL * norm)
        if not any_lane(going):
            break
    for i in range(size):
        store(out, order[i], load(lanes, z, i))


@njit(nogil=True, error_model="numpy")
def refine_further(
    lanes: Any,
    plan: LanePlan,
    values: Array,
    L: Array,
    D_inverse: Array,
    rhs: Array,
    out: Array,
    work: Array,
    which: Array,
    steps: int,
) -> None:
    """Refine the solution ``out`` of ``solve_refined`` by ``steps`` more steps, in the lanes where ``which`` > 0."""
    z, remainder, order = work[0], work[1], plan.permutation
    for i in range(len(order)):
        store(z, i, load(lanes, out, order[i]))
    for _ in range(steps):
        _residual(lanes, plan, values, rhs, z, remainder)
        solve_in_place(lanes, plan, L, D_inverse, remainder)
        for i in range(len(order)):
            store(z, i, load(lanes, z, i) + load(lanes, remainder, i))
    chosen = load(lanes, which, 0) > 0.0
    for i in range(len(order)):
        store(out, order[i], where(chosen, load(lanes, z, i), load(lanes, out, order[i])))


@njit(nogil=True, error_model="numpy")
def _residual(lanes: Any, plan: LanePlan, values: Array, rhs: Array, z: Array, out: Array) -> Any:
    """Out <- rhs - K z, for K without regularisation and in the permuted order of z; returns its maximum norm."""
    multiply(lanes, plan, values, z, out)
    order, signs, size = plan.permutation, plan.signs, broadcast(lanes, 0.0)
    for i in range(len(order)):
        regular = load(lanes, out, i) - REGULARISATION * float(signs[i]) * load(lanes, z, i)
        value = load(lanes, rhs, order[i]) - regular
        store(out, i, value)
        size = maximum(absolute(value), size)
    return size
