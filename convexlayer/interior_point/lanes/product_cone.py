"""Scaling H, step length and right-hand side of the product cone in lanes, block by block.

In the Newton step ds = -(H dy + shift). In rows of the zero cone s = 0, so H, ds and shift are zero there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from convexlayer.interior_point.lanes import exponential, power, psd, second_order
from convexlayer.interior_point.lanes.kkt import REGULARISATION
from convexlayer.interior_point.lanes.plan import Layout
from convexlayer.linalg.simd import broadcast, load, minimum, store, where
from convexlayer.program import Array

__all__ = [
    "MIN_STEP",
    "Scaling",
    "combined_shift",
    "new_scaling",
    "set_unit",
    "shift_to_interior",
    "shorten_step",
    "times_H",
    "update_scaling",
    "write_H",
]


MIN_STEP = 1e-5
"""Step length below which an element counts as stalled. (Clarabel's min_terminate_step_length is 1e-4.)"""


class Scaling(NamedTuple):
    """The scaling H of every block.

    Attributes:
        diagonal: s / y of the nonnegative rows, (m, V).
        w: scaling points of the second-order blocks, in the rows of the blocks, (m, V).
        eta2: eta^2 of the second-order blocks, (blocks, V).
        packed: dense blocks as packed upper triangles, (entries, V).
        factors: R, R^-1 and lam of the semidefinite blocks, one block after another (see ``psd``).
        work: scratch for one block at a time.
        dual_mu: if positive, H of exponential and power blocks is this times the Hessian of the dual barrier, (V,).
        ok: 1 in lanes where the scaling of every block is defined, else 0, (V,).
    """

    diagonal: Array
    w: Array
    eta2: Array
    packed: Array
    factors: Array
    work: Array
    dual_mu: Array
    ok: Array


@njit(nogil=True, error_model="numpy")
def new_scaling(lanes: Any, layout: Layout, m: int) -> Scaling:
    """Allocate a scaling for V lanes."""
    V, work, factors = len(lanes), 0, 0
    for size in layout.second_size:
        work = max(work, 2 * size)
    for order in layout.psd_order:
        work = max(work, psd.scratch_rows(order))
        factors += psd.factor_rows(order)
    blocks, entries = len(layout.second_start), len(layout.packed_position)
    return Scaling(
        np.ones((m, V)), np.zeros((m, V)), np.ones((blocks, V)), np.zeros((entries, V)), np.zeros((factors, V)),
        np.zeros((work, V)), np.zeros(V), np.ones(V),
    )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def set_unit(layout: Layout, s: Array, y: Array, v: int) -> None:
    """Set s and y of lane v to the central point of every cone."""
    for i in range(len(s)):
        unit = 1.0 if layout.zero <= i < layout.orthant else 0.0
        s[i, v], y[i, v] = unit, unit
    for start in layout.second_start:
        s[start, v], y[start, v] = 1.0, 1.0
    for block in range(len(layout.psd_start)):
        psd.identity(layout.psd_order[block], s, y, layout.psd_start[block], v)
    for start in layout.exponential_start:
        exponential.central_point(s, y, start, v)
    for block in range(len(layout.power_start)):
        power.central_point(layout.power_alpha[block], s, y, layout.power_start[block], v)


@njit(nogil=True, error_model="numpy")
def shift_to_interior(layout: Layout, u: Array, v: int) -> None:
    """Move lane v's u along the identity of the (symmetric) cones to margin 1, unless it is in the interior already."""
    margin = np.inf
    for i in range(layout.zero, layout.orthant):
        margin = min(margin, u[i, v])
    for block in range(len(layout.second_start)):
        margin = min(margin, second_order.margin(u, layout.second_start[block], layout.second_size[block], v))
    for block in range(len(layout.psd_start)):
        margin = min(margin, psd.margin(u, layout.psd_start[block], layout.psd_order[block], v))
    if margin > 1e-8 or margin == np.inf:
        return
    for i in range(layout.zero, layout.orthant):
        u[i, v] += 1.0 - margin
    for start in layout.second_start:
        u[start, v] += 1.0 - margin
    for block in range(len(layout.psd_start)):
        psd.add_unit(u, layout.psd_start[block], layout.psd_order[block], 1.0 - margin, v)


@njit(nogil=True, error_model="numpy")
def update_scaling(lanes: Any, layout: Layout, s: Array, y: Array, scaling: Scaling) -> None:
    """Compute H at the interior point (s, y); ``scaling.ok`` is 0 in lanes where it is not defined."""
    scaling.ok[:] = 1.0
    for i in range(layout.zero, layout.orthant):
        store(scaling.diagonal, i, load(lanes, s, i) / load(lanes, y, i))
    w, eta2 = scaling.w, scaling.eta2
    for block in range(len(layout.second_start)):
        start, size, packed = layout.second_start[block], layout.second_size[block], layout.second_packed[block]
        second_order.scale(lanes, s, y, start, size, w, eta2, block)
        if packed >= 0:
            second_order.pack(lanes, w, eta2, block, start, size, scaling.packed, packed)
    H, ok, f0 = scaling.packed, scaling.ok, 0
    for block in range(len(layout.psd_start)):
        start, order, packed = layout.psd_start[block], layout.psd_order[block], layout.psd_packed[block]
        psd.update_scaling(lanes, start, packed, f0, order, s, y, H, scaling.factors, scaling.work, ok)
        f0 += psd.factor_rows(order)
    for block in range(len(layout.exponential_start)):
        start, packed = layout.exponential_start[block], layout.exponential_packed[block]
        exponential.update_scaling(lanes, start, packed, s, y, scaling.dual_mu, H, ok)
    for block in range(len(layout.power_start)):
        start, packed, alpha = layout.power_start[block], layout.power_packed[block], layout.power_alpha[block]
        power.update_scaling(lanes, start, packed, alpha, s, y, scaling.dual_mu, H, ok)


@njit(nogil=True, error_model="numpy")
def write_H(lanes: Any, layout: Layout, n: int, scaling: Scaling, values: Array) -> None:
    """Write -H minus the static regularisation into the values of K."""
    for i in range(layout.zero, layout.orthant):
        store(values, layout.diagonal[n + i], -1.0 * load(lanes, scaling.diagonal, i) - REGULARISATION)
    for k in range(len(layout.packed_position)):
        regularisation = REGULARISATION * layout.packed_diagonal[k]
        store(values, layout.packed_position[k], -1.0 * load(lanes, scaling.packed, k) - regularisation)
    for block in range(len(layout.second_start)):
        if layout.second_packed[block] < 0:
            start, size = layout.second_start[block], layout.second_size[block]
            second_order.expand(
                lanes, scaling.w, scaling.eta2, block, start, size, layout.diagonal, n + start,
                layout.second_extra[block], layout.expanded_position, layout.second_position[block], values,
                REGULARISATION,
            )  # fmt: skip


@njit(nogil=True, error_model="numpy")
def times_H(lanes: Any, layout: Layout, scaling: Scaling, x: Array, out: Array) -> None:
    """Out <- H x, (m, V)."""
    for i in range(layout.zero):
        store(out, i, broadcast(lanes, 0.0))
    for i in range(layout.zero, layout.orthant):
        store(out, i, load(lanes, scaling.diagonal, i) * load(lanes, x, i))
    for block in range(len(layout.second_start)):
        start, size = layout.second_start[block], layout.second_size[block]
        second_order.product(lanes, scaling.w, scaling.eta2, block, start, size, x, out)
    f0 = 0
    for block in range(len(layout.psd_start)):
        start, order = layout.psd_start[block], layout.psd_order[block]
        psd.multiply(lanes, start, f0, order, scaling.factors, x, out, scaling.work)
        f0 += psd.factor_rows(order)
    for block in range(len(layout.exponential_start)):
        _times_packed(lanes, scaling.packed, layout.exponential_packed[block], x, layout.exponential_start[block], out)
    for block in range(len(layout.power_start)):
        _times_packed(lanes, scaling.packed, layout.power_packed[block], x, layout.power_start[block], out)


@njit(nogil=True, error_model="numpy")
def _times_packed(lanes: Any, H: Array, h0: int, x: Array, r0: int, out: Array) -> None:
    """Rows r0 ... r0 + 2 of out <- H x, for a block of order 3 stored as a packed upper triangle."""
    x0, x1, x2 = load(lanes, x, r0), load(lanes, x, r0 + 1), load(lanes, x, r0 + 2)
    h01, h02, h12 = load(lanes, H, h0 + 1), load(lanes, H, h0 + 3), load(lanes, H, h0 + 4)
    store(out, r0, load(lanes, H, h0) * x0 + h01 * x1 + h02 * x2)
    store(out, r0 + 1, h01 * x0 + load(lanes, H, h0 + 2) * x1 + h12 * x2)
    store(out, r0 + 2, h02 * x0 + h12 * x1 + load(lanes, H, h0 + 5) * x2)


@njit(nogil=True, error_model="numpy")
def combined_shift(
    lanes: Any, layout: Layout, scaling: Scaling, s: Array, y: Array, ds: Array, dy: Array, target: Array, shift: Array
) -> None:
    """Compute the shift of the combined step from the affine direction ds, dy and target = sigma mu (V,)."""
    goal = load(lanes, target, 0)
    for i in range(layout.zero, layout.orthant):
        extra = (load(lanes, ds, i) * load(lanes, dy, i) - goal) / load(lanes, y, i)
        store(shift, i, load(lanes, s, i) + extra)
    for block in range(len(layout.second_start)):
        start, size = layout.second_start[block], layout.second_size[block]
        second_order.shift(
            lanes, scaling.w, scaling.eta2, block, start, size, y, ds, dy, goal, shift, scaling.work
        )  # fmt: skip
    f0 = 0
    for block in range(len(layout.psd_start)):
        start, order = layout.psd_start[block], layout.psd_order[block]
        psd.combined_shift(lanes, start, f0, order, scaling.factors, ds, dy, target, shift, scaling.work)
        f0 += psd.factor_rows(order)
    for start in layout.exponential_start:
        exponential.combined_shift(lanes, start, s, y, ds, dy, target, shift)
    for block in range(len(layout.power_start)):
        start, alpha = layout.power_start[block], layout.power_alpha[block]
        power.combined_shift(lanes, start, alpha, s, y, ds, dy, target, shift)


@njit(nogil=True, error_model="numpy")
def shorten_step(
    lanes: Any, layout: Layout, scaling: Scaling, s: Array, y: Array, ds: Array, dy: Array, alpha: Array
) -> None:
    """Reduce alpha (V,) to the largest step that keeps s + alpha ds and y + alpha dy in the cones."""
    step = load(lanes, alpha, 0)
    for i in range(layout.zero, layout.orthant):
        s_, ds_, y_, dy_ = load(lanes, s, i), load(lanes, ds, i), load(lanes, y, i), load(lanes, dy, i)
        step = where(ds_ < 0.0, minimum(-s_ / ds_, step), step)
        step = where(dy_ < 0.0, minimum(-y_ / dy_, step), step)
    for block in range(len(layout.second_start)):
        start, size = layout.second_start[block], layout.second_size[block]
        step = second_order.shorten_step(lanes, s, ds, start, size, step)
        step = second_order.shorten_step(lanes, y, dy, start, size, step)
    store(alpha, 0, step)
    f0 = 0
    for block in range(len(layout.psd_start)):
        start, order = layout.psd_start[block], layout.psd_order[block]
        psd.shorten_step(lanes, start, f0, order, scaling.factors, ds, dy, alpha, scaling.work)
        f0 += psd.factor_rows(order)
    if len(layout.exponential_start) + len(layout.power_start):
        store(alpha, 0, minimum(load(lanes, alpha, 0), broadcast(lanes, 1.0)))
    for start in layout.exponential_start:
        exponential.shorten_step(lanes, start, s, y, ds, dy, alpha, MIN_STEP)
    for block in range(len(layout.power_start)):
        start, exponent = layout.power_start[block], layout.power_alpha[block]
        power.shorten_step(lanes, start, exponent, s, y, ds, dy, alpha, MIN_STEP)
