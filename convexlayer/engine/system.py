"""The engine's linear algebra in lanes: products with the data, the matrix K, and refined solves with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from convexlayer.engine.plan import Layout
from convexlayer.linalg.lanes import LanePlan, column_products, multiply, solve_in_place
from convexlayer.program import Array

__all__ = ["REGULARISATION", "products", "solve_refined", "times_P"]

REGULARISATION = 1e-8
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
    V = len(lanes)
    start, row = layout.P_start, layout.P_row
    for j in range(len(start) - 1):
        last = start[j + 1]
        if last > start[j] and row[last - 1] == j:
            last -= 1
            for v in range(V):
                out[j, v] += P[last, v] * x[j, v]
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
    lanes: Any,
    plan: LanePlan,
    values: Array,
    L: Array,
    D_inverse: Array,
    rhs: Array,
    out: Array,
    work: Array,
    refine: bool,
) -> None:
    """Out <- K^-1 rhs, (N, V), refined against K without its regularisation if asked; lane by lane.

    Args:
        lanes: tuple of V floats.
        plan: the factorisation's plan.
        values: of the regularised K.
        L: its factor.
        D_inverse: see L.
        rhs: in the order of K, (N, V).
        out: in the same order.
        work: (4, N, V).
        refine: whether to refine.
    """
    V = len(lanes)
    target, z, remainder, correction = work[0], work[1], work[2], work[3]
    order, signs = plan.permutation, plan.signs
    size = len(order)
    norm, before, going = np.zeros(V), np.zeros(V), np.ones(V)
    for i in range(size):
        o = order[i]
        for v in range(V):
            value = rhs[o, v]
            target[i, v] = value
            z[i, v] = value
            norm[v] = max(norm[v], abs(value))
    solve_in_place(lanes, plan, L, D_inverse, z)
    if refine:
        for step in range(MAX_STEPS):
            multiply(lanes, plan, values, z, remainder)
            left = np.zeros(V)
            for i in range(size):
                shift = REGULARISATION * signs[i]
                for v in range(V):
                    value = target[i, v] - remainder[i, v] + shift * z[i, v]
                    remainder[i, v] = value
                    left[v] = max(left[v], abs(value))
            undo = np.zeros(V)
            anyone = False
            for v in range(V):
                if going[v] > 0.0:
                    if step > 0 and not left[v] < before[v]:
                        undo[v], going[v] = 1.0, 0.0
                    elif left[v] <= ENOUGH * norm[v] or (step > 1 and left[v] > 0.2 * before[v]):
                        going[v] = 0.0
                    before[v] = left[v]
                anyone = anyone or going[v] > 0.0
            if step > 0 and np.max(undo) > 0.0:
                for i in range(size):
                    for v in range(V):
                        z[i, v] -= correction[i, v] if undo[v] > 0.0 else 0.0
            if not anyone:
                break
            solve_in_place(lanes, plan, L, D_inverse, remainder)
            for i in range(size):
                for v in range(V):
                    value = remainder[i, v] if going[v] > 0.0 else 0.0
                    correction[i, v] = value
                    z[i, v] += value
            anyone = False
            for v in range(V):
                if left[v] <= ONE_STEP * norm[v]:
                    going[v] = 0.0
                anyone = anyone or going[v] > 0.0
            if not anyone:
                break
    for i in range(size):
        o = order[i]
        for v in range(V):
            out[o, v] = z[i, v]
