"""What the exponential and the power cone share in lanes.

With the barrier f* of K* and its conjugate f, both three times logarithmically homogeneous, the shadows of s and y are
shadow_s = -grad f*(y) and shadow_y = -grad f(s). On the central path s = mu shadow_s and y = mu shadow_y.

The scaling H is symmetric, positive definite, and takes y to s and shadow_y to shadow_s (Tuncel 2001):

    H = s s' / s'y + delta_s delta_s' / delta_s'delta_y + mu w w' / w'G^-1 w,    mu = s'y / 3
    delta_s = s - mu shadow_s,   delta_y = y - mu shadow_y,   w = y x shadow_y,   G = the Hessian of f* at y

The last term is mu times what is left of G in the direction w, which is orthogonal to y and shadow_y (the update of
Broyden, Fletcher, Goldfarb and Shanno; Dahl and Andersen 2021): positive by construction, where a difference
of matrices would cancel. Next to the central path delta_s and delta_y vanish, and H is mu G.

A point is a tuple of three vectors of lanes; a symmetric matrix is a tuple (11, 12, 22, 13, 23, 33).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from convexlayer.linalg.simd import absolute, any_lane, load, sqrt, store, where

__all__ = ["BACKTRACK", "along", "at", "backtracking", "cross", "plus", "store_point", "store_scaling"]

BACKTRACK = 0.8
"""Steps out of a cone are shortened by this factor until they stay in."""

# After so many shortenings a step has failed, whatever the floor; 0.8^100 is 2e-10.
_MOST_BACKTRACKS = 100

# delta_s'delta_y / s'y, which is 0 on the central path, must exceed this for the scaling of rank three ...
_OFF_CENTRE = 1.5e-8
# ... and delta_s'delta_y this share of the product of the norms: below, it is rounding.
_NOISE = 1e-14


@njit(nogil=True, error_model="numpy")
def at(lanes: Any, x: Any, r0: int) -> Any:
    """Rows r0 ... r0 + 2 as a point."""
    return load(lanes, x, r0), load(lanes, x, r0 + 1), load(lanes, x, r0 + 2)


@njit(nogil=True, error_model="numpy")
def along(lanes: Any, x: Any, dx: Any, alpha: Any, r0: int) -> Any:
    """The point x + alpha dx."""
    return (
        load(lanes, x, r0) + alpha * load(lanes, dx, r0),
        load(lanes, x, r0 + 1) + alpha * load(lanes, dx, r0 + 1),
        load(lanes, x, r0 + 2) + alpha * load(lanes, dx, r0 + 2),
    )


@njit(nogil=True, error_model="numpy")
def store_point(x: Any, r0: int, point: Any) -> None:
    """Puts a point into rows r0 ... r0 + 2."""
    store(x, r0, point[0])
    store(x, r0 + 1, point[1])
    store(x, r0 + 2, point[2])


@njit(nogil=True, error_model="numpy")
def dot(x: Any, y: Any) -> Any:
    """x'y."""
    return x[0] * y[0] + x[1] * y[1] + x[2] * y[2]


@njit(nogil=True, error_model="numpy")
def plus(x: Any, factor: Any, y: Any) -> Any:
    """x + factor y."""
    return x[0] + factor * y[0], x[1] + factor * y[1], x[2] + factor * y[2]


@njit(nogil=True, error_model="numpy")
def cross(y: Any, x: Any) -> Any:
    """The vector product y x x, orthogonal to y to the last digit even where y and x are almost parallel."""
    w = y[1] * x[2] - y[2] * x[1], y[2] * x[0] - y[0] * x[2], y[0] * x[1] - y[1] * x[0]
    return plus(w, -dot(w, y) / dot(y, y), y)


@njit(nogil=True, error_model="numpy")
def store_scaling(
    h0: int, H: Any, s: Any, y: Any, shadow_s: Any, shadow_y: Any, left: Any, w: Any, G: Any, dual_mu: Any
) -> Any:
    """Writes H of a block: of rank three, or mu G where that is not well defined.

    Args:
        h0: first row of the block in H.
        H: out, packed upper triangles by columns, (entries, V).
        s: point of K.
        y: point of K*.
        shadow_s: -grad f*(y).
        shadow_y: -grad f(s).
        left: w'G^-1 w.
        w: y x shadow_y, up to a factor.
        G: the Hessian of f* at y.
        dual_mu: where positive, H is dual_mu G.

    Returns:
        A mask: in which lanes H is finite and s'y > 0.
    """
    sy = dot(s, y)
    mu = sy * (1.0 / 3.0)
    delta_s, delta_y = plus(s, -mu, shadow_s), plus(y, -mu, shadow_y)
    # Orthogonal to y and s to the last digit, so that H y = s however close to the boundary the gradients are taken.
    delta_s = plus(delta_s, -dot(delta_s, y) / sy, s)
    delta_y = plus(delta_y, -dot(delta_y, s) / sy, y)
    between = dot(delta_s, delta_y)
    noise = _NOISE * sqrt(dot(delta_s, delta_s) * dot(delta_y, delta_y))
    primal_dual = (between > _OFF_CENTRE * sy) & (between > noise) & (left > 0.0) & ~(dual_mu > 0.0)
    c_s, c_delta, c_w = 1.0 / sy, 1.0 / between, mu / left
    c_G = where(dual_mu > 0.0, dual_mu, mu)
    total = 0.0 * sy
    for j in range(3):
        for i in range(j + 1):
            entry = c_s * s[i] * s[j] + c_delta * delta_s[i] * delta_s[j] + c_w * w[i] * w[j]
            entry = where(primal_dual, entry, c_G * G[j * (j + 1) // 2 + i])
            store(H, h0 + j * (j + 1) // 2 + i, entry)
            total = total + 0.0 * entry
    return (sy > 0.0) & (total >= 0.0)


def backtracking(inside: Callable[[Any, float], Any]) -> Any:
    """The kernel that shortens steps until they stay inside a cone.

    (It is made for each cone: a kernel that takes another as an argument cannot be kept on disk.)

    Args:
        inside: (point, exponent) -> mask.
    """

    @njit(nogil=True, error_model="numpy")
    def shorten(lanes: Any, exponent: float, r0: int, x: Any, dx: Any, alpha: Any, floor: float) -> Any:
        """The first of alpha, 0.8 alpha, 0.64 alpha ... with x + alpha dx inside; 0 where it is below the floor."""
        for _ in range(_MOST_BACKTRACKS):
            outside = ~inside(along(lanes, x, dx, alpha, r0), exponent)
            if not any_lane(outside & (alpha > 0.0)):
                break
            alpha = where(outside, BACKTRACK * alpha, alpha)
            alpha = where(alpha >= floor, alpha, 0.0)
        return where(absolute(alpha) <= 1.0, alpha, 0.0)

    return shorten
