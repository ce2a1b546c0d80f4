"""The power cone in lanes: x^e z^(1 - e) >= abs(w) for rows (x, z, w) and an exponent e in (0, 1).

With p = 2 e, q = 2 (1 - e), phi = (y1 / e)^p (y2 / (1 - e))^q, psi = phi - y3^2 and tau = y3^2 / psi, so that
phi / psi = 1 + tau, the barrier of K* = {phi >= y3^2} is

    f*(y) = -log psi - (1 - e) log y1 - e log y2
    -grad f*(y) = ((1 + e + p tau) / y1, (2 - e + q tau) / y2, -2 y3 / psi)

Everything comes from tau = 1 / (exp(log(phi / y3^2)) - 1), which keeps its relative precision as y nears the boundary.
The quadratic form of the Hessian, in the relative changes d1, d2 of y1, y2 and in d3, is, with A = p d1 + q d2,

    (4 tau + 2) (d3 - K A)^2 / psi + beta A^2 + gamma (d1 - d2)^2 + (1 - e) d1^2 + e d2^2
    K = y3 (1 + tau) / (1 + 2 tau),   beta = (1 + tau) / (2 + 4 tau),   gamma = p q (1 + tau) / 2

a sum of squares, so that solving with it involves no cancellation.

Sources: Goulart and Chen, Clarabel (2024); Chen and Goulart, An efficient implementation of interior-point methods for
a class of nonsymmetric cones (2023); Dahl and Andersen (2021) for the third-order correction.
"""

from __future__ import annotations

import math
from typing import Any

from convexlayer.interior_point.lanes.cones.block import Shape, multiply_packed, write_packed
from convexlayer.interior_point.lanes.cones.elementary import expm1, log, log1p
from convexlayer.interior_point.lanes.cones.nonsymmetric import (
    at,
    backtracking,
    cross,
    plus,
    store_point,
    store_scaling,
)
from convexlayer.interior_point.lanes.layout import Block, Point, Scaling
from convexlayer.program import Array, Cones
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import absolute, any_lane, load, maximum, minimum, sqrt, where

__all__ = [
    "combined_shift",
    "is_interior",
    "is_interior_dual",
    "multiply",
    "set_central_point",
    "shapes",
    "shorten_step",
    "update_scaling",
    "write_scaling",
]

THIRD_FLOOR = 1e-60
"""Lower bound of abs(x3) relative to x1 + x2, so that log abs(x3) exists; its square vanishes next to theirs."""

MAX_EXCESS = 600.0
"""Upper bound of the logarithmic excess, so that its exponential is finite (the limit for doubles is 709)."""

MAX_STEPS = 20
"""Maximum number of Newton steps for the shadow iterate of s."""

LAST_STEP = 1e-8
"""Relative step at which Newton's method ends: it converges quadratically, so the next error is about 1e-16."""


def shapes(cones: Cones) -> list[Shape]:
    """Every block."""
    return [Shape(3, degree=3, exponent=exponent) for exponent in cones.power]


@inner_function
def set_central_point(v: int, block: Block, point: Point) -> None:
    """Set s and y of lane v to the central point, s = y = -grad f(s) = -grad f*(y)."""
    for x in (point.s, point.y):
        x[block.start, v] = math.sqrt(1.0 + block.exponent)
        x[block.start + 1, v] = math.sqrt(2.0 - block.exponent)
        x[block.start + 2, v] = 0.0


@inner_function
def _size(x: Any) -> Any:
    """abs(x3), bounded below by a tiny multiple of x1 + x2."""
    return maximum(absolute(x[2]), THIRD_FLOOR * (x[0] + x[1]))


@inner_function
def _excess(x: Any, size: Any, exponent: float, scale1: float, scale2: float) -> Any:
    """2 log((x1 / scale1)^e (x2 / scale2)^(1 - e) / size), positive in the interior."""
    value = exponent * log(x[0] / (scale1 * size)) + (1.0 - exponent) * log(x[1] / (scale2 * size))
    return minimum(2.0 * value, MAX_EXCESS)


@inner_function
def is_interior(s: Any, exponent: float) -> Any:
    """Mask of the lanes whose point is in the interior of K."""
    return (s[0] > 0.0) & (s[1] > 0.0) & (_excess(s, _size(s), exponent, 1.0, 1.0) > 0.0)


@inner_function
def is_interior_dual(y: Any, exponent: float) -> Any:
    """Mask of the lanes whose point is in the interior of K*."""
    return (y[0] > 0.0) & (y[1] > 0.0) & (_excess(y, _size(y), exponent, exponent, 1.0 - exponent) > 0.0)


@inner_function
def _tau_psi(y: Any, exponent: float) -> Any:
    """(tau, psi) of a point of K*."""
    size = _size(y)
    ratio = expm1(_excess(y, size, exponent, exponent, 1.0 - exponent))
    return 1.0 / ratio, size * size * ratio


@inner_function
def _shadow(s: Any, exponent: float) -> Any:
    """The shadow iterate y = -grad f(s), which satisfies -grad f*(y) = s.

    The three equations reduce, with x = 1 / tau, c1 = (1 + e) / (2 e) and c2 = (2 - e) / (2 - 2 e), to

        2 e log(1 + c1 x) + 2 (1 - e) log(1 + c2 x) - log(1 + x) = 2 log(s1^e s2^(1 - e) / abs(s3))

    whose left side is concave and increasing in x, and largest for e = 1/2, where the equation is quadratic. Newton's
    method starts from the root for e = 1/2, a lower bound, and increases monotonically to the root.
    """
    size = _size(s)
    target = _excess(s, size, exponent, 1.0, 1.0)
    c1, c2 = (1.0 + exponent) / (2.0 * exponent), (2.0 - exponent) / (2.0 - 2.0 * exponent)
    e = expm1(target)
    x = (e * ((5.0 + e) / (sqrt(1.0 + e) * sqrt(4.0 + e) + 2.0)) + e) * (2.0 / 9.0)
    moving = target > 0.0
    for _ in range(MAX_STEPS):
        left = 2.0 * exponent * log1p(c1 * x) + 2.0 * (1.0 - exponent) * log1p(c2 * x) - log1p(x)
        slope = (1.0 + exponent) / (1.0 + c1 * x) + (2.0 - exponent) / (1.0 + c2 * x) - 1.0 / (1.0 + x)
        step = (target - left) / slope
        x = where(moving, x + step, x)
        moving = moving & (absolute(step) > LAST_STEP * x)
        if not any_lane(moving):
            break
    tau = 1.0 / x
    inverse = 1.0 / size
    return (
        (1.0 + exponent + 2.0 * exponent * tau) / s[0],
        (2.0 - exponent + 2.0 * (1.0 - exponent) * tau) / s[1],
        -2.0 * tau * inverse * (s[2] * inverse),
    )


@inner_function
def _solve_hessian(r: Any, y: Any, tau: Any, psi: Any, exponent: float) -> Any:
    """Solve G u = r: returns u, r'u and u3 - K A(u), with u1 and u2 relative to y1 and y2."""
    p, q = 2.0 * exponent, 2.0 - 2.0 * exponent
    spread = 1.0 / (1.0 + 2.0 * tau)
    K = y[2] * (1.0 + tau) * spread
    beta, gamma = 0.5 * (1.0 + tau) * spread, 0.5 * p * q * (1.0 + tau)
    r1, r2 = r[0] * y[0] + K * p * r[2], r[1] * y[1] + K * q * r[2]
    difference, total = q * r1 - p * r2, r1 + r2
    det = (
        (1.0 - exponent) * exponent + beta * (p * p * exponent + q * q * (1.0 - exponent)) + gamma + 4.0 * beta * gamma
    )
    u1 = (beta * q * difference + gamma * total + exponent * r1) / det
    u2 = (gamma * total - beta * p * difference + (1.0 - exponent) * r2) / det
    left = beta * difference * difference + gamma * total * total + exponent * r1 * r1 + (1.0 - exponent) * r2 * r2
    rest = 0.5 * r[2] * psi * spread
    u = (u1, u2, rest + K * (p * u1 + q * u2))
    return u, left / det + r[2] * rest, rest


@inner_function
def _gradient(y: Any, tau: Any, psi: Any, exponent: float) -> Any:
    """The gradient of f* at y."""
    return (
        -(1.0 + exponent + 2.0 * exponent * tau) / y[0],
        -(2.0 - exponent + 2.0 * (1.0 - exponent) * tau) / y[1],
        2.0 * y[2] / psi,
    )


@inner_function
def update_scaling(lanes: Any, block: Block, point: Point, scaling: Scaling) -> None:
    """Compute H of a block; set ``scaling.ok`` to 0 in lanes where H is not finite or s'y is not positive."""
    exponent = block.exponent
    s_, y_ = at(lanes, block, point.s), at(lanes, block, point.y)
    p, q = 2.0 * exponent, 2.0 - 2.0 * exponent
    tau, psi = _tau_psi(y_, exponent)
    gradient = _gradient(y_, tau, psi, exponent)
    shadow_s = (-gradient[0], -gradient[1], -gradient[2])
    shadow_y = _shadow(s_, exponent)
    axis = cross(y_, shadow_y)
    _, left, _ = _solve_hessian(axis, y_, tau, psi, exponent)
    inv1, inv2, inv_psi = 1.0 / y_[0], 1.0 / y_[1], 1.0 / psi
    coupling = -2.0 * (1.0 + tau) * y_[2] * inv_psi
    G = (
        ((1.0 + tau) * p * (1.0 + p * tau) + (1.0 - exponent)) * inv1 * inv1,
        (1.0 + tau) * tau * p * q * inv1 * inv2,
        ((1.0 + tau) * q * (1.0 + q * tau) + exponent) * inv2 * inv2,
        coupling * p * inv1,
        coupling * q * inv2,
        (4.0 * tau + 2.0) * inv_psi,
    )
    store_scaling(lanes, block, scaling, s_, y_, shadow_s, shadow_y, left, axis, G)


@inner_function
def combined_shift(
    lanes: Any, block: Block, scaling: Scaling, point: Point, direction: Point, sigma_mu: Array, shift: Array
) -> None:
    """Shift <- s + sigma mu grad f*(y) - 1/2 D^3 f*(y)[G^-1 ds, dy] for the affine direction ds, dy.

    The last term is the third-order correction: differentiate s + mu grad f*(y) = 0 twice along the affine direction.
    D^3 f* is the third derivative of -log psi, by the chain rule, plus those of the other two logarithms.
    """
    exponent = block.exponent
    s_, y_ = at(lanes, block, point.s), at(lanes, block, point.y)
    ds_, dy_ = at(lanes, block, direction.s), at(lanes, block, direction.y)
    p, q = 2.0 * exponent, 2.0 - 2.0 * exponent
    tau, psi = _tau_psi(y_, exponent)
    (u1, u2, u3), _, rest = _solve_hessian(ds_, y_, tau, psi, exponent)
    inv1, inv2, inv_psi = 1.0 / y_[0], 1.0 / y_[1], 1.0 / psi
    v1, v2, v3 = dy_[0] * inv1, dy_[1] * inv2, dy_[2]
    share = 1.0 + tau
    along_u, along_v = p * u1 + q * u2, p * v1 + q * v2
    mixed = along_u * along_v - p * u1 * v1 - q * u2 * v2
    psi_u = share * along_u / (1.0 + 2.0 * tau) - 2.0 * y_[2] * rest * inv_psi
    psi_v = share * along_v - 2.0 * y_[2] * v3 * inv_psi
    weight = share * mixed - 2.0 * u3 * v3 * inv_psi - 2.0 * psi_u * psi_v
    # Entries 1 and 2, not yet divided by y1 and y2.
    third1 = (
        share
        * p
        * (
            weight
            + (along_v - v1) * psi_u
            + (along_u - u1) * psi_v
            - (mixed - u1 * along_v - v1 * along_u + 2.0 * u1 * v1)
        )
        - 2.0 * (1.0 - exponent) * u1 * v1
    )
    third2 = (
        share
        * q
        * (
            weight
            + (along_v - v2) * psi_u
            + (along_u - u2) * psi_v
            - (mixed - u2 * along_v - v2 * along_u + 2.0 * u2 * v2)
        )
        - 2.0 * exponent * u2 * v2
    )
    third = (third1 * inv1, third2 * inv2, -2.0 * inv_psi * (y_[2] * weight + v3 * psi_u + u3 * psi_v))
    centred = plus(s_, load(lanes, sigma_mu, 0), _gradient(y_, tau, psi, exponent))
    store_point(block, shift, plus(centred, -0.5, third))


multiply, write_scaling, shorten_step = multiply_packed, write_packed, backtracking(is_interior, is_interior_dual)
