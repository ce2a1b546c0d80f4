"""Central differences with Richardson extrapolation, and an estimate of their error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from convexlayer.program import Array, IndexArray

__all__ = ["Difference", "Groups", "differentiate"]

STEPS = tuple(4.0**-k for k in range(2, 13))
"""Steps, relative to the scale of the argument: from those at which smooth functions have no rounding errors, to those
at which a kink nearby is out of reach."""

MAX_ORDER = 4
"""Extrapolations, which remove the errors of order h^2, h^4, ..., h^8."""

NOT_DECREASING = 0.5
"""Ratio of consecutive differences of the one-sided derivatives from which there is a kink. It is 1/4 for a smooth
function, as the step is, and 1 at a kink."""


@final
@dataclass(frozen=True, eq=False)
class Groups:
    """Consecutive entries of a vector (K,) that are compared on one scale.

    Attributes:
        sizes: number of entries of each, positive, (G,).
    """

    sizes: IndexArray

    def largest(self, v: Array) -> Array:
        """Maximum norm of each group, (K,) -> (G,)."""
        starts = np.cumsum(self.sizes) - self.sizes
        return np.asarray(np.maximum.reduceat(np.abs(v), starts)) if len(starts) else np.zeros(0)

    def spread(self, g: NDArray[Any]) -> NDArray[Any]:
        """Each group's value at its entries, (G,) -> (K,)."""
        return np.repeat(g, self.sizes)


@final
@dataclass(frozen=True, eq=False)
class Difference:
    """A directional derivative by differences.

    Attributes:
        derivative: the estimate, (K,).
        error: estimated error of each group, (G,); infinite if no two steps could be evaluated.
        jump: difference of the derivatives on both sides if it does not vanish with the step, else 0, (G,).
    """

    derivative: Array
    error: Array
    jump: Array


def differentiate(evaluate: Callable[[float], Array | None], value: Array, groups: Groups, rtol: float) -> Difference:
    """Differentiate a curve at t = 0.

    With T[i][0] the central difference of step h_i = h_0 / 4^i and T[i][j] = T[i][j-1] + (T[i][j-1] - T[i-1][j-1]) /
    (16^j - 1), the error of T[i][j] is estimated by its distances from T[i][j-1] and T[i-1][j-1], plus rounding, as
    Ridders does (Advances in Engineering Software 4 (1982) 75-76). Each group takes the entry of the table whose error
    is smallest. Steps shrink until all errors are small.

    Args:
        evaluate: t -> the curve's point (K,), None where it cannot be evaluated; such a step is left out.
        value: the curve's point at t = 0.
        groups: the groups of entries.
        rtol: error, relative to the largest derivative of the group, that needs no smaller step.
    """
    count = len(groups.sizes)
    best = Difference(np.zeros_like(value), np.full(count, np.inf), np.zeros(count))
    previous: list[Array] = []
    previous_jump = np.full(count, np.inf)
    for h in STEPS:
        above, below = evaluate(h), evaluate(-h)
        if above is None or below is None:
            previous = []
            continue
        row = [(above - below) / (2.0 * h)]
        for j, coarse in enumerate(previous[:MAX_ORDER], start=1):
            row.append(row[-1] + (row[-1] - coarse) / (16.0**j - 1.0))
        jump = groups.largest(above - 2.0 * value + below) / h
        rounding = np.finfo(np.float64).eps * groups.largest(np.maximum(np.abs(above), np.abs(below))) / h
        kink = np.where(jump >= NOT_DECREASING * previous_jump, jump, 0.0)
        for j in range(1, len(row)):
            distance = np.maximum(np.abs(row[j] - row[j - 1]), np.abs(row[j] - previous[j - 1]))
            best = _better(best, Difference(row[j], groups.largest(distance) + rounding, kink), groups)
        previous, previous_jump = row, jump
        if np.all(best.error <= rtol * groups.largest(best.derivative)):
            break
    return best


def _better(old: Difference, new: Difference, groups: Groups) -> Difference:
    """The estimate with the smaller error, group by group."""
    taken = new.error < old.error
    return Difference(
        np.where(groups.spread(taken), new.derivative, old.derivative),
        np.where(taken, new.error, old.error),
        np.where(taken, new.jump, old.jump),
    )
