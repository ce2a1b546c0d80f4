"""Newton polish: from a solver's accuracy to that of double precision, before anything is differentiated."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, final

import numpy as np

from convexlayer.certificate import ComplementaryPoint, held_at_zero, scales_at
from convexlayer.diff.reduced import ReducedFactor, ReducedSystem
from convexlayer.program import Array, ConeProgram, IndexArray, max_norm
from convexlayer.solution import Solution
from convexlayer.status import Status

__all__ = ["Polished", "polish", "polished"]

NEEDED = 1e-12
"""Complementary points whose backward error is at most this are taken as they are."""

CONVERGED = 1e-9
"""A step that changes nothing by more than this share is an element's last: the next would change its square."""

SETTLED = 1e-13
"""Backward error at which a step is the last where the next has the same system: that of polyhedral cones with the same
active set."""

NEAR, PROGRESS, PATIENCE = 1e-6, 0.5, 2
"""Where backward errors are below NEAR, so many steps not shorter by PROGRESS than the shortest are the last."""

UNTOUCHED = (Status.INFEASIBLE, Status.UNBOUNDED, Status.ITERATION_LIMIT, Status.TIME_LIMIT)
"""What has no solution near it, or was stopped by the caller's wish."""

ALL_FROM = 0.5
"""Share of elements in need, from which the first step factorises all of them, for the derivative to come."""

ASTRAY = 10.0
"""Polish does not make x so many times larger than the solver's: then there is nothing near."""

CANCELLED, NOTHING = 1e-11, 1e-30
"""Of a variable that is 0 by an active row of its own a step leaves no more than this share, or this relative to what
would dominate a row."""

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
    needed: float = NEEDED,
    steps: int = 16,
    deadline: float = np.inf,
) -> Polished:
    """Semismooth Newton steps on the residual map, at w = c y - s / c, for the elements with a point that needs it.

    The complementary ``point`` near the solution (found unless given) is taken where its backward error is at most
    ``needed``. Elsewhere each step solves the derivative's own system at the current point and moves to
    w + c dy - ds / c, from where y and s are projections; the best point of each element is taken, by its backward
    error. So none gets worse. Points at which a solver met a limit are left as they are, and no step is begun after the
    ``deadline``, as ``time.perf_counter`` counts.
    """
    point = point or solution.complementary(program)
    first = point.backward
    untouched = np.zeros(len(first), dtype=bool)
    if not solution.all_optimal:
        untouched[:] = [status in UNTOUCHED for status in solution.status]
    need = np.isfinite(first) & (first > needed) & ~untouched
    taken, factor = (first <= needed) & ~untouched, None
    active = np.flatnonzero(need)
    if len(active):
        if len(active) >= ALL_FROM * program.batch and np.all(np.isfinite(first)):
            active = np.arange(program.batch)
        part = program if len(active) == program.batch else program.select(active)
        run = _Run(system, part, solution.x[active], solution.y[active], solution.s[active], steps, deadline)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # far from a solution, where it is given up
            run.go(point if part is program else point.select(active))
            for trust in TRUST:
                stuck = np.flatnonzero(need[active] & ~(run.backward <= NEAR))
                if not len(stuck):
                    break
                run.go(run.again(stuck, trust), stuck)
        improved = np.flatnonzero(need[active] & (run.backward <= NEAR))
        taken[active[improved]] = True
        for index, better in run.best(improved):
            point = point.with_elements(active[index], better)
        factor = run.factor if part is program else None
    if np.all(taken):
        return Polished(replace(solution, x=point.x, y=point.y, s=point.s), point, factor)
    mine = taken[:, None]
    x, y, s = (
        np.where(mine, best, given)
        for best, given in ((point.x, solution.x), (point.y, solution.y), (point.s, solution.s))
    )
    return Polished(replace(solution, x=x, y=y, s=s), point, factor)


@final
class _Run:
    """Newton steps from given points, and the complementary points found on the way.

    Attributes:
        backward: the backward errors of the best of them, (elements,).
        factor: the first one of all elements.
    """

    def __init__(
        self, system: ReducedSystem, program: ConeProgram, x: Array, y: Array, s: Array, steps: int, deadline: float
    ) -> None:
        self._system, self._program, self._start = system, program, (x, y, s)
        self._steps, self._deadline, self._polyhedral = steps, deadline, not system.rows
        self._found: list[tuple[IndexArray, ComplementaryPoint]] = []
        self._best, self._last = np.zeros(len(x), dtype=np.int64), np.zeros(len(x), dtype=np.int64)
        self.backward = np.full(len(x), np.inf)
        self.factor: ReducedFactor | None = None

    def best(self, index: IndexArray) -> Iterator[tuple[IndexArray, ComplementaryPoint]]:
        """The best points of these elements, with their positions, a few at a time."""
        return self._points(self._best, index)

    def _points(self, which: IndexArray, index: IndexArray) -> Iterator[tuple[IndexArray, ComplementaryPoint]]:
        for number in np.unique(which[index]).tolist():
            active, point = self._found[number]
            mine = index[which[index] == number]
            yield mine, point.select(np.searchsorted(active, mine))

    def again(self, index: IndexArray, trust: float) -> ComplementaryPoint:
        """Where elements start that have not arrived.

        What is right stays where the last attempt left it; the rest starts once more from the solver's point, with its
        c multiplied by ``trust``.
        """
        program, start = self._program.select(index), [v[index] for v in self._start]
        last = [np.empty_like(v) for v in start]
        for mine, point in self._points(self._last, index):
            for whole, part in zip(last, (point.x, point.y, point.s), strict=True):
                whole[np.searchsorted(index, mine)] = part
        wrong_x, wrong_rows = ComplementaryPoint.near(program, *last).wrong(program, NEAR)
        wrong = wrong_x, wrong_rows, wrong_rows
        again = (np.where(*each) for each in zip(wrong, start, last, strict=True))
        return ComplementaryPoint.near(program, *again, trust=np.where(wrong_rows, trust, 1.0))

    def go(self, here: ComplementaryPoint, index: IndexArray | None = None) -> None:
        """Step from these points of the elements at these positions (all unless given), each as long as it pays."""
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
                converged |= settled & (there.backward <= SETTLED)
            here, going = there, ~converged & (patience > 0) & np.isfinite(there.backward)
            if not np.any(going):
                break
            if not np.all(going):
                active, part = active[going], part.select(going)
                shortest, patience = shortest[going], patience[going]
                here = here.select(np.flatnonzero(going))

    def _keep(self, active: IndexArray, point: ComplementaryPoint) -> None:
        astray = max_norm(point.x) > ASTRAY * np.maximum(max_norm(self._start[0][active]), 1.0)
        better = ((point.backward < self.backward[active]) | (point.backward <= NEEDED)) & ~astray
        kept = active[better]
        self._last[active] = self._best[kept] = len(self._found)
        self._found.append((active, point))
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
    flat = slice(here.cones.cone.free, here.cones.cone.flat)
    w[:, flat][np.abs(w[:, flat]) <= CANCELLED * np.abs(old[:, flat])] = 0.0
    finite = np.isfinite(w)
    if not np.all(finite):
        x[~np.all(finite, axis=1)] = np.nan  # a point that is worse than any
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
