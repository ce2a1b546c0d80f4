"""Newton polish: from a solver's accuracy to that of double precision, before anything is differentiated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from convexlayer.diff.kkt import ExactDifferentiator, ReducedSystem
from convexlayer.program import Array, ConeProgram
from convexlayer.solution import Solution, Status

__all__ = ["polish"]

NEEDED = 1e-9
"""Elements whose worst residual is at most this are left alone."""

CONVERGED = 1e-13
"""An element below this is not polished further."""

PATIENCE = 1e3
"""While the active set is still changing the residual may rise for a step or two; beyond this factor it is given up."""


def polish(
    system: ReducedSystem, program: ConeProgram, solution: Solution, *, needed: float = NEEDED, steps: int = 8
) -> Solution:
    """Semismooth Newton steps on the residual map, at w = y - s, for the elements with a point that needs it.

    Each step solves the derivative's own system at the current point and moves to w + dy - ds, from where y and s are
    projections. The best point of each element is returned, by the worst of its four residuals, so none gets worse.
    """
    first = solution.residuals(program).worst
    certificates = np.array([status in (Status.INFEASIBLE, Status.UNBOUNDED) for status in solution.status], dtype=bool)
    active = np.flatnonzero(np.isfinite(first) & (first > needed) & ~certificates)
    if not len(active):
        return solution
    best = first.copy()
    x, y, s = solution.x.copy(), solution.y.copy(), solution.s.copy()
    here = _complementary(system, solution.select(active), x[active], y[active] - s[active])
    for _ in range(steps):
        part = program.select(active)
        step = ExactDifferentiator(system, part, here).newton_step()
        there = _complementary(system, here, here.x + step.x, here.y - here.s + step.y - step.s)
        residual = there.residuals(part).worst
        better = residual < best[active]
        kept = active[better]
        x[kept], y[kept], s[kept] = there.x[better], there.y[better], there.s[better]
        stalled = ~better & (best[active] < np.minimum(needed, first[active]))
        best[kept] = residual[better]
        going = np.flatnonzero((best[active] > CONVERGED) & (residual < PATIENCE * first[active]) & ~stalled)
        if not len(going):
            break
        active, here = active[going], there.select(going)
    return replace(solution, x=x, y=y, s=s)


def _complementary(system: ReducedSystem, solution: Solution, x: Array, w: Array) -> Solution:
    """The point at x whose y and s are the projections of w: exactly complementary, inactive rows say nothing."""
    y = system.cone.project_dual(np.where(np.isfinite(w), w, 0.0))
    return replace(solution, x=x, y=y, s=y - w)
