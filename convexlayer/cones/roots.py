"""Roots of many increasing functions at once, by Newton's method safeguarded by bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convexlayer.cones.base import Array

__all__ = ["MAX_ITERATIONS", "STEP_ABSTOL", "STEP_RELTOL", "UNDEFINED_VALUE", "increasing_root"]

UNDEFINED_VALUE = 1e300
"""Function value to return for undefined points right of the root. Finite, because automatic differentiation through
Newton steps that bisection replaced would otherwise give NaN."""

MAX_ITERATIONS = 100
"""Maximum number of steps: enough for bisection alone to reach rounding."""

STEP_ABSTOL, STEP_RELTOL = 1e-8, 1e-13
"""A root x has converged if a Newton step is at most STEP_ABSTOL + STEP_RELTOL abs(x). The error left is about the
square of the step, so the first is near the square root of the machine epsilon; the second allows for rounding."""


def increasing_root(
    xp: Any, function: Callable[[Array], tuple[Array, Array]], x: Array, low: Array, high: Array
) -> Array:
    """The root of each of many increasing functions.

    A step that leaves the bracket is replaced by bisection. The last step is a Newton step, so that its error is about
    the square of its length, and automatic differentiation through it gives the derivative of the root. Converged roots
    are not updated any more, so that they do not depend on the other functions.

    Args:
        xp: the array namespace.
        function: x -> (value, slope), elementwise, with slope > 0; the value is UNDEFINED_VALUE where undefined,
            which must be right of the root.
        x: starting points.
        low: lower ends of the brackets.
        high: upper ends of the brackets.

    Returns:
        The roots, of the shape of x; NaN where the function is NaN.
    """
    moving = xp.ones_like(x, dtype=xp.bool)
    for _ in range(MAX_ITERATIONS):
        value, slope = function(x)
        newton = x - value / slope
        low, high = xp.where(value < 0, x, low), xp.where(value > 0, x, high)
        far = xp.abs(newton - x) > STEP_ABSTOL + STEP_RELTOL * xp.abs(x)
        outside = far & ((newton <= low) | (newton >= high))
        x = xp.where(moving, xp.where(outside, 0.5 * (low + high), newton), x)
        moving = moving & far
        if not xp.any(moving):
            break
    return x
