"""The batched interior-point method on the CPU: one element a SIMD lane, ranges of elements on threads."""

from __future__ import annotations

import time
from typing import final

import numpy as np

from convexlayer.interior_point.lanes.loop import Limits, solve_range
from convexlayer.interior_point.lanes.plan import InteriorPointPlan
from convexlayer.program import ConeProgram, Cones, Pattern, Structure
from convexlayer.runtime.buffers import as_contiguous_float64
from convexlayer.runtime.threads import WORKERS, parallel_for
from convexlayer.solution import Solution
from convexlayer.status import Status

__all__ = ["LanesInteriorPoint", "warm_up"]

LANES = 8
"""Elements at once: a vector register of doubles, which costs about as much as three elements one by one."""

WORDS = (
    Status.OPTIMAL,
    Status.INFEASIBLE,
    Status.UNBOUNDED,
    Status.NUMERICAL_ERROR,
    Status.ITERATION_LIMIT,
)
"""By the loop's words."""

UNLIMITED = (*WORDS[:4], Status.NUMERICAL_ERROR)
"""Where nobody set a limit, to reach it is to stall."""

TARGET_OVER_TOL = 0.3
"""Relative residuals, and natural residuals of nonnegative rows, at which the iterations stop, over the tolerance. From
there on one step on the active set, or one polish, gains more than further iterations (measured on the benchmarks)."""

MAX_ITER = 100

ITERATIONS, FLOP_S, ENTRY_S = 10, 5e-10, 5e-9
"""Seconds of an element: so many iterations, each with these for every multiply-add and entry of the factor."""


@final
class LanesInteriorPoint:
    """Solves batches of one structure; analysed once, safe to share between threads."""

    def __init__(self, structure: Structure) -> None:
        """Analyse a structure."""
        self._structure = structure
        self._plan = InteriorPointPlan.of(structure)

    def solve(self, program: ConeProgram, *, tol: float, max_iter: int | None = None) -> Solution:
        """Solve every element.

        Args:
            program: (B, ...).
            tol: relative residuals that are good enough; a third of them is aimed at.
            max_iter: iterations of an element.

        Returns:
            Solutions; infeasible elements carry a ray y with b'y = -1, unbounded ones a ray x with q'x = -1.
        """
        plan, batch = self._plan, program.batch
        x, y, s = (np.full((batch, size), np.nan) for size in (self._structure.n, self._structure.m, self._structure.m))
        word, iterations = np.zeros(batch, np.int64), np.zeros(batch, np.int64)
        limits = Limits(TARGET_OVER_TOL * tol, tol, max_iter or MAX_ITER)
        lanes = (0.0,) * (LANES if batch > 2 * WORKERS else 1)
        data = tuple(map(as_contiguous_float64, (program.P, program.q, program.A, program.b)))
        start = time.perf_counter()

        def some(first: int, last: int) -> None:
            solve_range(
                lanes, plan.layout, plan.factor, limits, plan.symmetric, plan.degree, *data, first, last,
                x, y, s, word, iterations,
            )  # fmt: skip

        parallel_for(some, batch, seconds_per_item=ITERATIONS * (FLOP_S * plan.flops + ENTRY_S * plan.fill))
        seconds = np.full(batch, (time.perf_counter() - start) / max(batch, 1))
        words = WORDS if max_iter is not None else UNLIMITED
        status = tuple(map(words.__getitem__, word.tolist()))
        return Solution(x, y, s, status, iterations, seconds, {"solver": "batched"})


def warm_up() -> None:
    """Compile whatever this part of the library calls from Python: x = 1 by x >= 1, alone and in lanes."""
    one = Pattern((1, 1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    structure = Structure(one, one, Cones(nonnegative=1))
    for batch in (1, 2 * WORKERS + 1):
        ones = np.ones((batch, 1))
        program = ConeProgram(structure, ones, ones, np.zeros(batch), -ones, -ones)
        LanesInteriorPoint(structure).solve(program, tol=1e-8)
