"""Linear algebra of the Newton steps in lanes: products with the data, and refined solves with the KKT matrix K."""

from __future__ import annotations

from typing import Any

from numba import njit

from convexlayer.interior_point.lanes.plan import Layout
from convexlayer.linalg.lanes import LanePlan, column_products, multiply, solve_in_place
from convexlayer.linalg.simd import absolute, any_lane, load, maximum, splat, store, where
from convexlayer.program import Array

__all__ = ["REGULARISATION", "products", "refine_further", "solve_refined", "times_P"]

REGULARISATION = 1e-7
"""Added to the diagonal of K with the sign of each pivot; refinement removes its effect."""

ENOUGH = 1e-13
"""Relative residual of a solve that is not refined further."""

ONE_STEP = 1e-7
"""Relative residual from which one step of refinement is known to be enough."""

MAX_STEPS = 6


@njit(nogil=True, error_model="numpy")
def times_P(lanes: Any, layout: Layout, P: Array, x: Array, out: Array) -> None:
    """Out <- P x, of upper triangles P."""
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
    """P x, A'y and A x."""
    times_P(lanes, layout, P, x, Px)
    Aty[:], Ax[:] = 0.0, 0.0
    start, row = layout.A_start, layout.A_row
    for j in range(len(start) - 1):
        column_products(lanes, A, row, start[j], start[j + 1], x, j, Ax, y, Aty)


@njit(nogil=True, error_model="numpy")
def solve_refined(
    lanes: Any, plan: LanePlan, values: Array, L: Array, D_inverse: Array, rhs: Array, out: Array, work: Array
) -> None:
    """Out <- K^-1 rhs, (N, V), refined against K without its regularisation; lane by lane.

    Args:
        lanes: a tuple of V floats.
        plan: the factorisation's plan.
        values: of the regularised K.
        L: its factor.
        D_inverse: see L.
        rhs: in the order of K, (N, V).
        out: in the same order.
        work: (3, N, V).
    """
    z, remainder, correction = work[0], work[1], work[2]
    order = plan.permutation
    size = len(order)
    norm = splat(lanes, 0.0)
    for i in range(size):
        value = load(lanes, rhs, order[i])
        store(z, i, value)
        norm = maximum(absolute(value), norm)
    solve_in_place(lanes, plan, L, D_inverse, z)
    before, going = norm, norm >= 0.0
    for step in range(MAX_STEPS):
        left = _remainder(lanes, plan, values, rhs, z, remainder)
        if step > 0:
            # A step that gains next to nothing is undone: where K is singular it only adds a multiple of a null
            # direction, and every solve of an iteration must have the same multiple, that of the regularisation.
            worse = going & ~(left < 0.5 * before)
            if any_lane(worse):
                for i in range(size):
                    back = load(lanes, z, i) - load(lanes, correction, i)
                    store(z, i, where(worse, back, load(lanes, z, i)))
            going = going & (left < 0.2 * before)
        going = going & (left > ENOUGH * norm)
        if not any_lane(going):
            break
        before = left
        solve_in_place(lanes, plan, L, D_inverse, remainder)
        for i in range(size):
            change = where(going, load(lanes, remainder, i), 0.0)
            store(correction, i, change)
            store(z, i, load(lanes, z, i) + change)
        going = going & (left > ONE_STEP * norm)
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
    """So many steps more of refinement of what ``solve_refined`` left in out, in lanes where which is positive."""
    z, remainder, order = work[0], work[1], plan.permutation
    for i in range(len(order)):
        store(z, i, load(lanes, out, order[i]))
    for _ in range(steps):
        _remainder(lanes, plan, values, rhs, z, remainder)
        solve_in_place(lanes, plan, L, D_inverse, remainder)
        for i in range(len(order)):
            store(z, i, load(lanes, z, i) + load(lanes, remainder, i))
    chosen = load(lanes, which, 0) > 0.0
    for i in range(len(order)):
        store(out, order[i], where(chosen, load(lanes, z, i), load(lanes, out, order[i])))


@njit(nogil=True, error_model="numpy")
def _remainder(lanes: Any, plan: LanePlan, values: Array, rhs: Array, z: Array, out: Array) -> Any:
    """Out <- rhs - K z without the regularisation of K, permuted as z is, and its maximum norm."""
    multiply(lanes, plan, values, z, out)
    order, signs, size = plan.permutation, plan.signs, splat(lanes, 0.0)
    for i in range(len(order)):
        regular = load(lanes, out, i) - REGULARISATION * float(signs[i]) * load(lanes, z, i)
        value = load(lanes, rhs, order[i]) - regular
        store(out, i, value)
        size = maximum(absolute(value), size)
    return size
