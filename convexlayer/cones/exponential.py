"""The exponential cone: the closure of y exp(x / y) <= z, y > 0.

With v = -w, and outside K, -K* and the face region v1, v2 <= 0 (where s = (v1, 0, max(v3, 0))):

    s = b (rho, 1, exp rho),   y = a (-1, rho - 1, exp -rho),   N = rho^2 - rho + 1
    a = (v1 - rho v2) / N > 0,   b = (v2 - (1 - rho) v1) / N > 0,   b exp(rho) - a exp(-rho) = v3

(Friberg, Projection onto the exponential cone, 2021.) The substitution rho -> 1 - rho exchanges (a, v1) and (b, v2), so
that one may assume v1 >= v2; the mirrored problem has the constants kappa = e^2, z = -e v3. After division by
p = max(v1, v2), with r = min(v1, v2) / p <= 1 and rho = 1 - r + t, the unknown log t solves

    t exp(rho) / N = z + kappa o exp(-rho),   o = (c - r t) / N,   N = c + (1 - 2 r) t + t^2,   c = 1 - r + r^2

This form neither cancels nor overflows for large rho, and gives t near 0 with full relative precision.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, final

import numpy as np
from array_api_compat import device
from numpy.typing import NDArray

from convexlayer.cones.base import AbstractCone, Array, BlockKind, ConePoint, Eigenbasis, namespace
from convexlayer.cones.compiled import compiled_eigenbasis, is_compiled
from convexlayer.cones.rays import boundary_distance, cross_product, depth_bound
from convexlayer.cones.roots import UNDEFINED_VALUE, increasing_root

__all__ = ["BRACKET", "FACE_RATIO", "MIN_RATIO", "Exponential"]

FACE_RATIO = 1e-100
"""Positive max(v1, v2) below this, relative to the largest entry, counts as the face region, so that r^2 is finite."""

MIN_RATIO = 1.0 / 600.0
"""Lower bound of r in exp(1 / r), so that it is finite (the limit for doubles is 1 / 709)."""

BRACKET = 6.0
"""Distance of the lower end of the bracket of log t below the initial guess. A larger one is safer, and costs a step
where Newton's method leaves the bracket."""

CENTRE, RADIUS = (-math.sqrt(1.0 / 3.0), math.sqrt(1.0 / 3.0), math.sqrt(1.0 / 3.0)), 0.26
"""A unit vector in the interior of K and K*, and the radius of a ball around it that both contain."""


class _Region(NamedTuple):
    """Region of w, and the parameters of the projection in the curved region, each of shape (...)."""

    dual: Array  # w in K*
    polar: Array  # w in -K
    face: Array
    a: Array
    b: Array
    rho: Array
    y3: Array


@final
class Exponential(AbstractCone):
    """K = closure {(x, y, z): y exp(x / y) <= z, y > 0}, K* = closure {-x exp(y / x) <= e z, x < 0}."""

    size = 3

    @property
    def centre(self) -> NDArray[np.float64]:
        """A direction in the interior of K and K*."""
        return np.array(CENTRE)

    @property
    def recession_rows(self) -> NDArray[np.bool_]:
        """Only z may grow."""
        return np.array([False, False, True])

    def kinds(self, blocks: int, *, rank_two: bool) -> tuple[BlockKind, ...]:
        """Equal blocks."""
        return (BlockKind("exponential", 3),) * blocks

    def at(self, w: Array) -> ConePoint[Eigenbasis]:
        """Pi_{K*}(w), (..., 3), and its derivative."""
        if is_compiled(w):
            return compiled_eigenbasis(self.kinds(1, rank_two=False), w, self._distance)
        xp = namespace(w)
        region = _locate(xp, w)
        return ConePoint(_projection(xp, w, region), lambda: self._eigenbasis(xp, w, region))

    def _distance(self, w: Array) -> Array:
        xp = namespace(w)
        return self._margin(xp, w, _locate(xp, w))

    def _eigenbasis(self, xp: Any, w: Array, region: _Region) -> Eigenbasis:
        """Q = (y / norm y, s / norm s, their cross product), d = (1, 0, delta) in the curved region.

        (1 - delta) / delta = s2 s3^2 norm(y)^2 / ((-y1)^3 norm(s)^2) = (b / a) exp(2 rho) norm(y / a)^2 / norm(s / b)^2
        """
        rho, positive = region.rho, region.rho > 0
        decay = xp.exp(-xp.abs(rho))
        grow_y, grow_s = xp.where(positive, 1.0, decay), xp.where(positive, decay, 1.0)
        y = xp.stack((-grow_y, (rho - 1.0) * grow_y, grow_s), axis=-1)
        s = xp.stack((rho * grow_s, grow_s, grow_y), axis=-1)
        y_square, s_square = xp.sum(y * y, axis=-1), xp.sum(s * s, axis=-1)
        y, s = y / xp.sqrt(y_square)[..., None], s / xp.sqrt(s_square)[..., None]
        weight = region.b * (y_square / s_square)
        total = region.a + weight
        total = xp.where(total > 0, total, 1.0)
        zero, one = xp.zeros_like(rho), xp.ones_like(rho)
        d = xp.stack((one, zero, region.a / total), axis=-1)
        complement = xp.stack((zero, one, weight / total), axis=-1)
        Q = xp.stack((y, s, cross_product(xp, y, s)), axis=-1)
        flat = region.dual | region.polar | region.face
        on_face = xp.astype(xp.stack((zero > 1.0, w[..., 1] > 0, w[..., 2] > 0), axis=-1), w.dtype)
        flat_d = xp.where(region.face[..., None], on_face, xp.astype(region.dual, w.dtype)[..., None])
        identity = xp.eye(3, dtype=w.dtype, device=device(w))
        return Eigenbasis(
            xp.where(flat[..., None, None], identity, Q),
            xp.where(flat[..., None], flat_d, d),
            xp.where(flat[..., None], 1.0 - flat_d, complement),
            lambda: self._margin(xp, w, region),
        )

    @staticmethod
    def _margin(xp: Any, w: Array, region: _Region) -> Array:
        """Distance from the boundaries of K*, of -K and of the pieces w3 < 0 and w3 > 0 of the face region."""
        y = _projection(xp, w, region)
        sizes = xp.minimum(xp.linalg.vector_norm(y, axis=-1), xp.linalg.vector_norm(y - w, axis=-1))
        to_face = xp.linalg.vector_norm(xp.minimum(w[..., :2], 0.0), axis=-1)
        within_face = xp.minimum(xp.minimum(w[..., 0], w[..., 1]), xp.abs(w[..., 2]))
        margin = xp.where(region.face, xp.maximum(within_face, 0.0), xp.minimum(sizes, to_face))
        return _with_depths(xp, margin, w, region.dual, region.dual | region.polar)


def _with_depths(xp: Any, margin: Array, w: Array, dual: Array, interior: Array) -> Array:
    """Set the margins of interior points of K* (where dual) and -K to their distances from the boundary."""
    if xp.any(interior):
        margin[interior] = _depth(xp, w[interior], dual[interior])
    return margin


def _projection(xp: Any, w: Array, region: _Region) -> Array:
    """The projection, selected by region."""
    curved = xp.stack((-region.a, region.a * (region.rho - 1.0), region.y3), axis=-1)
    on_face = xp.stack((xp.zeros_like(region.a), xp.maximum(w[..., 1], 0.0), xp.maximum(w[..., 2], 0.0)), axis=-1)
    y = xp.where(region.face[..., None], on_face, curved)
    return xp.where(region.dual[..., None], w, xp.where(region.polar[..., None], 0.0, y))


def _locate(xp: Any, w: Array) -> _Region:
    """Region of w, and a, b, rho and y3 in the curved region (finite placeholder values in other regions)."""
    v1, v2, v3 = -w[..., 0], -w[..., 1], -w[..., 2]
    mirrored = v2 > v1
    p = xp.maximum(v1, v2)
    face = p <= FACE_RATIO * xp.max(xp.abs(w), axis=-1)
    p = xp.where(face, 1.0, p)
    r = xp.where(face, 0.0, xp.minimum(v1, v2) / p)
    z = xp.where(face, 0.0, xp.where(mirrored, -math.e * v3, v3) / p)
    kappa = xp.where(mirrored, math.e**2, xp.ones_like(p))
    lead_zero = z + kappa * xp.exp(r - 1.0) <= 0
    bounded = xp.maximum(r, MIN_RATIO)
    other_zero = (r > 0) & (z >= bounded * xp.exp(1.0 / bounded)) & ~lead_zero
    flat = lead_zero | other_zero
    r, z = xp.where(flat, 0.0, r), xp.where(flat, 0.0, z)
    t = xp.exp(_log_t(xp, r, z, kappa))
    c = 1.0 - r + r * r
    N = c + (1.0 - 2.0 * r) * t + t * t
    lead = p * t / N
    other = p * xp.maximum(c - r * t, 0.0) / N
    shifted = 1.0 - r + t
    small = other * xp.exp(-shifted)
    return _Region(
        dual=~face & xp.where(mirrored, other_zero, lead_zero),
        polar=~face & xp.where(mirrored, lead_zero, other_zero),
        face=face,
        a=xp.where(mirrored, lead, other),
        b=xp.where(mirrored, other, lead),
        rho=xp.where(mirrored, r - t, shifted),
        y3=xp.where(mirrored, xp.maximum(math.e * small - v3, 0.0), small),
    )


def _log_t(xp: Any, r: Array, z: Array, kappa: Array) -> Array:
    """log t at the root, in the notation of the module docstring."""
    base = 1.0 - r
    c = base + r * r
    slope = 1.0 - 2.0 * r

    def function(log_t: Array) -> tuple[Array, Array]:
        t = xp.exp(log_t)
        N = c + slope * t + t * t
        dN = slope + 2.0 * t
        other = (c - r * t) / N
        decay = kappa * xp.exp(-(base + t))
        right = z + other * decay
        valid = right > 0
        right = xp.where(valid, right, 1.0)
        value = xp.where(valid, log_t + base + t - xp.log(N * right), UNDEFINED_VALUE)
        return value, 1.0 + t * (1.0 - dN / N + decay * ((r + other * dN) / N + other) / right)

    start = z + kappa * xp.exp(-base)
    first_order = xp.log(start * c) - base
    guess = xp.where(first_order > 1.0, xp.log(xp.maximum(first_order, 1.0)), first_order)
    bound = 2.0 * (xp.log(start) - base + 2.0 * xp.log(1.0 + base) + 1.0)
    high = xp.log(xp.maximum(bound, 1.0))
    high = xp.where(r > 0, xp.minimum(high, xp.log(c / xp.where(r > 0, r, 1.0))), high)
    low = guess - BRACKET
    return increasing_root(xp, function, xp.minimum(guess, 0.5 * (low + high)), low, high)


def _depth(xp: Any, w: Array, dual: Array) -> Array:
    """Distance (points,) of w (points, 3) to the boundary of K* where dual, else of -w to the boundary of K.

    A lower bound for points far from the boundary.
    """
    x = xp.where(dual[:, None], w, -w)

    def inside(x: Array) -> Array:
        """x is in K* if (x1 - x2, -x1, x3) is in K, and it is in K if x1 <= x2 log(x3 / x2)."""
        head, scale, top = x[..., 0], x[..., 1], x[..., 2]
        head, scale = xp.where(dual[:, None], head - scale, head), xp.where(dual[:, None], -head, scale)
        positive = (scale > 0) & (top > 0)
        scale, top = xp.where(positive, scale, 1.0), xp.where(positive, top, 1.0)
        return positive & (head <= scale * (xp.log(top) - xp.log(scale)))

    bound = depth_bound(x, inside, CENTRE, RADIUS)
    near = bound == 0
    if xp.any(near):
        bound[near] = _exact_depth(xp, x[near], dual[near])
    return bound


def _exact_depth(xp: Any, x: Array, dual: Array) -> Array:
    """Distance (points,) of x (points, 3) to the boundary of K* where dual, else to the boundary of K."""
    x1, x2, x3, dual = x[:, :1], x[:, 1:2], x[:, 2:], dual[:, None]

    def products(rho: Array) -> Array:
        decay = xp.exp(-xp.abs(rho))
        shrink, grow = xp.where(rho > 0, decay, 1.0), xp.where(rho > 0, 1.0, decay)
        along_s = (x1 * rho + x2) * shrink + x3 * grow
        along_y = (x2 * (rho - 1.0) - x1) * grow + x3 * shrink
        s_square = (rho * rho + 1.0) * shrink * shrink + grow * grow
        y_square = ((rho - 1.0) ** 2 + 1.0) * grow * grow + shrink * shrink
        return xp.where(dual, along_s / xp.sqrt(s_square), along_y / xp.sqrt(y_square))

    return xp.maximum(boundary_distance(x, products), 0.0)
