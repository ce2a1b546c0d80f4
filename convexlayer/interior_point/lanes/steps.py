"""Newton steps of the homogeneous embedding in lanes, and the residuals of a point. See ``loop`` for the method.

    K (x1, y1) = (-(1 - sigma) r_x, -(1 - sigma) r_y + shift),   K (x2, y2) = (-q, b)
    (dx, dy) = (x1, y1) + d tau (x2, y2),   ds = -(H dy + shift),   tau d kappa = -(correction + kappa d tau)

with r_x = Px + A'y + q tau, r_y = Ax + s - b tau, and r_tau = kappa + q'x + b'y + x'Px / tau.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from convexlayer.interior_point.lanes.kkt import times_P
from convexlayer.interior_point.lanes.layout import Data, Layout, Point, Products
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import absolute, broadcast, load, maximum, minimum, store, where

__all__ = [
    "ALPHA",
    "ATY_SIZE",
    "BY",
    "B_NORM",
    "KAPPA",
    "MOVE",
    "OBJECTIVE",
    "PRODUCT",
    "PX_SIZE",
    "QX",
    "Q_NORM",
    "RAY_SIZE",
    "RESIDUAL_ROWS",
    "SCALARS",
    "SIGMA",
    "SIGMA_MU",
    "STEP_FRACTION",
    "TAU",
    "WORST",
    "add_constant",
    "advance",
    "centring",
    "residuals",
    "step_scalars",
    "tau_kappa_step",
]  # fmt: skip

STEP_FRACTION = 0.99
"""Fraction of the step to the boundary that is taken (Clarabel's max_step_fraction)."""


OBJECTIVE, Q_NORM, B_NORM = range(3)
"""Rows of ``Data.scalars``."""

TAU, KAPPA, MU, ALPHA, SIGMA, SIGMA_MU, D_TAU, D_KAPPA, CORRECTION, DENOMINATOR, R_TAU, MOVE = range(12)
SCALARS = 12
"""Number of rows of the array of scalars per lane, indexed by TAU ... MOVE."""

WORST, PRODUCT, QX, BY, ATY_SIZE, PX_SIZE, RAY_SIZE = range(7)
RESIDUAL_ROWS = 7
"""Number of rows of the array filled by ``residuals``, indexed by WORST ... RAY_SIZE."""


@inner_function
def step_scalars(
    lanes: Any,
    layout: Layout,
    data: Data,
    point: Point,
    products: Products,
    constant: Array,
    Hy: Array,
    scalars: Array,
) -> None:
    """Compute what the predictor and the corrector share: mu, the residual in tau, and the denominator of d tau.

    With K (x2, y2) = (-q, b) the denominator is kappa / tau + |x2 - x / tau|_P^2 + y2'H y2. The last term equals
    -q'x2 - b'y2 - |x2|_P^2 in exact arithmetic; the larger of the two is used, because the second includes the effect
    of the regularisation if K is singular.
    """
    n, m = len(point.x), len(point.s)
    tau, kappa = load(lanes, scalars, TAU), load(lanes, scalars, KAPPA)
    inverse = 1.0 / tau
    sy, curvature, left, distance = tau * kappa, broadcast(lanes, 0.0), broadcast(lanes, 0.0), broadcast(lanes, 0.0)
    xPx, qx, by = broadcast(lanes, 0.0), broadcast(lanes, 0.0), broadcast(lanes, 0.0)
    for j in range(n):
        x_j = load(lanes, point.x, j)
        store(products.difference, j, load(lanes, constant, j) - x_j * inverse)
        xPx = xPx + x_j * load(lanes, products.Px, j)
        qx = qx + x_j * load(lanes, data.q, j)
    times_P(lanes, layout, data.P, products.difference, products.P_difference)
    for j in range(n):
        P_difference = load(lanes, products.P_difference, j)
        distance = distance + load(lanes, products.difference, j) * P_difference
        P_x2 = P_difference + load(lanes, products.Px, j) * inverse
        left = left - load(lanes, constant, j) * (load(lanes, data.q, j) + P_x2)
    for i in range(m):
        y2 = load(lanes, constant, n + i)
        curvature = curvature + y2 * load(lanes, Hy, i)
        left = left - y2 * load(lanes, data.b, i)
        sy = sy + load(lanes, point.s, i) * load(lanes, point.y, i)
        by = by + load(lanes, point.y, i) * load(lanes, data.b, i)
    store(scalars, MU, sy * (1.0 / (layout.degree + 1.0)))
    store(scalars, R_TAU, kappa + qx + by + xPx * inverse)
    store(scalars, DENOMINATOR, kappa * inverse + distance + maximum(left, curvature))
    store(scalars, SIGMA, broadcast(lanes, 0.0))
    store(scalars, CORRECTION, tau * kappa)


@inner_function
def add_constant(lanes: Any, data: Data, products: Products, constant: Array, scalars: Array, step: Array) -> None:
    """Compute d tau and d kappa from (x1, y1) in ``step``, and overwrite step with (x1, y1) + d tau (x2, y2)."""
    n, m = len(data.q), len(data.b)
    tau, kappa, correction = load(lanes, scalars, TAU), load(lanes, scalars, KAPPA), load(lanes, scalars, CORRECTION)
    inverse = 1.0 / tau
    total = (1.0 - load(lanes, scalars, SIGMA)) * load(lanes, scalars, R_TAU) - correction * inverse
    for j in range(n):
        slope = load(lanes, data.q, j) + 2.0 * inverse * load(lanes, products.Px, j)
        total = total + slope * load(lanes, step, j)
    for i in range(m):
        total = total + load(lanes, data.b, i) * load(lanes, step, n + i)
    d_tau = total / load(lanes, scalars, DENOMINATOR)
    store(scalars, D_TAU, d_tau)
    store(scalars, D_KAPPA, -(correction + kappa * d_tau) * inverse)
    for i in range(n + m):
        store(step, i, load(lanes, step, i) + d_tau * load(lanes, constant, i))


@inner_function
def tau_kappa_step(lanes: Any, scalars: Array, longest: float) -> None:
    """Set alpha to the longest step, at most ``longest``, that keeps tau and kappa nonnegative."""
    alpha = broadcast(lanes, longest)
    for value, change in ((TAU, D_TAU), (KAPPA, D_KAPPA)):
        u, du = load(lanes, scalars, value), load(lanes, scalars, change)
        alpha = where(du < 0.0, minimum(-u / du, alpha), alpha)
    store(scalars, ALPHA, alpha)


@inner_function
def centring(lanes: Any, scalars: Array) -> None:
    """Set sigma = (1 - alpha)^3 from the affine step, sigma mu, and the right-hand side for kappa."""
    left = 1.0 - load(lanes, scalars, ALPHA)
    sigma = left * left * left
    sigma_mu = sigma * load(lanes, scalars, MU)
    product = load(lanes, scalars, D_TAU) * load(lanes, scalars, D_KAPPA)
    store(scalars, SIGMA, sigma)
    store(scalars, SIGMA_MU, sigma_mu)
    store(scalars, CORRECTION, load(lanes, scalars, TAU) * load(lanes, scalars, KAPPA) + product - sigma_mu)


@inner_function
def residuals(
    lanes: Any, layout: Layout, data: Data, point: Point, products: Products, scalars: Array, out: Array
) -> None:
    """Compute the quantities of the termination test at a point, in rows WORST ... RAY_SIZE of ``out``.

    The largest of the primal, dual and gap residuals; the natural residual of the nonnegative rows; q'x and b'y (scaled
    units); the largest entries of A'y, Px and Ax + s. All but q'x and b'y are unscaled.
    """
    zero, one = broadcast(lanes, 0.0), broadcast(lanes, 1.0)
    inverse, c = 1.0 / load(lanes, scalars, TAU), 1.0 / load(lanes, data.scalars, OBJECTIVE)
    tau = load(lanes, scalars, TAU)
    xPx, qx, by, r_x, r_y, Px, Aty, Ax, s, ray = zero, zero, zero, zero, zero, zero, zero, zero, zero, zero
    for j in range(len(point.x)):
        back = 1.0 / load(lanes, data.d, j)
        x_j, q_j, P_j, A_j = (
            load(lanes, point.x, j), load(lanes, data.q, j), load(lanes, products.Px, j), load(lanes, products.Aty, j),
        )  # fmt: skip
        xPx = xPx + x_j * P_j
        qx = qx + x_j * q_j
        r_x = maximum(absolute(P_j + A_j + q_j * tau) * back, r_x)
        Px = maximum(absolute(P_j) * back, Px)
        Aty = maximum(absolute(A_j) * back, Aty)
    for i in range(len(point.s)):
        back = 1.0 / load(lanes, data.e, i)
        b_i, s_i, A_i = load(lanes, data.b, i), load(lanes, point.s, i), load(lanes, products.Ax, i)
        by = by + load(lanes, point.y, i) * b_i
        r_y = maximum(absolute(A_i + s_i - b_i * tau) * back, r_y)
        ray = maximum(absolute(A_i + s_i) * back, ray)
        Ax = maximum(absolute(A_i) * back, Ax)
        s = maximum(absolute(s_i) * back, s)
    primal = r_y * inverse / maximum(maximum(Ax, s) * inverse, maximum(load(lanes, data.scalars, B_NORM), one))
    largest = maximum(maximum(Px, Aty) * inverse * c, maximum(load(lanes, data.scalars, Q_NORM), one))
    dual = r_x * inverse * c / largest
    quadratic, linear, bound = xPx * inverse * inverse * c, qx * inverse * c, by * inverse * c
    size = maximum(maximum(absolute(quadratic), absolute(linear)), maximum(absolute(bound), one))
    gap = absolute(quadratic + linear + bound) / size
    worst = maximum(primal, maximum(dual, gap))
    finite = primal + dual + gap >= 0.0
    store(out, WORST, where(finite, worst, np.inf))
    store(out, PRODUCT, _complementarity(lanes, layout, data, point) * inverse / maximum(s * inverse, one))
    store(out, QX, qx)
    store(out, BY, by)
    store(out, ATY_SIZE, Aty)
    store(out, PX_SIZE, Px)
    store(out, RAY_SIZE, ray / c)


@inner_function
def _complementarity(lanes: Any, layout: Layout, data: Data, point: Point) -> Any:
    """The largest min(s, y) of a nonnegative row, unscaled and multiplied by tau."""
    c, worst = 1.0 / load(lanes, data.scalars, OBJECTIVE), broadcast(lanes, 0.0)
    for i in range(layout.zero, layout.orthant):
        e = load(lanes, data.e, i)
        worst = maximum(minimum(load(lanes, point.s, i) / e, load(lanes, point.y, i) * e * c), worst)
    return worst


@inner_function
def advance(lanes: Any, scalars: Array, step: Point, point: Point) -> None:
    """(x, y, s, tau, kappa) += STEP_FRACTION alpha (dx, dy, ds, d tau, d kappa), where MOVE and alpha are positive."""
    alpha = STEP_FRACTION * load(lanes, scalars, ALPHA)
    moves = (load(lanes, scalars, MOVE) > 0.0) & (alpha > 0.0)
    store(scalars, ALPHA, alpha)
    for j in range(len(point.x)):
        x_j = load(lanes, point.x, j)
        store(point.x, j, where(moves, x_j + alpha * load(lanes, step.x, j), x_j))
    for i in range(len(point.s)):
        y_i, s_i = load(lanes, point.y, i), load(lanes, point.s, i)
        store(point.y, i, where(moves, y_i + alpha * load(lanes, step.y, i), y_i))
        store(point.s, i, where(moves, s_i + alpha * load(lanes, step.s, i), s_i))
    for value, change in ((TAU, D_TAU), (KAPPA, D_KAPPA)):
        u = load(lanes, scalars, value)
        store(scalars, value, where(moves, u + alpha * load(lanes, scalars, change), u))
