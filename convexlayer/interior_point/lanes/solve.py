"""The batched interior-point method on the CPU: one element per SIMD lane, ranges of elements on threads."""

from __future__ import annotations

import time
from typing import final

import numpy as np

from convexlayer.interior_point.lanes.elements import Programs, Solutions
from convexlayer.interior_point.lanes.loop import solve_range
from convexlayer.interior_point.lanes.plan import InteriorPointPlan
from convexlayer.interior_point.lanes.termination import Limits
from convexlayer.program import ConeProgram, Cones, Pattern, Structure
from convexlayer.runtime.buffers import contiguous
from convexlayer.runtime.lanes import batch_of_width, lanes_for
from convexlayer.runtime.threads import parallel_for
from convexlayer.solution import Solution
from convexlayer.status import Status

__all__ = ["LanesInteriorPoint", "warm_up"]

STATUSES = (
    Status.OPTIMAL,
    Status.INFEASIBLE,
    Status.UNBOUNDED,
    Status.NUMERICAL_ERROR,
    Status.ITERATION_LIMIT,
)
"""Status by the status code of the loop."""

STATUSES_WITHOUT_LIMIT = (*STATUSES[:4], Status.NUMERICAL_ERROR)
"""The same if the caller did not set max_iter: reaching the default limit counts as stalled."""

TARGET_OVER_TOL = 0.3
"""The iterations stop at relative residuals, and natural residuals of nonnegative rows, of this many times tol. From
there a crossover step or one polish gains more than further iterations (measured on the benchmarks)."""

MAX_ITER = 100
"""Default maximum number of iterations of an element; most programs take 8 to 20."""

ITERATIONS, FLOP_S, ENTRY_S = 10, 5e-10, 5e-9
"""Cost model of one element, for splitting a batch among threads: iterations, seconds per multiply-add, seconds per
entry of the factor (rough measurements)."""


@final
class LanesInteriorPoint:
    """Interior-point solver for batches of one structure, which is analysed once. Thread-safe."""

    def __init__(self, structure: Structure) -> None:
        """Analyse the structure."""
        self._structure = structure
        self._plan = InteriorPointPlan.of(structure)

    def solve(self, program: ConeProgram, *, tol: float, max_iter: int | None = None) -> Solution:
        """Solve every element.

        Args:
            program: data, (B, ...).
            tol: relative residuals of an optimal element; the iterations aim at TARGET_OVER_TOL times tol.
            max_iter: maximum number of iterations of an element, MAX_ITER by default.

        Returns:
            Solutions; infeasible elements have a ray y with b'y = -1, unbounded ones a ray x with q'x = -1.
        """
        plan, batch = self._plan, program.batch
        n, m = self._structure.n, self._structure.m
        found = Solutions(*(np.full((batch, size), np.nan) for size in (n, m, m)), *np.zeros((2, batch), np.int64))
        lanes = lanes_for(batch)
        limits = Limits(TARGET_OVER_TOL * tol, tol, max_iter or MAX_ITER)
        data = Programs(*contiguous((program.P, program.q, program.A, program.b)))
        shared = (lanes, tuple(plan.layout), plan.packed, tuple(limits), tuple(data), tuple(found))
        start = time.perf_counter()

        def some(first: int, last: int) -> None:
            solve_range(*shared, first, last)

        parallel_for(some, batch, seconds_per_item=ITERATIONS * (FLOP_S * plan.flops + ENTRY_S * plan.fill))
        seconds = np.full(batch, (time.perf_counter() - start) / max(batch, 1))
        statuses = STATUSES if max_iter is not None else STATUSES_WITHOUT_LIMIT
        status = tuple(map(statuses.__getitem__, found.status_code.tolist()))
        return Solution(found.x, found.y, found.s, status, found.iterations, seconds, {"solver": "batched"})


def warm_up(width: str) -> None:
    """Compile this package's kernels by solving minimise x^2 / 2 + x subject to x >= 1.

    Args:
        width: "single" for one element, "lanes" for several.
    """
    one = Pattern((1, 1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    structure = Structure(one, one, Cones(nonnegative=1))
    batch = batch_of_width(width)
    ones = np.ones((batch, 1))
    program = ConeProgram(structure, ones, ones, np.zeros(batch), -ones, -ones)
    LanesInteriorPoint(structure).solve(program, tol=1e-8)
