"""Geometry of the three-dimensional cones, mainly the distance from an interior point to the boundary.

    dist(x, boundary of C) = min { <x, n> : n a unit vector on an extreme ray of the dual of C }

The extreme rays form a curve n(tau), tau real, so this is a one-dimensional minimisation. It may have several local
minima; a grid with some rounds of refinement gives the minimum to rounding, in 300 evaluations. Points far from the
boundary are therefore detected first: if x - lambda c is in C, and a ball of radius r around c too, then so is the ball
of radius lambda r around x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import device

from convexlayer.cones.base import Array, namespace

__all__ = ["boundary_distance", "cross_product", "depth_bound"]

# Initial grid of tau: unit steps up to 40, geometric steps beyond.
_FAR = np.geomspace(48.0, 1e13, 40)
_GRID = np.concatenate((-_FAR[::-1], np.linspace(-40.0, 40.0, 81), _FAR))
# Each round divides the two intervals around the minimum in 16, that is shortens them by a factor of 8.
_FRACTIONS = np.linspace(0.0, 1.0, 17)
_ROUNDS = 8
DEPTH_STEPS = 9
"""Number of values of lambda / norm(x) that ``depth_bound`` tries: 1, 1/2, 1/4, ..."""


def boundary_distance(x: Array, products: Callable[[Array], Array]) -> Array:
    """Minimum over tau of the inner products <x, n(tau)>.

    Args:
        x: the points, (points, 3).
        products: computes <x, n(tau)> for tau of shape (grid,) or (points, grid), as (points, grid).

    Returns:
        (points,).
    """
    xp = namespace(x)
    grid = xp.asarray(_GRID, device=device(x))
    values = products(grid)
    best = xp.argmin(values, axis=-1)
    low = xp.take(grid, xp.clip(best - 1, 0, len(_GRID) - 1))
    high = xp.take(grid, xp.clip(best + 1, 0, len(_GRID) - 1))
    fractions = xp.asarray(_FRACTIONS, device=device(x))
    last = len(_FRACTIONS) - 1
    for _ in range(_ROUNDS):
        taus = low[:, None] + (high - low)[:, None] * fractions
        values = products(taus)
        best = xp.argmin(values, axis=-1)[:, None]
        low = xp.take_along_axis(taus, xp.clip(best - 1, 0, last), axis=-1)[:, 0]
        high = xp.take_along_axis(taus, xp.clip(best + 1, 0, last), axis=-1)[:, 0]
    return xp.min(values, axis=-1)


def depth_bound(x: Array, inside: Callable[[Array], Array], centre: tuple[float, ...], radius: float) -> Array:
    """A lower bound of the distance to the boundary of a convex cone: 0, or at least radius / 256 norm(x).

    Args:
        x: the points, (points, 3).
        inside: membership test of the cone, (..., 3) -> (...).
        centre: a unit vector in the interior of the cone.
        radius: radius of a ball around the centre that the cone contains.

    Returns:
        (points,).
    """
    xp = namespace(x)
    shares, c = (
        xp.asarray(constant, device=device(x)) for constant in (0.5 ** np.arange(DEPTH_STEPS), np.array(centre))
    )
    steps = xp.linalg.vector_norm(x, axis=-1)[:, None] * shares
    found = inside(x[:, None, :] - steps[..., None] * c)
    return radius * xp.max(xp.where(found, steps, 0.0), axis=-1)


def cross_product(xp: Any, x: Array, y: Array) -> Array:
    """The cross products (..., 3) of x and y, several times faster than NumPy's for few points."""
    x1, x2, x3 = x[..., 0], x[..., 1], x[..., 2]
    y1, y2, y3 = y[..., 0], y[..., 1], y[..., 2]
    return xp.stack((x2 * y3 - x3 * y2, x3 * y1 - x1 * y3, x1 * y2 - x2 * y1), axis=-1)
