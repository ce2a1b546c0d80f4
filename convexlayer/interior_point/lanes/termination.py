"""The termination test of an element in lanes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convexlayer.interior_point.lanes.cones.nonsymmetric import MIN_STEP
from convexlayer.interior_point.lanes.steps import (
    ALPHA,
    ATY_SIZE,
    BY,
    KAPPA,
    PRODUCT,
    PX_SIZE,
    QX,
    RAY_SIZE,
    TAU,
    WORST,
)
from convexlayer.program import Array
from convexlayer.runtime.inner_function import inner_function

__all__ = [
    "INFEASIBLE",
    "ITERATION_LIMIT",
    "OPTIMAL",
    "STALLED",
    "UNBOUNDED",
    "UNDECIDED",
    "Limits",
    "termination_status",
]

OPTIMAL, INFEASIBLE, UNBOUNDED, STALLED, ITERATION_LIMIT = range(5)
"""Status codes of elements."""

UNDECIDED = -1
"""Result of the test for an element that goes on."""

CERTIFICATE_TOL = 1e-8
"""Relative residual tolerance of an infeasibility certificate (Clarabel's tol_infeas_rel)."""

TAU_KAPPA_RATIO = 1e-2
"""Certificates are tested only while tau is below this many times kappa."""


class Limits(NamedTuple):
    """Termination criteria.

    Attributes:
        target: relative residuals, and natural residual of the nonnegative rows, at which the iterations stop.
        accepted: relative residuals that count as optimal once the iterations make no more progress.
        max_iter: maximum number of iterations of an element.
    """

    target: float
    accepted: float
    max_iter: int


@inner_function
def termination_status(
    v: int, limits: Limits, scalars: Array, measures: Array, least: float, improved: bool, iterations: int
) -> int:
    """Termination test of lane v: OPTIMAL, INFEASIBLE, UNBOUNDED, STALLED, ITERATION_LIMIT or UNDECIDED."""
    tau, kappa, worst, qx, by = scalars[TAU, v], scalars[KAPPA, v], measures[WORST, v], measures[QX, v], measures[BY, v]
    acceptable = least <= limits.accepted
    reached = worst <= limits.target and measures[PRODUCT, v] <= limits.target
    if reached or (acceptable and not improved):
        return OPTIMAL
    if tau < TAU_KAPPA_RATIO * kappa and by < 0.0 and measures[ATY_SIZE, v] <= -CERTIFICATE_TOL * by:
        return INFEASIBLE
    if (
        tau < TAU_KAPPA_RATIO * kappa
        and qx < 0.0
        and max(measures[PX_SIZE, v], measures[RAY_SIZE, v]) <= -CERTIFICATE_TOL * qx
    ):
        return UNBOUNDED
    status = UNDECIDED
    if scalars[ALPHA, v] < MIN_STEP or not np.isfinite(worst):
        status = STALLED
    elif iterations >= limits.max_iter:
        status = ITERATION_LIMIT
    return OPTIMAL if status != UNDECIDED and acceptable else status
