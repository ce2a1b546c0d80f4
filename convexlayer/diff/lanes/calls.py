"""Calls of the kernels on batches, on the thread pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np

from convexlayer.certificate import ComplementaryPoint, Scales
from convexlayer.cones import ProductCone, product_cone
from convexlayer.cones.compiled import BlockTable, block_table
from convexlayer.diff.exact import rounding_signs
from convexlayer.diff.lanes.derivative import CONDITION, ERROR, MARGIN, factor_groups, solve_groups
from convexlayer.diff.lanes.layout import Sizes, pack_layout
from convexlayer.diff.lanes.points import OF_ROWS, OF_VARIABLES
from convexlayer.diff.lanes.polish import STUCK, TAKEN, polish_range
from convexlayer.diff.rows import SystemColumns
from convexlayer.linalg.ldl.symbolic import Symbolic
from convexlayer.linalg.refined import power_start
from convexlayer.program import Array, ConeProgram, Cones, IndexArray, Pattern, Structure
from convexlayer.runtime.buffers import as_contiguous_float64, contiguous, empty
from convexlayer.runtime.lanes import LANES, batch_of_width, lanes_for
from convexlayer.runtime.threads import parallel_for
from convexlayer.solution import BoolArray
from convexlayer.sparse import EntriesOfSystem, Point

__all__ = ["LaneFactor", "LanePolished", "LaneSystem", "warm_up"]

ENTRY_S, FLOP_S, ROW_S, SOLVE_S = 4e-8, 5e-10, 2e-8, 5e-9
"""Cost model of an element, for splitting a batch among threads: seconds per entry of K and L of a factorisation, per
multiply-add of it, per entry of P and A of the scales and residuals of a point, and per entry of a solve (rough)."""


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
class LaneFactor(NamedTuple):
    """The factorised K of a batch, and what they say of the accuracy of the solutions.

    Attributes:
        lanes: the argument of the kernels that sets the number of lanes.
        rows: the complementary points in the kernels' order.
        state: the factors.
        D: the derivatives of the projections.
        measures: condition estimates, relative margins and errors (see ``derivative``), (B, 3).
        dx: change of x in the Newton step that estimates the error of the solutions, (B, n).
        dy: that of y, (B, m).
    """

    lanes: tuple[float, ...]
    rows: Array
    state: Array
    D: Array
    measures: Array
    dx: Array
    dy: Array

    @property
    def condition(self) -> Array:
        """Condition estimates of K, (B,)."""
        return self.measures[:, CONDITION]

    @property
    def margin(self) -> Array:
        """Relative margins, (B,); NaN where the portable form must compute them."""
        return self.measures[:, MARGIN]

    @property
    def error(self) -> Array:
        """Estimated relative errors of w and of the eigenvalues of D, (B,)."""
        return self.measures[:, ERROR]


@final
class LaneSystem:
    """The kernels of one structure. Thread-safe."""

    def __init__(
        self,
        structure: Structure,
        cone: ProductCone,
        table: BlockTable,
        positions: EntriesOfSystem,
        columns: SystemColumns,
        symbolic: Symbolic,
    ) -> None:
        """Pack the index arrays.

        Args:
            structure: structure of the programs.
            cone: its product cone.
            table: the blocks of its curved cones.
            positions: where the entries of flat rows are in K.
            columns: where those of curved rows are.
            symbolic: the symbolic factorisation of K.
        """
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
        self._solve_s = SOLVE_S * entries
        n, m = structure.n, structure.m
        self._of_variables = [slice(k * n, (k + 1) * n) for k in OF_VARIABLES]
        self._of_rows = [slice(5 * n + k * m, 5 * n + (k + 1) * m) for k in OF_ROWS]
        self._signs = np.concatenate(rounding_signs(n, m))
        self._start = power_start(unknowns)

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
        point = Point(*[np.array(v, dtype=np.float64, order="C") for v in given])
        rows, residuals, outcome = empty(batch, 5 * n + 8 * m), np.empty((batch, 7)), np.empty(batch, np.int64)
        lanes = lanes_for(batch)
        values = contiguous(program.values)
        data = tuple(self._layout), self._symbolic.packed, values, program.r, tuple(point), eligible

        def some(first: int, last: int) -> None:
            limit = steps if time.perf_counter() < deadline else 0
            polish_range(lanes, *data, (needed, limit), rows, residuals, outcome, first, last)

        self._run(some, batch, self._point_s + self._step_s, timed=np.isfinite(deadline))
        near = self._points(rows, residuals[:, 6])
        return LanePolished(point, near, residuals[:, :6].T, outcome == TAKEN, np.flatnonzero(outcome == STUCK))

    def _points(self, rows: Array, backward: Array) -> ComplementaryPoint:
        """The complementary points of the kernels' rows (see ``points``)."""
        x, dual, variable, dual_size, dual_rounding = [rows[:, part] for part in self._of_variables]
        w, y, s, primal, primal_size, c, size, primal_rounding = [rows[:, part] for part in self._of_rows]
        scales = Scales(variable, dual_size, primal_size, c, size, dual_rounding, primal_rounding)
        return ComplementaryPoint(x, y, s, scales, self._cone.at(w), dual, primal, backward, rows)

    def factor(self, program: ConeProgram, point: ComplementaryPoint) -> LaneFactor:
        """Factorise K at complementary points of a batch."""
        rows = _packed(point) if point.packed is None else point.packed
        batch, sizes, symbolic = len(rows), self._sizes, self._symbolic
        lanes = lanes_for(batch)
        groups = -(-batch // len(lanes))
        entries = len(symbolic.plan.row) + symbolic.fill
        state = empty(groups, 3 * sizes.unknowns + entries, len(lanes))
        D, measures, steps = (
            empty(batch, 2 * sizes.m + sizes.basis),
            np.empty((batch, 3)),
            empty(batch, sizes.n + sizes.m),
        )
        values = contiguous((program.P, program.A, program.b))

        def some(first: int, last: int) -> None:
            factor_groups(
                lanes, tuple(self._layout), symbolic.packed, values, rows, self._signs, self._start, state, D, measures,
                steps, first, last,
            )  # fmt: skip

        seconds = len(lanes) * (self._point_s + self._step_s)
        parallel_for(some, groups, seconds_per_item=seconds)
        return LaneFactor(lanes, rows, state, D, measures, steps[:, : sizes.n], steps[:, sizes.n :])

    def solve(self, factor: LaneFactor, top: Array, bottom: Array) -> tuple[Array, Array, Array]:
        """Solve K [l; u] = [top; L'bottom].

        Returns:
            l (B, n); v = L u, (B, m); the largest residual of a row relative to the magnitudes of its terms, (B,).
        """
        batch = len(top)
        found = empty(batch, self._sizes.n), empty(batch, self._sizes.m), np.empty(batch)
        rhs = as_contiguous_float64(top), as_contiguous_float64(bottom)
        rest = tuple(self._layout), self._symbolic.packed, factor.rows, factor.state, factor.D, rhs, found

        def some(first: int, last: int) -> None:
            solve_groups(factor.lanes, *rest, first, last)

        parallel_for(some, len(factor.state), seconds_per_item=len(factor.lanes) * self._solve_s)
        return found

    def _run(self, some: Callable[[int, int], Any], batch: int, seconds: float, *, timed: bool = False) -> None:
        """Call a kernel on ranges of a batch: one per thread or, with ``timed``, one per lane group."""
        if not timed:
            parallel_for(some, batch, seconds_per_item=seconds)
            return

        def each(first: int, last: int) -> None:
            for start in range(first, last, LANES):
                some(start, min(start + LANES, last))

        parallel_for(each, batch, seconds_per_item=seconds)


def _packed(point: ComplementaryPoint) -> Array:
    """The numbers of complementary points in the kernels' order."""
    scales = point.scales
    return np.concatenate(
        [
            point.x, point.dual, scales.variable, scales.dual, scales.dual_rounding, point.cones.w, point.y, point.s,
            point.primal, scales.primal, scales.c, scales.size, scales.primal_rounding,
        ],
        axis=1,
    )  # fmt: skip


def warm_up(width: str) -> None:
    """Compile this package's kernels by polishing the solution of: minimise x^2 / 2 + x subject to x >= 1.

    Args:
        width: "single" for one element, "lanes" for several.
    """
    one = Pattern((1, 1), np.zeros(1, np.int64), np.zeros(1, np.int64))
    structure = Structure(one, one, Cones(nonnegative=1))
    first, second, third = (np.array([place]) for place in range(3))
    positions = EntriesOfSystem(first, first, first, first, second, third)
    upper = Pattern((2, 2), np.array([0, 0, 1]), np.array([0, 1, 1]))
    symbolic = Symbolic.of(upper, np.array([1.0, -1.0]))
    cone = product_cone(structure.cones)
    lanes = LaneSystem(structure, cone, block_table(()), positions, SystemColumns.joined([]), symbolic)
    batch = batch_of_width(width)
    ones = np.ones((batch, 1))
    program = ConeProgram(structure, ones, ones, np.zeros(batch), -ones, -ones)
    point = Point(ones, ones, ones)
    found = lanes.polish(program, point, np.ones(batch, bool), needed=1.0, steps=1, deadline=np.inf)
    lanes.solve(lanes.factor(program, found.complementary), ones, ones)
