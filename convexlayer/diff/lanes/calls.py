"""Calls of the kernels on batches, on the thread pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np

from convexlayer.certificate import ComplementaryPoint, Scales
from convexlayer.cones import ProductCone, product_cone
from convexlayer.diff.lanes.layout import Sizes, pack_layout
from convexlayer.diff.lanes.polish import STUCK, TAKEN, polish_range
from convexlayer.diff.rows import SystemColumns
from convexlayer.linalg.ldl.symbolic import Symbolic
from convexlayer.program import Array, ConeProgram, Cones, IndexArray, Pattern, Structure
from convexlayer.runtime.buffers import as_contiguous_float64, empty
from convexlayer.runtime.threads import WORKERS, parallel_for
from convexlayer.solution import BoolArray
from convexlayer.sparse import EntriesOfSystem, Point

__all__ = ["LanePolished", "LaneSystem", "warm_up"]

LANES = 8
"""Elements per lane group: the doubles of an AVX-512 register. A group takes about as long as three single elements."""

ENTRY_S, FLOP_S, ROW_S = 4e-8, 5e-10, 2e-8
"""Cost model of an element, for splitting a batch among threads: seconds per entry of K and L of a step, per
multiply-add of its factorisation, and per entry of P and A of the scales and residuals of a point (rough)."""


class LanePolished(NamedTuple):
    """Result of polishing a batch.

    Attributes:
        point: the solutions; complementary where ``taken``.
        complementary: the complementary points near the solutions.
        residuals: the rows of ``sparse.relative_residuals`` at the solutions, (6, B).
        taken: whether the solution is its complementary point, (B,).
        stuck: elements for which Newton's method did not converge at the first attempt.
    """

    point: Point
    complementary: ComplementaryPoint
    residuals: Array
    taken: BoolArray
    stuck: IndexArray


@final
class LaneSystem:
    """The kernels of one structure. Thread-safe."""

    def __init__(
        self,
        structure: Structure,
        cone: ProductCone,
        positions: EntriesOfSystem,
        columns: SystemColumns,
        symbolic: Symbolic,
    ) -> None:
        """Pack the index arrays.

        Args:
            structure: structure of the programs.
            cone: its product cone.
            positions: where the entries of flat rows are in K.
            columns: where those of curved rows are.
            symbolic: the symbolic factorisation of K.
        """
        table = cone.table
        unknowns = len(symbolic.plan.signs)
        sizes = Sizes(
            structure.n, structure.m, cone.zero, cone.flat, unknowns, len(symbolic.place), table.saved_size,
            table.basis_size,
        )  # fmt: skip
        self._cone, self._sizes, self._symbolic = cone, sizes, symbolic
        self._layout = pack_layout(structure, sizes, positions, cone.blocks, table.fields, columns)
        entries = len(symbolic.plan.row) + symbolic.fill
        self._point_s = ROW_S * (structure.P.nnz + 2 * structure.A.nnz) + table.seconds
        self._step_s = ENTRY_S * entries + FLOP_S * symbolic.flops

    def polish(
        self, program: ConeProgram, given: Point, eligible: BoolArray, *, needed: float, steps: int, deadline: float
    ) -> LanePolished:
        """Polish a batch; see ``diff.polish.polished``.

        Args:
            program: the programs.
            given: the solver's solutions.
            eligible: mask (B,) of the elements that may be polished.
            needed: see ``polished``.
            steps: see ``polished``.
            deadline: see ``polished``.
        """
        batch, (n, m, *_) = len(given.x), self._sizes
        point = Point(*(np.array(v, dtype=np.float64, order="C") for v in given))
        fields = [empty(batch, size) for size in (n, m, m, m, n, m)]
        scales = [empty(batch, size) for size in (n, n, m, m, m, n, m)]
        backward, residuals, outcome = np.empty(batch), np.empty((6, batch)), np.empty(batch, np.int64)
        lanes = (0.0,) * (LANES if batch > 2 * WORKERS else 1)
        values = tuple(map(as_contiguous_float64, program.values))
        rest = tuple(point), eligible
        out = tuple(fields), tuple(scales), (backward, residuals, outcome)

        def some(first: int, last: int) -> None:
            limit = steps if time.perf_counter() < deadline else 0
            polish_range(
                lanes, self._layout, self._symbolic.packed, values, program.r, *rest, (needed, limit), *out, first, last
            )

        self._run(some, batch, self._point_s + self._step_s, timed=np.isfinite(deadline))
        x, y, s, w, dual, primal = fields
        near = ComplementaryPoint(x, y, s, Scales(*scales), self._cone.at(w), dual, primal, backward)
        return LanePolished(point, near, residuals, outcome == TAKEN, np.flatnonzero(outcome == STUCK))

    def _run(self, some: Callable[[int, int], Any], batch: int, seconds: float, *, timed: bool = False) -> None:
        """Call a kernel on ranges of a batch: one per thread or, with ``timed``, one per lane group."""
        if not timed:
            parallel_for(some, batch, seconds_per_item=seconds)
            return

        def each(first: int, last: int) -> None:
            for start in range(first, last, LANES):
                some(start, min(start + LANES, last))

        parallel_for(each, batch, seconds_per_item=seconds)


def warm_up() -> None:
    """Compile this package's kernels by polishing the solution of: minimise x^2 / 2 + x subject to x >= 1."""
    one = Pattern((1, 1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    structure = Structure(one, one, Cones(nonnegative=1))
    first, second, third = (np.array([place]) for place in range(3))
    positions = EntriesOfSystem(first, first, first, first, second, third)
    upper = Pattern((2, 2), np.array([0, 0, 1]), np.array([0, 1, 1]))
    symbolic = Symbolic.of(upper, np.array([1.0, -1.0]))
    lanes = LaneSystem(structure, product_cone(structure.cones), positions, SystemColumns.joined([]), symbolic)
    for batch in (1, 2 * WORKERS + 1):
        ones = np.ones((batch, 1))
        program = ConeProgram(structure, ones, ones, np.zeros(batch), -ones, -ones)
        point = Point(ones, ones, ones)
        lanes.polish(program, point, np.ones(batch, bool), needed=1.0, steps=1, deadline=np.inf)
