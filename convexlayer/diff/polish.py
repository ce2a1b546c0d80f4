"""Newton polish: from a solver's accuracy to that of double precision, before anything is differentiated."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np

from convexlayer.certificate import ComplementaryPoint, scales_at
from convexlayer.diff.reduced import ReducedFactor, ReducedSystem
from convexlayer.program import Array, ConeProgram, IndexArray, max_norm
from convexlayer.solution import Residuals, Solution, Status

__all__ = ["Polished", "polish", "polished"]

NEEDED = 1e-9
"""Elements whose backward error and residuals are at most this are left alone."""

CONVERGED = 1e-9
"""A step that changes nothing by more than this share is an element's last: the next would change its square."""

NEAR, PROGRESS, PATIENCE = 1e-6, 0.5, 2
"""Where backward errors are below NEAR, so many steps not shorter by PROGRESS than the shortest are the last."""

UNTOUCHED = (Status.INFEASIBLE, Status.UNBOUNDED, Status.ITERATION_LIMIT, Status.TIME_LIMIT)
"""What has no solution near it, or was stopped by the caller's wish."""

ALL_FROM = 0.5
"""Share of elements in need, from which the first step factorises all of them, for the derivative to come."""

ASTRAY = 10.0
"""Polish does not make x so many times larger than the solver's: then there is nothing near."""

CANCELLED = 1e-11
"""A variable of which a step leaves no more than this share is 0: the rest is rounding."""

TRUST = (2.0**10, 2.0**-10, 2.0**20, 2.0**-20)
"""Factors of c for further attempts: to trust y, or s, where the solver has got only one of them right."""

REBALANCED = 4.0
"""Blocks whose balance has changed by more than this are balanced anew."""


@final
class Polished(NamedTuple):
    """What polish made of a batch.

    Attributes:
        solution: the best points.
        point: the complementary points there.
        factor: of the whole batch, where there is one: the derivative's own if the active set did not change after it
            was made (``ReducedFactor.serves`` knows).
    """

    solution: Solution
    point: ComplementaryPoint
    factor: ReducedFactor | None


def polish(
    system: ReducedSystem, program: ConeProgram, solution: Solution, *, needed: float = NEEDED, steps: int = 16
) -> Solution:
    """The solution of ``polished``."""
    return polished(system, program, solution, needed=needed, steps=steps).solution


def polished(
    system: ReducedSystem,
    program: ConeProgram,
    solution: Solution,
    *,
    point: ComplementaryPoint | None = None,
    residuals: Residuals | None = None,
    needed: float = NEEDED,
    steps: int = 16,
    deadline: float = np.inf,
) -> Polished:
    """Semismooth Newton steps on the residual map, at w = c y - s / c, for the elements with a point that needs it.

    It is needed where the backward error of the point, or the worst of its residuals (computed unless given), is more
    than ``needed``. Points at which a solver met a limit are left as they are, and no step is begun after the
    ``deadline``, as ``time.perf_counter`` counts.

    Each step solves the derivative's own system at the current point and moves to w + c dy - ds / c, from where y and s
    are projections. The best point of each element is returned, by its backward error (at the start that of the
    complementary ``point`` near the solution), so none gets worse. The solution itself is returned where none needs it.
    """
    point = point or solution.complementary(program)
    first, residuals = point.backward, residuals or solution.residuals(program, point)
    rough = np.maximum(first, residuals.worst)
    if float(rough.max(initial=0.0)) <= needed:
        return Polished(solution, point, None)
    untouched = np.array([status in UNTOUCHED for status in solution.status], dtype=bool)
    need = np.isfinite(first) & (rough > needed) & ~untouched
    active = np.flatnonzero(need)
    if not len(active):
        return Polished(solution, point, None)
    if len(active) >= ALL_FROM * program.batch and np.all(np.isfinite(first)):
        active = np.arange(program.batch)
    part = program if len(active) == program.batch else program.select(active)
    run = _Run(system, part, solution.x[active], solution.y[active], solution.s[active], steps, deadline)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # far from a solution, where it is given up
        run.go(point if part is program else run.near(np.arange(len(active))))
        for trust in TRUST:
            stuck = np.flatnonzero(need[active] & ~(run.backward <= NEAR))
            if not len(stuck):
                break
            run.go(run.again(stuck, trust), stuck)
    x, y, s = solution.x.copy(), solution.y.copy(), solution.s.copy()
    improved = need[active] & (run.backward <= NEAR)
    kept = active[improved]
    x[kept], y[kept], s[kept] = run.x[improved], run.y[improved], run.s[improved]
    better = replace(solution, x=x, y=y, s=s)
    return Polished(better, better.complementary(program), run.factor if part is program else None)


@final
class _Run:
    """Newton steps from given points, and the best complementary points found on the way.

    Attributes:
        x: the best points, (elements, n), ...
        y: (elements, m), ...
        s: (elements, m).
        backward: their backward errors, (elements,).
        factor: the first one of all elements.
    """

    def __init__(
        self, system: ReducedSystem, program: ConeProgram, x: Array, y: Array, s: Array, steps: int, deadline: float
    ) -> None:
        self._system, self._program, self._start = system, program, (x, y, s)
        self._steps, self._deadline = steps, deadline
        self.x, self.y, self.s = x.copy(), y.copy(), s.copy()
        self._last = x.copy(), y.copy(), s.copy()
        self.backward = np.full(len(x), np.inf)
        self.factor: ReducedFactor | None = None

    def near(self, index: IndexArray) -> ComplementaryPoint:
        """The complementary points from which elements start."""
        return ComplementaryPoint.near(self._program.select(index), *(v[index] for v in self._start))

    def again(self, index: IndexArray, trust: float) -> ComplementaryPoint:
        """Where elements start that have not arrived.

        What is right stays where the last attempt left it; the rest starts once more from the solver's point, with its
        c multiplied by ``trust``.
        """
        program = self._program.select(index)
        x, y, s = (v[index] for v in self._start)
        last = ComplementaryPoint.near(program, *(v[index] for v in self._last))
        wrong_x, wrong_rows = last.wrong(program, NEAR)
        x, y, s = np.where(wrong_x, x, last.x), np.where(wrong_rows, y, last.y), np.where(wrong_rows, s, last.s)
        return ComplementaryPoint.near(program, x, y, s, trust=np.where(wrong_rows, trust, 1.0))

    def go(self, here: ComplementaryPoint, index: IndexArray | None = None) -> None:
        """Step from these points of the elements at these positions (all unless given), each as long as it pays."""
        active = np.arange(len(self.x)) if index is None else index
        part = self._program if index is None else self._program.select(index)
        shortest, patience = np.full(len(active), np.inf), np.full(len(active), float(PATIENCE))
        self._keep(active, here)
        for _ in range(self._steps):
            if time.perf_counter() >= self._deadline:
                break
            factor = self._system.factor(part, here)
            self.factor = self.factor or factor
            here, change = _step(part, here, factor)
            self._keep(active, here)
            patience -= (self.backward[active] <= NEAR) & ~(change < PROGRESS * shortest)
            shortest = np.minimum(shortest, change)
            converged = (change <= CONVERGED) & (here.backward <= NEAR)
            going = ~converged & (patience > 0) & np.isfinite(here.backward)
            if not np.any(going):
                break
            if not np.all(going):
                active, part = active[going], part.select(going)
                shortest, patience = shortest[going], patience[going]
                here = here.select(np.flatnonzero(going))

    def _keep(self, active: IndexArray, point: ComplementaryPoint) -> None:
        for last, new in zip(self._last, (point.x, point.y, point.s), strict=True):
            last[active] = new
        astray = max_norm(point.x) > ASTRAY * np.maximum(max_norm(self._start[0][active]), 1.0)
        better = ((point.backward < self.backward[active]) | (point.backward <= NEEDED)) & ~astray
        kept = active[better]
        self.x[kept], self.y[kept], self.s[kept] = point.x[better], point.y[better], point.s[better]
        self.backward[kept] = point.backward[better]


def _step(program: ConeProgram, here: ComplementaryPoint, factor: ReducedFactor) -> tuple[ComplementaryPoint, Array]:
    """The point after one semismooth Newton step on (dual, primal) in (x, w), and how much it changed, (B,)."""
    A = program.structure.A
    dx, dy = factor.newton(-here.dual, -here.primal)
    ds = -(A.matvec(program.A, dx) + here.primal)
    c, old = here.scales.c, here.cones.w
    dw = c * dy - ds / c
    change = here.relative_change(dx, dw)
    x, w = here.x + dx, old + dw
    x[np.abs(x) <= CANCELLED * np.abs(here.x)] = 0.0
    flat = slice(here.cones.cone.free, here.cones.cone.flat)
    w[:, flat][np.abs(w[:, flat]) <= CANCELLED * np.abs(old[:, flat])] = 0.0
    finite = np.isfinite(w)
    if not np.all(finite):
        x[~np.all(finite, axis=1)] = np.nan  # a point that is worse than any
        w = np.where(finite, w, 0.0)
    cone = here.cones.cone
    cones = cone.at(w)
    y, s = cones.projection / c, (cones.projection - w) * c
    scales = scales_at(program, cone, x, y, s)
    moved = np.any(np.abs(np.log2(scales.c / c)) > np.log2(REBALANCED), axis=1, keepdims=True)
    if np.any(moved):
        w = np.where(moved, scales.w(y, s), w)
        return ComplementaryPoint.at(program, x, replace(scales, c=np.where(moved, scales.c, c)), cone.at(w)), change
    return ComplementaryPoint.at(program, x, replace(scales, c=c), cones), change
