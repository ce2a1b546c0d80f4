"""The exponential cone in lanes: y exp(x / y) <= z, y > 0.

Barrier of K* = {u < 0, -u exp(v / u) <= e w} at y = (u, v, w), with a = -u, l = log(w / a), psi = v + a + a l:

    f*(y) = -log psi - log a - log w
    -grad f*(y) = (-l / psi - 1 / a, 1 / psi, (1 + kappa) / w),   kappa = a / psi
    G = g g' / psi^2 + c c' / (a psi) + diag(1 / a^2, 0, 1 / w^2),   g = grad psi = (-l, 1, a / w),   c = (1, 0, a / w)

Its conjugate f at s = (x, y, z) follows from delta > 0 with delta + log(1 + delta) = log(z / y) - x / y, which is 0 on
the boundary: -grad f(s) is the y that has kappa = 1 / delta. (1 + delta is Wright's omega function; delta itself keeps
its relative precision where omega is near 1.)

Sources: Dahl and Andersen, A primal-dual interior-point algorithm for nonsymmetric exponential-cone optimization
(2021); Goulart and Chen, Clarabel: an interior-point solver for conic programs with quadratic objectives (2024).
"""

from __future__ import annotations

from typing import Any

from convexlayer.interior_point.lanes.cones.block import Shape, multiply_packed, write_packed
from convexlayer.interior_point.lanes.cones.elementary import log, log1p
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
from convexlayer.runtime.simd import absolute, any_lane, load, where

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

CENTRAL_POINT = (-1.051383945322714, 0.556409619469370, 1.258967884768947)
"""The point s = y = -grad f(s) = -grad f*(y), as in ECOS and Clarabel."""

MAX_STEPS = 6
"""Maximum number of iterations for delta; two are usually enough."""

LAST_STEP = 1e-4
"""Relative step at which the iteration ends: it has order four, so the next error is about its fourth power, 1e-16."""


def shapes(cones: Cones) -> list[Shape]:
    """Every block."""
    return [Shape(3, degree=3)] * cones.exponential


@inner_function
def set_central_point(v: int, block: Block, point: Point) -> None:
    """Set s and y of lane v to CENTRAL_POINT."""
    for i in range(3):
        point.s[block.start + i, v] = CENTRAL_POINT[i]
        point.y[block.start + i, v] = CENTRAL_POINT[i]


@inner_function
def _gap(s: Any) -> Any:
    """log(z / y) - x / y, positive in the interior of K."""
    return log(s[2] / s[1]) - s[0] / s[1]


@inner_function
def _psi(y: Any) -> Any:
    """(psi, l); psi is positive in the interior of K*."""
    a = -y[0]
    slope = log(y[2] / a)
    return y[1] + a + a * slope, slope


@inner_function
def is_interior(s: Any, exponent: float) -> Any:
    """Mask of the lanes whose point is in the interior of K."""
    return (s[1] > 0.0) & (s[2] > 0.0) & (_gap(s) > 0.0)


@inner_function
def is_interior_dual(y: Any, exponent: float) -> Any:
    """Mask of the lanes whose point is in the interior of K*."""
    psi, _slope = _psi(y)
    return (y[0] < 0.0) & (y[2] > 0.0) & (psi > 0.0)


@inner_function
def _delta(gap: Any) -> Any:
    """The root of delta + log(1 + delta) = gap > 0, to a few units in the last place.

    Fourth-order steps of Fritsch, Shafer and Crowley (1973). The initial value is gap - log(1 + c), where c has the
    value and first two derivatives of delta at 0, and its growth at infinity.
    """
    delta = gap - log1p(gap * (4.0 + gap) / (8.0 + gap))
    moving = gap > 0.0
    for _ in range(MAX_STEPS):
        residual = (gap - delta) - log1p(delta)
        omega = 1.0 + delta
        ratio = residual / (1.0 + omega)
        t = (1.0 + omega) * (1.0 + omega + (2.0 / 3.0) * residual)
        step = omega * ratio * (t - 0.5 * residual) / (t - residual)
        delta = where(moving, delta + step, delta)
        moving = moving & (absolute(step) > LAST_STEP * delta)
        if not any_lane(moving):
            break
    return delta


@inner_function
def update_scaling(lanes: Any, block: Block, point: Point, scaling: Scaling) -> None:
    """Compute H of a block; set ``scaling.ok`` to 0 in lanes where H is not finite or s'y is not positive."""
    s_, y_ = at(lanes, block, point.s), at(lanes, block, point.y)
    a, w = -y_[0], y_[2]
    psi, slope = _psi(y_)
    kappa = a / psi
    inv_a, inv_psi, inv_w = 1.0 / a, 1.0 / psi, 1.0 / w
    shadow_s = (-slope * inv_psi - inv_a, inv_psi, (1.0 + kappa) * inv_w)
    delta = _delta(_gap(s_))
    kappa_y = 1.0 / delta
    ratio = s_[0] / s_[1]
    inv_y = 1.0 / s_[1]
    shadow_y = (-kappa_y * inv_y, (2.0 - (1.0 - ratio) * kappa_y) * inv_y, (1.0 + kappa_y) / s_[2])
    axis = cross(y_, shadow_y)
    _, A, B = _eliminated(axis, a, slope, w)
    left = psi * psi * axis[1] * axis[1] + (A * A + B * B + kappa * (A - B) * (A - B)) / (1.0 + 2.0 * kappa)
    square = inv_psi * inv_psi
    G = (
        slope * slope * square + inv_a * inv_psi + inv_a * inv_a,
        -slope * square,
        square,
        (psi - slope * a) * square * inv_w,
        a * square * inv_w,
        (1.0 + kappa + kappa * kappa) * inv_w * inv_w,
    )
    store_scaling(lanes, block, scaling, s_, y_, shadow_s, shadow_y, left, axis, G)


@inner_function
def _eliminated(r: Any, a: Any, slope: Any, w: Any) -> Any:
    """(r2, a (r1 + l r2), w (r3 - a r2 / w)): right-hand side of G u = r after eliminating the second row, scaled."""
    return r[1], a * (r[0] + slope * r[1]), w * r[2] - a * r[1]


@inner_function
def combined_shift(
    lanes: Any, block: Block, scaling: Scaling, point: Point, direction: Point, sigma_mu: Array, shift: Array
) -> None:
    """Shift <- s + sigma mu grad f*(y) - 1/2 D^3 f*(y)[G^-1 ds, dy] for the affine direction ds, dy.

    The last term is the third-order correction: differentiate s + mu grad f*(y) = 0 twice along the affine direction
    (Dahl and Andersen 2021). In the code, u_a, u_w, v_a and v_w are changes relative to a and w.
    """
    s_, y_ = at(lanes, block, point.s), at(lanes, block, point.y)
    ds_, dy_ = at(lanes, block, direction.s), at(lanes, block, direction.y)
    centring = load(lanes, sigma_mu, 0)
    a, w = -y_[0], y_[2]
    psi, slope = _psi(y_)
    inv_a, inv_psi, inv_w = 1.0 / a, 1.0 / psi, 1.0 / w
    kappa = a * inv_psi
    r2, A, B = _eliminated(ds_, a, slope, w)
    u_a, u_w = (A + kappa * (A - B)) / (1.0 + 2.0 * kappa), (B - kappa * (A - B)) / (1.0 + 2.0 * kappa)
    v_a, v_w = dy_[0] * inv_a, dy_[2] * inv_w
    u_psi, v_psi = psi * r2, (a * (v_w - slope * v_a) + dy_[1]) * inv_psi
    u_c, v_c = u_a + u_w, v_a + v_w
    along_g = -(2.0 * u_psi * v_psi + kappa * u_c * v_c) * inv_psi
    along_c = -(v_c * u_psi + u_c * v_psi) * inv_psi
    third = (
        along_c - slope * along_g + (u_a * v_a - u_w * v_w) * inv_psi + 2.0 * u_a * v_a * inv_a,
        along_g,
        (a * (along_g + along_c) - kappa * (u_a * v_w + u_w * v_a + 2.0 * u_w * v_w) - 2.0 * u_w * v_w) * inv_w,
    )
    gradient = (slope * inv_psi + inv_a, -inv_psi, -(1.0 + kappa) * inv_w)
    store_point(block, shift, plus(plus(s_, centring, gradient), -0.5, third))


multiply, write_scaling, shorten_step = multiply_packed, write_packed, backtracking(is_interior, is_interior_dual)
