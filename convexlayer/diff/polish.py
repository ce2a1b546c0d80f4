"""Newton polish: improves solutions from a solver's accuracy to double precision before they are differentiated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np

from convexlayer.certificate import ComplementaryPoint, held_at_zero, scales_at
from convexlayer.diff.kkt_system import KKTFactor, KKTSystem
from convexlayer.program import Array, ConeProgram, IndexArray, max_norm
from convexlayer.solution import BoolArray, Residuals, Solution
from convexlayer.sparse import Point
from convexlayer.status import Status

__all__ = ["Polished", "polish", "polished"]

POLISH_TOL = 1e-12
"""Backward error up to which complementary points are not polished: close to the limit of double precision."""

CONVERGED = 1e-9
"""Relative change at which Newton's method stops: by quadratic convergence the next step would change its square."""

POLYHEDRAL_TOL = 1e-13
"""Backward error at which Newton's method stops on polyhedral cones once the active set, and so the system, stays the
same."""

NEAR, PROGRESS, PATIENCE = 1e-6, 0.5, 2
"""With a backward error below NEAR, Newton's method stops after PATIENCE steps that are not shorter than PROGRESS times
the shortest one before."""

UNTOUCHED = (Status.INFEASIBLE, Status.UNBOUNDED, Status.ITERATION_LIMIT, Status.TIME_LIMIT)
"""Statuses of elements that are not polished: no solution is near, or the caller's limit stopped the solver."""

FACTOR_ALL_FRACTION = 0.5
"""Fraction of elements that need polish from which the first step factorises all elements, for use by the
derivative."""

MAX_GROWTH = 10.0
"""Growth of norm(x) over the solver's x at which a step is rejected: then no solution is near."""

CANCELLED, NOTHING = 1e-11, 1e-30
"""A variable held at 0 by an active row counts as 0 if a step reduces it to at most CANCELLED times itself, or to at
most NOTHING times the size at which it would dominate a row."""

TRUST = (2.0**10, 2.0**-10, 2.0**20, 2.0**-20)
"""Factors of c in further attempts: large ones keep the solver's y, small ones its s, if only one is accurate."""

REBALANCED = 4.0
"""Factor by which c of a block may differ from the balanced one before it is updated."""


@final
class Polished(NamedTuple):
    """Result of polishing a batch.

    Attributes:
        solution: the best points.
        point: the complementary points there.
        factor: a factor of the whole batch, if one was computed; the derivative can use it if the active set has not
            changed since (see ``KKTFactor.is_factor_of``).
        residuals: the residuals of the solutions, if they were computed.
    """

    solution: Solution
    point: ComplementaryPoint
    factor: KKTFactor | None = None
    residuals: Residuals | None = None


def polish(
    system: KKTSystem, program: ConeProgram, solution: Solution, *, needed: float = POLISH_TOL, steps: int = 16
) -> Solution:
    """Polish solutions; see ``polished``."""
    return polished(system, program, solution, needed=needed, steps=steps).solution


def polished(
    system: KKTSystem,
    program: ConeProgram,
    solution: Solution,
    *,
    needed: float = POLISH_TOL,
    steps: int = 16,
    deadline: float = np.inf,
) -> Polished:
    """Polish solutions by a semismooth Newton method on the residual map in (x, w), w = c y - s / c.

    Elements whose complementary point has a backward error of at most ``needed`` take that point. For the others,
    each step solves the KKT system of the derivative at the current point, moves to w + c dy - ds / c, and projects to
    get y and s. Each element takes its point of smallest backward error, so none gets worse. Elements with a status in
    UNTOUCHED are not changed.

    Args:
        system: the symbolic KKT system.
        program: the programs.
        solution: the solutions.
        needed: backward error up to which no step is made.
        steps: maximum number of Newton steps per attempt.
        deadline: no step starts after this time of ``time.perf_counter``; kernels look at it once per lane group.
    """
    eligible = np.ones(len(solution.status), dtype=bool)
    if not solution.all_optimal:
        eligible[:] = [status not in UNTOUCHED for status in solution.status]
    if system.lanes is None:
        return _portable(system, program, solution, eligible, needed, steps, deadline)
    given = Point(solution.x, solution.y, solution.s)
    found = system.lanes.polish(program, given, eligible, needed=needed, steps=steps, deadline=deadline)
    better = replace(solution, x=found.point.x, y=found.point.y, s=found.point.s)
    stuck, point = found.stuck, found.complementary
    if not len(stuck):
        return Polished(better, point, residuals=Residuals.of(found.residuals, point.backward))
    part, start = program.select(stuck), solution.select(stuck)
    again = _portable(system, part, start, eligible[stuck], needed, steps, deadline)
    return Polished(better.with_elements(stuck, again.solution), point.with_elements(stuck, again.point))


def _portable(
    system: KKTSystem,
    program: ConeProgram,
    solution: Solution,
    eligible: BoolArray,
    needed: float,
    steps: int,
    deadline: float,
) -> Polished:
    """``polished`` in NumPy, with further attempts where the first one fails."""
    point = solution.complementary(program)
    first = point.backward
    need = np.isfinite(first) & (first > needed) & eligible
    taken, factor = (first <= needed) & eligible, None
    active = np.flatnonzero(need)
    if len(active):
        if len(active) >= FACTOR_ALL_FRACTION * program.batch and np.all(np.isfinite(first)):
            active = np.arange(program.batch)
        part = program if len(active) == program.batch else program.select(active)
        newton = _NewtonIteration(
            system, part, solution.x[active], solution.y[active], solution.s[active], steps, deadline
        )
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # diverging steps are discarded
            newton.iterate(point if part is program else point.select(active))
            for trust in TRUST:
                stuck = np.flatnonzero(need[active] & ~(newton.backward <= NEAR))
                if not len(stuck):
                    break
                newton.iterate(newton.restart(stuck, trust), stuck)
        improved = np.flatnonzero(need[active] & (newton.backward <= NEAR))
        taken[active[improved]] = True
        for index, better in newton.best(improved):
            point = point.with_elements(active[index], better)
        factor = newton.factor if part is program else None
    if np.all(taken):
        return Polished(replace(solution, x=point.x, y=point.y, s=point.s), point, factor)
    mine = taken[:, None]
    x, y, s = (
        np.where(mine, best, given)
        for best, given in ((point.x, solution.x), (point.y, solution.y), (point.s, solution.s))
    )
    return Polished(replace(solution, x=x, y=y, s=s), point, factor)


@final
class _NewtonIteration:
    """Newton's method from given points, with a record of all visited complementary points.

    Attributes:
        backward: backward errors of the best visited points, (elements,).
        factor: the factor of the first step.
    """

    def __init__(
        self, system: KKTSystem, program: ConeProgram, x: Array, y: Array, s: Array, steps: int, deadline: float
    ) -> None:
        self._system, self._program, self._start = system, program, (x, y, s)
        self._steps, self._deadline, self._polyhedral = steps, deadline, not system.rows
        self._found: list[tuple[IndexArray, ComplementaryPoint]] = []
        self._best, self._last = np.zeros(len(x), dtype=np.int64), np.zeros(len(x), dtype=np.int64)
        self.backward = np.full(len(x), np.inf)
        self.factor: KKTFactor | None = None

    def best(self, index: IndexArray) -> Iterator[tuple[IndexArray, ComplementaryPoint]]:
        """Iterate over the best points of these elements, in groups with their positions."""
        return self._points(self._best, index)

    def _points(self, which: IndexArray, index: IndexArray) -> Iterator[tuple[IndexArray, ComplementaryPoint]]:
        for number in np.unique(which[index]).tolist():
            active, point = self._found[number]
            mine = index[which[index] == number]
            yield mine, point.select(np.searchsorted(active, mine))

    def restart(self, index: IndexArray, trust: float) -> ComplementaryPoint:
        """The starting point of a further attempt for elements that have not converged.

        Variables and blocks with accurate rows keep their values of the last attempt; the others restart from the
        solver's point, with c multiplied by ``trust``.
        """
        program, start = self._program.select(index), [v[index] for v in self._start]
        last = [np.empty_like(v) for v in start]
        for mine, point in self._points(self._last, index):
            for whole, part in zip(last, (point.x, point.y, point.s), strict=True):
                whole[np.searchsorted(index, mine)] = part
        wrong_x, wrong_rows = ComplementaryPoint.near(program, *last).inaccurate(program, NEAR)
        wrong = wrong_x, wrong_rows, wrong_rows
        again = (np.where(*each) for each in zip(wrong, start, last, strict=True))
        return ComplementaryPoint.near(program, *again, trust=np.where(wrong_rows, trust, 1.0))

    def iterate(self, here: ComplementaryPoint, index: IndexArray | None = None) -> None:
        """Iterate from these points of the elements at ``index`` (default all), each until it converges or stalls."""
        active = np.arange(len(self.backward)) if index is None else index
        part = self._program if index is None else self._program.select(index)
        shortest, patience = np.full(len(active), np.inf), np.full(len(active), float(PATIENCE))
        self._keep(active, here)
        for _ in range(self._steps):
            if time.perf_counter() >= self._deadline:
                break
            factor = self._system.factor(part, here)
            self.factor = self.factor or factor
            there, change = _step(part, here, factor)
            self._keep(active, there)
            patience -= (self.backward[active] <= NEAR) & ~(change < PROGRESS * shortest)
            shortest = np.minimum(shortest, change)
            converged = (change <= CONVERGED) & (there.backward <= NEAR)
            if self._polyhedral:
                settled = np.all(there.derivative.flat == here.derivative.flat, axis=1)
                converged |= settled & (there.backward <= POLYHEDRAL_TOL)
            here, going = there, ~converged & (patience > 0) & np.isfinite(there.backward)
            if not np.any(going):
                break
            if not np.all(going):
                active, part = active[going], part.select(going)
                shortest, patience = shortest[going], patience[going]
                here = here.select(np.flatnonzero(going))

    def _keep(self, active: IndexArray, point: ComplementaryPoint) -> None:
        astray = max_norm(point.x) > MAX_GROWTH * np.maximum(max_norm(self._start[0][active]), 1.0)
        better = ((point.backward < self.backward[active]) | (point.backward <= POLISH_TOL)) & ~astray
        kept = active[better]
        self._last[active] = self._best[kept] = len(self._found)
        self._found.append((active, point))
        self.backward[kept] = point.backward[better]


def _step(program: ConeProgram, here: ComplementaryPoint, factor: KKTFactor) -> tuple[ComplementaryPoint, Array]:
    """One semismooth Newton step on the residuals (dual, primal) in (x, w): the new point, and its change, (B,)."""
    A = program.structure.A
    dx, dy = factor.newton(-here.dual, -here.primal)
    ds = -(A.matvec(program.A, dx) + here.primal)
    c, old = here.scales.c, here.cones.w
    dw = c * dy - ds / c
    change = here.relative_change(dx, dw)
    x, w = here.x + dx, old + dw
    flat = slice(here.cones.cone.zero, here.cones.cone.flat)
    w[:, flat][np.abs(w[:, flat]) <= CANCELLED * np.abs(old[:, flat])] = 0.0
    finite = np.isfinite(w)
    if not np.all(finite):
        x[~np.all(finite, axis=1)] = np.nan  # makes the backward error infinite
        w = np.where(finite, w, 0.0)
    cone = here.cones.cone
    cones = cone.at(w)
    y, s = cones.projection / c, (cones.projection - w) * c
    small = np.abs(x) <= np.maximum(NOTHING * here.scales.variable, CANCELLED * np.abs(here.x))
    x[small & held_at_zero(program, s)] = 0.0
    scales = scales_at(program, cone, x, y, s)
    moved = np.any(np.abs(np.log2(scales.c / c)) > np.log2(REBALANCED), axis=1, keepdims=True)
    if np.any(moved):
        w = np.where(moved, scales.w(y, s), w)
        return ComplementaryPoint.at(program, x, replace(scales, c=np.where(moved, scales.c, c)), cone.at(w)), change
    return ComplementaryPoint.at(program, x, replace(scales, c=c), cones), change
