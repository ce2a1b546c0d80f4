"""The exact derivative by implicit differentiation: one symmetric KKT system (see ``kkt_system``), factorised once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import final

import numpy as np

from convexlayer.certificate import ComplementaryPoint, held_at_zero
from convexlayer.diff.base import (
    AbstractDifferentiator,
    SolutionCotangent,
    SolutionTangent,
    whole_point,
    whole_program,
)
from convexlayer.diff.degenerate import Observation, is_observed, observes_null_space, observes_null_space_of
from convexlayer.diff.kkt_system import KKTFactor, KKTSystem
from convexlayer.diff.report import ACCURATE_SOLUTION, DerivativeReport
from convexlayer.program import Array, ConeProgram, IndexArray, ProgramCotangent, max_norm
from convexlayer.solution import BoolArray, Solution

__all__ = ["ExactDifferentiator", "RelativeChange", "change_of_x", "rounding_signs"]

RelativeChange = Callable[[Array, Array, Callable[[ConeProgram], tuple[Array, Array]]], Array]
"""Measure of relative change, see ``relative`` of ``ExactDifferentiator``."""


ONE_SIDED_DISTANCE = 10.0
"""Distance from a jump of D at which its one-sided values are evaluated, in units of the certain margin."""


@final
class ExactDifferentiator(AbstractDifferentiator):
    """Exact derivative at a batch of solutions; factorises on first use and keeps the factors."""

    def __init__(
        self,
        system: KKTSystem,
        program: ConeProgram,
        solution: Solution,
        *,
        factor: KKTFactor | None = None,
        point: ComplementaryPoint | None = None,
        relative: RelativeChange | None = None,
    ) -> None:
        """Store the arguments; nothing is computed yet.

        Args:
            system: the symbolic KKT system of the programs' structure.
            program: the programs.
            solution: their solutions; all elements must be finite.
            factor: a factor computed at nearby points, for instance by ``polished``; reused if it is also the factor at
                these solutions.
            point: the complementary points near the solutions, if already computed.
            relative: measures changes (dx, dy) of x and y relative to the outputs, (B,). Its third argument maps a
                tangent of the program to tangents of x and y. By default, changes are measured relative to x.
        """
        self._system = system
        self._program = program
        self._near = factor
        self._point = point or solution.complementary(program)
        self._relative = relative or change_of_x(self._point)

    @cached_property
    def _factor(self) -> KKTFactor:
        near = self._near
        if near is not None and near.is_factor_of(self._program, self._point.derivative):
            return near
        return self._system.factor(self._program, self._point)

    @cached_property
    def _error_estimate(self) -> tuple[Array, Array]:
        """Estimated error of w, (B, m), and relative error of the solutions, (B,).

        The estimate is a Newton step whose right-hand side includes the rounding errors of the residuals.
        """
        point, structure, factor = self._point, self._program.structure, self._factor
        signs_x, signs_y = rounding_signs(structure.n, structure.m)
        dual = point.dual + signs_x * point.scales.dual_rounding
        primal = point.primal + signs_y * point.scales.primal_rounding
        dx, dy = factor.newton_row_by_row(-dual, -primal)
        dw = self._moved_w(dx, dy, primal)
        error = self._size_of_step(dx, dy, dw)
        if factor.regular:
            return dw, error
        large = factor.singular & ~(error <= ACCURATE_SOLUTION)
        if np.any(large):  # the minimum-norm step, because null directions are not errors
            dx, dy, *_ = factor.solve(-dual, -primal, lambda index: np.ones(len(index), dtype=bool))
            shortest = self._moved_w(dx, dy, primal)
            error = np.where(large, self._size_of_step(dx, dy, shortest), error)
            dw = np.where(large[:, None], shortest, dw)
        return dw, error

    def _moved_w(self, dx: Array, dy: Array, primal: Array) -> Array:
        """Change of w in a Newton step (dx, dy) for the residuals (dual, primal)."""
        c, program = self._point.scales.c, self._program
        return c * dy + (program.structure.A.matvec(program.A, dx) + primal) / c

    def _size_of_step(self, dx: Array, dy: Array, dw: Array) -> Array:
        """Largest relative change of an output, or of w relative to its block, (B,)."""
        point = self._point
        dx = np.where((point.x == 0.0) & held_at_zero(self._program, point.s), 0.0, dx)  # these zeros are exact
        return np.maximum(self._relative(dx, dy, self._respond), max_norm(dw / point.scales.size))

    @cached_property
    def _certain_margin(self) -> Array:
        """Margins (B,) above which the side of all jumps of D, and so the active set, is certain."""
        return DerivativeReport.certain_margin(max_norm(self._error_estimate[0] / self._point.scales.size))

    @cached_property
    def _error(self) -> Array:
        """Estimated relative error of the solutions, or of an eigenvalue d or 1 - d of D, (B,).

        Blocks at jumps of D are excluded; their margin decides.
        """
        dw, error = self._error_estimate
        if not np.all(self._point.margin > self._certain_margin):
            dw = np.where(self._weak, 0.0, dw)
        return np.maximum(error, self._point.derivative_change(dw))

    @cached_property
    def _weak(self) -> BoolArray:
        """Mask (B, m) of the rows of weakly active blocks, which may be on either side of a jump of D."""
        weak = self._point.derivative.weakly_active(self._point.scales.size, self._certain_margin)
        return np.asarray(weak, dtype=bool)

    def vjp(
        self,
        cotangent: SolutionCotangent,
        *,
        observe: Callable[[ProgramCotangent], Array] | None = None,
    ) -> tuple[ProgramCotangent, DerivativeReport]:
        """Solve K [l; u] = [dx - A'ds; L'dy] and set v = ds + L u; the gradient is ``ProgramCotangent(x, y, l, v)``."""
        program, x, y = self._program, self._point.x, self._point.y
        used = observe or whole_program(program.structure)

        def outside(l: Array, v: Array) -> Array:  # noqa: E741 (the name in the mathematics)
            return used(ProgramCotangent(x, y, l, v))

        ds, top = cotangent.s, cotangent.x
        if ds is not None:
            top = top - program.structure.A.rmatvec(program.A, ds)
        l, v, report = self._solve(top, cotangent.y, outside)  # noqa: E741
        return ProgramCotangent(x, y, l, v if ds is None else v + ds), report

    def jvp(
        self, tangent: ConeProgram, *, observe: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """Solve K [dx; u] = -[r1; L'r2] with r1 = dP x + dq + dA'y and r2 = dA x - db; dy = L u, ds = -(A dx + r2)."""
        r1, r2 = tangent.residuals_at(self._point.x, self._point.y)

        def outside(dx: Array, dy: Array) -> Array:
            return observe(self._tangent(dx, dy, 0.0))

        dx, dy, report = self._solve(-r1, -r2, outside)
        return self._tangent(dx, dy, r2), report

    def _respond(self, tangent: ConeProgram) -> tuple[Array, Array]:
        """(dx, dy) of ``jvp`` to the accuracy of a Newton step, as a measure of the size of outputs.

        If K is singular, (dx, dy) has minimum norm and dA'y is left out of r1: multipliers may be unbounded then, and
        dA'y would not reflect the size of outputs.
        """
        factor, (r1, r2) = self._factor, tangent.residuals_at(self._point.x, self._point.y)
        if factor.regular:
            return factor.newton(-r1, -r2)
        by_multipliers = tangent.structure.A.rmatvec(tangent.A, self._point.y)
        r1 = np.where(factor.singular[:, None], r1 - by_multipliers, r1)
        dx, dy, *_ = factor.solve(-r1, -r2, lambda index: np.ones(len(index), dtype=bool))
        return dx, dy

    def objective_report(self, *, observe: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """Report whether the objective's derivative is unique: whether ``observe`` maps the null space of K to zero.

        A null direction of K moves (x, y) along the solution set. Where multipliers are unique, the optimal value is
        differentiable even if constraints are weakly active, so the margin is ignored.
        """
        factor, batch, weak = self._factor, self._program.batch, self._weak

        def outside(dx: Array, dy: Array) -> Array:
            return observe(self._tangent(dx, dy, 0.0))

        singular = observes_null_space_of(factor, outside, place=np.arange(batch), batch=batch)
        ones = np.ones(weak.shape[1])
        for side in (ones, -ones):  # more active rows leave more freedom in y, fewer leave more in x
            index = np.flatnonzero(np.any(weak, axis=1) & ~singular)
            if len(index):
                one_sided = self._one_sided_factor(index, weak[index], side)
                singular[index] = observes_null_space_of(one_sided, outside, place=index, batch=batch)
        nothing, far = np.zeros(batch), np.full(batch, np.inf)
        return DerivativeReport.from_measures(nothing, far, factor.condition, singular, self._error_estimate[1])

    def _tangent(self, dx: Array, dy: Array, r2: Array | float) -> SolutionTangent:
        return SolutionTangent(dx, dy, -(self._program.structure.A.matvec(self._program.A, dx) + r2))

    def _solve(self, top: Array, bottom: Array, outside: Observation) -> tuple[Array, Array, DerivativeReport]:
        """Solve for (l, v) by ``KKTFactor.solve``, with the report."""
        factor, batch = self._factor, self._program.batch

        def visible(index: IndexArray) -> BoolArray:
            return observes_null_space(factor, index, outside, place=index, batch=batch)

        l, v, residual, singular = factor.solve(top, bottom, visible)  # noqa: E741
        margin, error = self._point.margin, self._error
        if factor.regular and DerivativeReport.all_ok(residual, margin, error):
            return l, v, DerivativeReport.ok(residual, margin, factor.condition)
        if not np.all(margin > self._certain_margin):
            margin = self._effective_margin((l, v), (top, bottom), outside, ~singular)
        certain = self._certain_margin
        return l, v, DerivativeReport.from_measures(residual, margin, factor.condition, singular, error, certain)

    def _effective_margin(
        self, answer: tuple[Array, Array], rhs: tuple[Array, Array], outside: Observation, unique: BoolArray
    ) -> Array:
        """The margin without weakly active blocks that do not change the requested derivative.

        The derivative must be the same, and unique, with all of these blocks on the side of K*, with none, and with two
        complementary random subsets. Only elements with a unique derivative are tested.
        """
        point, weak = self._point, self._weak
        margin = point.margin.copy()
        index = np.flatnonzero(np.any(weak, axis=1) & unique)
        ones, blocks = np.ones(weak.shape[1]), self._system.cone.largest_of_blocks
        some = np.sign(blocks(np.random.default_rng(0).normal(size=(1, weak.shape[1])))[0])
        for side in (ones, -ones, some, -some):
            if len(index):
                index = index[self._same_one_sided(index, weak[index], side, answer, rhs, outside)]
        if len(index):
            margin[index] = point.margin_without(weak)[index]
        return margin

    def _same_one_sided(
        self,
        index: IndexArray,
        weak: BoolArray,
        side: Array,
        answer: tuple[Array, Array],
        rhs: tuple[Array, Array],
        outside: Observation,
    ) -> BoolArray:
        """Whether these elements have the same and a unique derivative, as far as ``outside`` shows, on ``side``."""
        factor, batch = self._one_sided_factor(index, weak, side), self._program.batch

        def visible(some: IndexArray) -> BoolArray:
            return observes_null_space(factor, some, outside, place=index[some], batch=batch)

        top, bottom = (part[index] for part in rhs)
        *other, singular = factor.solve_unique(top, bottom, visible)
        here = answer[0][index], answer[1][index]
        noise = factor.rounding((other[0], other[1]), top, bottom)
        moved = (there - mine for there, mine in zip(other, here, strict=True))
        dl, dv = (np.where(np.abs(d) <= size, 0.0, d) for d, size in zip(moved, noise, strict=True))
        return ~singular & ~is_observed((dl, dv), here, outside, place=index, batch=batch)

    def _one_sided_factor(self, index: IndexArray, weak: BoolArray, side: Array) -> KKTFactor:
        """Factorise K of these elements with the one-sided D on ``side`` in the weak rows."""
        point = self._point.select(index)
        derivative = point.one_sided_derivative(weak, side, ONE_SIDED_DISTANCE * self._certain_margin[index])
        return KKTFactor(self._system, self._program.select(index), derivative, point.scales.c)


def change_of_x(point: ComplementaryPoint) -> RelativeChange:
    """The default measure of relative change: that of x."""
    return lambda dx, dy, _: point.relative_change(dx, 0.0 * dy)


@lru_cache(maxsize=256)
def rounding_signs(n: int, m: int) -> tuple[Array, Array]:
    """Fixed random signs of the rounding errors of the residuals, (n,) and (m,)."""
    rng = np.random.default_rng(0)
    return rng.choice((-1.0, 1.0), n), rng.choice((-1.0, 1.0), m)
