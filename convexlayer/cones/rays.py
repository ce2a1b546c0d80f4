"""Helpers of the three-dimensional cones, above all the distance from an interior point to the boundary.

    dist(x, boundary of C) = min { <x, n> : n a unit vector on an extreme ray of the dual of C }

The extreme rays form a curve n(tau), tau over the real line, so this is a minimisation over one number; it may have
several local minima, and a grid with a few rounds of refinement gives the minimum itself to rounding. That takes 300
evaluations, so points that are plainly far from the boundary are found first: if x - lambda c is in C, then so is a
ball around x of lambda times the radius of one around c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import device

from convexlayer.cones.base import Array, namespace

__all__ = ["boundary_distance", "cross_product", "depth_bound"]

_FAR = np.geomspace(48.0, 1e13, 40)
_GRID = np.concatenate((-_FAR[::-1], np.linspace(-40.0, 40.0, 81), _FAR))
_FRACTIONS = np.linspace(0.0, 1.0, 17)
_ROUNDS = 8
_SHARES = 0.5 ** np.arange(9)


def boundary_distance(x: Array, products: Callable[[Array], Array]) -> Array:
    """Minimum over tau of the inner products.

    Args:
        x: the points, (points, 3).
        products: gives <x, n(tau)> of each point for tau of shape (grid,) or (points, grid), as (points, grid).

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
        inside: whether points (..., 3) are known to be in the cone, (...).
        centre: a unit vector in its interior.
        radius: of a ball around the centre, in the cone.

    Returns:
        (points,).
    """
    xp = namespace(x)
    shares, c = (xp.asarray(constant, device=device(x)) for constant in (_SHARES, np.array(centre)))
    steps = xp.linalg.vector_norm(x, axis=-1)[:, None] * shares
    found = inside(x[:, None, :] - steps[..., None] * c)
    return radius * xp.max(xp.where(found, steps, 0.0), axis=-1)


def cross_product(xp: Any, x: Array, y: Array) -> Array:
    """The cross products (..., 3) of x and y, several times quicker than NumPy's on few points."""
    x1, x2, x3 = x[..., 0], x[..., 1], x[..., 2]
    y1, y2, y3 = y[..., 0], y[..., 1], y[..., 2]
    return xp.stack((x2 * y3 - x3 * y2, x3 * y1 - x1 * y3, x1 * y2 - x2 * y1), axis=-1)
