"""Newton polish: from a solver's accuracy to that of double precision, before anything is differentiated."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from convexlayer.cones import ProductPoint
from convexlayer.diff.reduced import ReducedFactor, ReducedSystem
from convexlayer.program import Array, ConeProgram
from convexlayer.solution import Residuals, Solution, Status, residuals_of

__all__ = ["Polished", "polish", "polished"]

NEEDED = 1e-9
"""Elements whose worst residual is at most this are left alone."""

CONVERGED = 1e-12
"""An element below this is not polished further."""

PATIENCE = 1e3
"""While the active set is still changing the residual may rise for a step or two; beyond this factor it is given up."""

UNTOUCHED = (Status.INFEASIBLE, Status.UNBOUNDED, Status.ITERATION_LIMIT, Status.TIME_LIMIT)
"""What has no solution near it, or was stopped by the caller's wish."""

ALL_FROM = 0.5
"""Share of elements in need, from which the first step factorises all of them, for the derivative to come."""


@final
@dataclass(frozen=True, eq=False)
class Polished:
    """What polish made of a batch.

    Attributes:
        solution: the best points.
        factor: of the whole batch, where there is one: the derivative's own if the active set did not change after it
            was made (``ReducedFactor.serves`` knows).
        at: the cones at the solution's w = y - s, where they have been asked there.
    """

    solution: Solution
    factor: ReducedFactor | None
    at: ProductPoint | None


def polish(
    system: ReducedSystem, program: ConeProgram, solution: Solution, *, needed: float = NEEDED, steps: int = 8
) -> Solution:
    """The solution of ``polished``."""
    return polished(system, program, solution, needed=needed, steps=steps).solution


def polished(
    system: ReducedSystem,
    program: ConeProgram,
    solution: Solution,
    *,
    residuals: Residuals | None = None,
    at: ProductPoint | None = None,
    needed: float = NEEDED,
    steps: int = 8,
    deadline: float = np.inf,
) -> Polished:
    """Semismooth Newton steps on the residual map, at w = y - s, for the elements with a point that needs it.

    Points at which a solver met a limit are left as they are, and no step is begun after the ``deadline``, as
    ``time.perf_counter`` counts.

    Each step solves the derivative's own system at the current point and moves to w + dy - ds, from where y and s are
    projections. The best point of each element is returned, by the worst of its four residuals (those of the solution
    are computed unless given, with the cones ``at`` it), so none gets worse. The solution itself is returned where none
    needs it.
    """
    at = at or solution.at(program.structure.cones)
    residuals = residuals or solution.residuals(program, at)
    if residuals.largest <= needed:
        return Polished(solution, None, at)
    first = residuals.worst
    untouched = np.array([status in UNTOUCHED for status in solution.status], dtype=bool)
    need = np.isfinite(first) & (first > needed) & ~untouched
    active = np.flatnonzero(need)
    if not len(active):
        return Polished(solution, None, at)
    if len(active) >= ALL_FROM * program.batch and np.all(np.isfinite(first)):
        active = np.arange(program.batch)
    best, common = first.copy(), None
    x, y, s = solution.x.copy(), solution.y.copy(), solution.s.copy()
    part = program if len(active) == program.batch else program.select(active)
    whole = len(active) == program.batch
    here = _Point.at(part, x[active], at if whole else system.cone.at(at.w[active]))
    last: ProductPoint | None = at
    for _ in range(steps):
        if time.perf_counter() >= deadline:
            break
        factor = system.factor(part, here.cones.derivative)
        if part is program and common is None:
            common = factor
        there = here.step(system, part, factor)
        better = need[active] & (there.worst < best[active])
        kept = active[better]
        x[kept], y[kept], s[kept] = there.x[better], there.y[better], there.s[better]
        if np.any(better):
            last = there.cones if whole and np.all(better) else None
        stalled = ~better & (best[active] < np.minimum(needed, first[active]))
        best[kept] = there.worst[better]
        going = need[active] & (best[active] > CONVERGED) & (there.worst < PATIENCE * first[active]) & ~stalled
        if not np.any(going):
            break
        here = there
        if not np.all(going):
            active, part, whole = active[going], part.select(going), False
            here = _Point.at(part, there.x[going], system.cone.at(there.cones.w[going]))
    return Polished(replace(solution, x=x, y=y, s=s), common, last)


@final
@dataclass(frozen=True, eq=False)
class _Point:
    """Exactly complementary points: y and s are the projections of w, so that inactive rows say nothing.

    Attributes:
        x: (B, n).
        cones: the cones at w.
        y: (B, m).
        s: (B, m).
        dual: Px + q + A'y, (B, n).
        primal: Ax + s - b, (B, m).
        worst: that of ``Residuals``, (B,); the natural one is zero.
    """

    x: Array
    cones: ProductPoint
    y: Array
    s: Array
    dual: Array
    primal: Array
    worst: Array

    @staticmethod
    def at(program: ConeProgram, x: Array, cones: ProductPoint) -> _Point:
        """The point at x, and the w of the cones, of each program."""
        y = cones.projection
        s = y - cones.w
        residuals, dual, primal = residuals_of(program, x, y, s, cones)
        return _Point(x, cones, y, s, dual, primal, residuals.worst)

    def step(self, system: ReducedSystem, program: ConeProgram, factor: ReducedFactor) -> _Point:
        """The point after one semismooth Newton step on (dual, primal) in (x, w)."""
        dx, dy = factor.newton(-self.dual, -self.primal)
        ds = -(program.structure.A.matvec(program.A, dx) + self.primal)
        x, w = self.x + dx, self.cones.w + dy - ds
        finite = np.isfinite(w)
        if not np.all(finite):
            x[~np.all(finite, axis=1)] = np.nan  # a point that is worse than any
            w = np.where(finite, w, 0.0)
        return _Point.at(program, x, system.cone.at(w))
