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

WORTHWHILE = 1e-13
"""An element below this is not polished further."""


def polish(system: ReducedSystem, program: ConeProgram, solution: Solution, *, steps: int = 6) -> Solution:
    """Semismooth Newton steps on the residual map, at w = y - s, for the elements with a point that needs it.

    Each step solves the derivative's own system at the current point and moves to w + dy - ds, from where y and s are
    projections. A step is kept only where the worst of the four residuals falls, so no element gets worse.
    """
    worst = solution.residuals(program).worst
    certificates = np.array([status in (Status.INFEASIBLE, Status.UNBOUNDED) for status in solution.status])
    active = np.flatnonzero(np.isfinite(worst) & (worst > NEEDED) & ~certificates)
    x, y, s = solution.x, solution.y, solution.s
    for _ in range(steps):
        if not len(active):
            break
        part = program.select(active)
        here = _complementary(system, solution, x[active], y[active] - s[active])
        step = ExactDifferentiator(system, part, here).newton_step()
        there = _complementary(system, solution, here.x + step.x, here.y - here.s + step.y - step.s)
        residual = there.residuals(part).worst
        better = np.isfinite(residual) & (residual < worst[active])
        if solution.x is x:
            x, y, s = x.copy(), y.copy(), s.copy()
        kept = active[better]
        x[kept], y[kept], s[kept] = there.x[better], there.y[better], there.s[better]
        halved = better & (residual < 0.5 * worst[active])
        worst[kept] = residual[better]
        active = active[halved & (residual > WORTHWHILE)]
    return replace(solution, x=x, y=y, s=s)


def _complementary(system: ReducedSystem, solution: Solution, x: Array, w: Array) -> Solution:
    """The point at x whose y and s are the projections of w: exactly complementary, inactive rows say nothing."""
    y = system.cone.project_dual(np.where(np.isfinite(w), w, 0.0))
    return replace(solution, x=x, y=y, s=y - w)
