"""The scaling H of the product of cones, block after block, in lanes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from convexlayer.engine.plan import Layout
from convexlayer.engine.second_order import (
    second_order_expand,
    second_order_margin,
    second_order_pack,
    second_order_product,
    second_order_scale,
    second_order_shift,
    second_order_step,
)
from convexlayer.engine.system import REGULARISATION
from convexlayer.program import Array

__all__ = [
    "Scaling",
    "combined_shift",
    "enter_cone",
    "new_scaling",
    "set_unit",
    "step_length",
    "times_H",
    "update_scaling",
    "write_H",
]


class Scaling(NamedTuple):
    """H of every block, with ds = -(H dy + shift) in the Newton step.

    Attributes:
        diagonal: s / y of the nonnegative rows, (m, V).
        w: scaling points of the second-order blocks, in their rows, (m, V).
        eta2: their eta^2, (blocks, V).
        packed: dense blocks as packed upper triangles, (entries, V).
    """

    diagonal: Array
    w: Array
    eta2: Array
    packed: Array


@njit(nogil=True, error_model="numpy")
def new_scaling(lanes: Any, layout: Layout, m: int) -> Scaling:
    """Memory for a scaling."""
    V = len(lanes)
    return Scaling(
        np.ones((m, V)),
        np.zeros((m, V)),
        np.ones((len(layout.second_start), V)),
        np.zeros((len(layout.packed_place), V)),
    )


@njit(nogil=True, error_model="numpy")
def set_unit(layout: Layout, s: Array, y: Array, v: int) -> None:
    """The central point of every cone, in one lane."""
    m = len(s)
    for i in range(m):
        unit = 1.0 if layout.zero <= i < layout.orthant else 0.0
        s[i, v], y[i, v] = unit, unit
    for start in layout.second_start:
        s[start, v], y[start, v] = 1.0, 1.0


@njit(nogil=True, error_model="numpy")
def enter_cone(layout: Layout, u: Array, v: int) -> None:
    """Move one lane's u along the central ray of all blocks until it is well inside, if it is not."""
    margin = np.inf
    for i in range(layout.zero, layout.orthant):
        margin = min(margin, u[i, v])
    for block in range(len(layout.second_start)):
        margin = min(margin, second_order_margin(u, layout.second_start[block], layout.second_size[block], v))
    if margin > 1e-8 or margin == np.inf:
        return
    shift = 1.0 - margin
    for i in range(layout.zero, layout.orthant):
        u[i, v] += shift
    for start in layout.second_start:
        u[start, v] += shift


@njit(nogil=True, error_model="numpy")
def update_scaling(lanes: Any, layout: Layout, s: Array, y: Array, scaling: Scaling) -> None:
    """H at (s, y), in the interior."""
    V = len(lanes)
    for i in range(layout.zero, layout.orthant):
        for v in range(V):
            scaling.diagonal[i, v] = s[i, v] / y[i, v]
    for block in range(len(layout.second_start)):
        start, size = layout.second_start[block], layout.second_size[block]
        second_order_scale(lanes, s, y, start, size, scaling.w, scaling.eta2[block])
        if layout.second_packed[block] >= 0:
            second_order_pack(
                lanes, scaling.w, scaling.eta2[block], start, size, scaling.packed, layout.second_packed[block]
            )


@njit(nogil=True, error_model="numpy")
def write_H(lanes: Any, layout: Layout, n: int, scaling: Scaling, values: Array) -> None:
    """Write -H into the values of K, with its regularisation."""
    V = len(lanes)
    for i in range(layout.zero, layout.orthant):
        place = layout.diagonal[n + i]
        for v in range(V):
            values[place, v] = -scaling.diagonal[i, v] - REGULARISATION
    for k in range(len(layout.packed_place)):
        place, shift = layout.packed_place[k], REGULARISATION * layout.packed_diagonal[k]
        for v in range(V):
            values[place, v] = -scaling.packed[k, v] - shift
    for block in range(len(layout.second_start)):
        if layout.second_packed[block] < 0:
            start = layout.second_start[block]
            second_order_expand(
                lanes, scaling.w, scaling.eta2[block], start, layout.second_size[block], layout.diagonal,
                layout.second_extra[block], layout.expanded_place, layout.second_place[block], n + start, values,
                REGULARISATION,
            )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def times_H(lanes: Any, layout: Layout, scaling: Scaling, x: Array, out: Array) -> None:
    """Out <- H x, (m, V); zero on the rows of the zero cone."""
    V = len(lanes)
    for i in range(layout.zero):
        for v in range(V):
            out[i, v] = 0.0
    for i in range(layout.zero, layout.orthant):
        for v in range(V):
            out[i, v] = scaling.diagonal[i, v] * x[i, v]
    for block in range(len(layout.second_start)):
        second_order_product(
            lanes, scaling.w, scaling.eta2[block], layout.second_start[block], layout.second_size[block], x, out
        )


@njit(nogil=True, error_model="numpy")
def combined_shift(
    lanes: Any, layout: Layout, scaling: Scaling, s: Array, y: Array, ds: Array, dy: Array, target: Array, shift: Array
) -> None:
    """The shift of the combined step, from the affine directions ds, dy and target = sigma mu (V,)."""
    V = len(lanes)
    for i in range(layout.zero, layout.orthant):
        for v in range(V):
            shift[i, v] = s[i, v] + (ds[i, v] * dy[i, v] - target[v]) / y[i, v]
    for block in range(len(layout.second_start)):
        second_order_shift(
            lanes, scaling.w, scaling.eta2[block], layout.second_start[block], layout.second_size[block],
            y, ds, dy, target, shift,
        )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def step_length(lanes: Any, layout: Layout, s: Array, y: Array, ds: Array, dy: Array, alpha: Array) -> None:
    """Reduce alpha (V,) to the largest step that leaves s + alpha ds and y + alpha dy in the cones."""
    V = len(lanes)
    for i in range(layout.zero, layout.orthant):
        for v in range(V):
            primal = -s[i, v] / ds[i, v] if ds[i, v] < 0.0 else alpha[v]
            dual = -y[i, v] / dy[i, v] if dy[i, v] < 0.0 else alpha[v]
            alpha[v] = min(alpha[v], min(primal, dual))
    for block in range(len(layout.second_start)):
        start, size = layout.second_start[block], layout.second_size[block]
        second_order_step(lanes, s, ds, start, size, alpha)
        second_order_step(lanes, y, dy, start, size, alpha)
