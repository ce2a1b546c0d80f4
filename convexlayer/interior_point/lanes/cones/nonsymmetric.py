"""Primal-dual scaling and line search shared by the exponential and the power cone, in lanes.

With the barrier f* of K* and its conjugate f, both logarithmically homogeneous of degree 3, the shadow iterates are
shadow_s = -grad f*(y) and shadow_y = -grad f(s). On the central path s = mu shadow_s and y = mu shadow_y.

The scaling H is symmetric, positive definite, and takes y to s and shadow_y to shadow_s (Tuncel 2001):

    H = s s' / s'y + delta_s delta_s' / delta_s'delta_y + mu w w' / w'G^-1 w,    mu = s'y / 3
    delta_s = s - mu shadow_s,   delta_y = y - mu shadow_y,   w = y x shadow_y,   G = the Hessian of f* at y

The last term is the rest of mu G after a BFGS update, which acts only along w, orthogonal to y and shadow_y (Dahl and
Andersen 2021). Written this way it is positive by construction, whereas the usual difference of matrices cancels.
Near the central path delta_s and delta_y vanish, and H = mu G is used.

A point is a tuple of three vectors of lanes; a symmetric matrix is a tuple (11, 12, 22, 13, 23, 33).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convexlayer.interior_point.lanes.layout import Block, Point, Scaling
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import absolute, any_lane, load, minimum, sqrt, store, where

__all__ = ["BACKTRACK", "MIN_STEP", "at", "backtracking", "cross", "plus", "store_point", "store_scaling"]

BACKTRACK = 0.8
"""Backtracking factor of the line search (Clarabel's linesearch_backtrack_step)."""

MIN_STEP = 1e-5
"""Step length below which an element counts as stalled, and the line search gives up. (Clarabel's
min_terminate_step_length is 1e-4; smaller values cost iterations, larger ones give up elements that would recover.)"""

MAX_BACKTRACKS = 100
"""Maximum number of backtracking steps; 0.8^100 = 2e-10 is below MIN_STEP."""

OFF_CENTRE = 1.5e-8
"""The rank-three scaling is used where delta_s'delta_y / s'y, which is 0 on the central path, exceeds this: the square
root of the machine epsilon."""

PARALLEL = 1e-14
"""It also requires delta_s'delta_y above this multiple of |delta_s| |delta_y|, about 50 rounding errors, which below it
decide the sign."""


@inner_function
def at(lanes: Any, block: Block, x: Array) -> Any:
    """The block's rows of x as a point."""
    return load(lanes, x, block.start), load(lanes, x, block.start + 1), load(lanes, x, block.start + 2)


@inner_function
def store_point(block: Block, x: Array, point: Any) -> None:
    """Store a point in the block's rows of x."""
    store(x, block.start, point[0])
    store(x, block.start + 1, point[1])
    store(x, block.start + 2, point[2])


@inner_function
def dot(x: Any, y: Any) -> Any:
    """x'y."""
    return x[0] * y[0] + x[1] * y[1] + x[2] * y[2]


@inner_function
def plus(x: Any, factor: Any, y: Any) -> Any:
    """x + factor y."""
    return x[0] + factor * y[0], x[1] + factor * y[1], x[2] + factor * y[2]


@inner_function
def cross(y: Any, x: Any) -> Any:
    """The cross product y x x, orthogonal to y to rounding even if y and x are almost parallel."""
    w = y[1] * x[2] - y[2] * x[1], y[2] * x[0] - y[0] * x[2], y[0] * x[1] - y[1] * x[0]
    return plus(w, -dot(w, y) / dot(y, y), y)


@inner_function
def store_scaling(
    lanes: Any, block: Block, scaling: Scaling, s: Any, y: Any, shadow_s: Any, shadow_y: Any, left: Any, w: Any, G: Any
) -> None:
    """Write H of a block: the rank-three scaling, or mu G where that is not well defined.

    ``scaling.ok`` is set to 0 in lanes where H is not finite or s'y is not positive.

    Args:
        lanes: a tuple of V floats.
        block: the block.
        scaling: out, its H and ok.
        s: point of K.
        y: point of K*.
        shadow_s: -grad f*(y).
        shadow_y: -grad f(s).
        left: w'G^-1 w.
        w: y x shadow_y, up to a factor.
        G: the Hessian of f* at y.
    """
    sy = dot(s, y)
    mu = sy * (1.0 / 3.0)
    delta_s, delta_y = plus(s, -mu, shadow_s), plus(y, -mu, shadow_y)
    # Make them orthogonal to y and s to rounding, so that H y = s even if the gradients lose digits near the boundary.
    delta_s = plus(delta_s, -dot(delta_s, y) / sy, s)
    delta_y = plus(delta_y, -dot(delta_y, s) / sy, y)
    between = dot(delta_s, delta_y)
    noise = PARALLEL * sqrt(dot(delta_s, delta_s) * dot(delta_y, delta_y))
    primal_dual = (between > OFF_CENTRE * sy) & (between > noise) & (left > 0.0)
    c_s, c_delta, c_w = 1.0 / sy, 1.0 / between, mu / left
    total = 0.0 * sy
    for j in range(3):
        for i in range(j + 1):
            entry = c_s * s[i] * s[j] + c_delta * delta_s[i] * delta_s[j] + c_w * w[i] * w[j]
            entry = where(primal_dual, entry, mu * G[j * (j + 1) // 2 + i])
            store(scaling.packed, block.packed + j * (j + 1) // 2 + i, entry)
            total = total + 0.0 * entry
    defined = (sy > 0.0) & (total >= 0.0)
    store(scaling.ok, 0, where(defined, load(lanes, scaling.ok, 0), 0.0))


def backtracking(is_interior: Callable[[Any, float], Any], is_interior_dual: Callable[[Any, float], Any]) -> Any:
    """Build ``shorten_step`` of a cone: a backtracking line search, as a kernel.

    One kernel per cone, because Numba cannot cache a kernel that takes another kernel as an argument.

    Args:
        is_interior: (point, exponent) -> mask of the lanes whose point is in the interior of K.
        is_interior_dual: the same for K*.
    """
    shorten, shorten_dual = _backtracking(is_interior), _backtracking(is_interior_dual)

    @inner_function
    def shorten_step(lanes: Any, block: Block, scaling: Scaling, point: Point, direction: Point, alpha: Array) -> None:
        """Reduce alpha (V,) to at most 1 and until s + alpha ds and y + alpha dy are interior; 0 below MIN_STEP."""
        length = minimum(load(lanes, alpha, 0), 1.0)
        length = shorten(lanes, block, point.s, direction.s, length)
        store(alpha, 0, shorten_dual(lanes, block, point.y, direction.y, length))

    return shorten_step


def _backtracking(is_interior: Callable[[Any, float], Any]) -> Any:
    @inner_function
    def shorten(lanes: Any, block: Block, x: Array, dx: Array, alpha: Any) -> Any:
        """The first of alpha, 0.8 alpha, 0.64 alpha ... with x + alpha dx in the interior; 0 below MIN_STEP."""
        for _ in range(MAX_BACKTRACKS):
            outside = ~is_interior(plus(at(lanes, block, x), alpha, at(lanes, block, dx)), block.exponent)
            if not any_lane(outside & (alpha > 0.0)):
                break
            alpha = where(outside, BACKTRACK * alpha, alpha)
            alpha = where(alpha >= MIN_STEP, alpha, 0.0)
        return where(absolute(alpha) <= 1.0, alpha, 0.0)

    return shorten
