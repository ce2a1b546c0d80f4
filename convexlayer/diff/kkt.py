"""The exact derivative, by one symmetric system (see ``reduced``) that is factorised once."""

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
    data_cotangent,
    whole_data,
    whole_point,
)
from convexlayer.diff.degenerate import Seen, is_seen, sees_null_space, sees_null_space_of
from convexlayer.diff.reduced import ReducedFactor, ReducedSystem
from convexlayer.diff.report import ACCURATE_SOLUTION, DerivativeReport
from convexlayer.program import Array, ConeProgram, IndexArray, Structure, max_norm
from convexlayer.solution import BoolArray, Solution

__all__ = ["ExactDifferentiator"]

RelativeChange = Callable[[Array, Array, Callable[[ConeProgram], tuple[Array, Array]]], Array]
"""See ``ExactDifferentiator``."""


BESIDE = 10.0
"""How far beside a jump of D it is asked for, in units of the margin that is certain."""


@final
class ExactDifferentiator(AbstractDifferentiator):
    """Derivative at a batch of solutions; factorises at the first use and keeps the factors."""

    def __init__(
        self,
        system: ReducedSystem,
        program: ConeProgram,
        solution: Solution,
        *,
        factor: ReducedFactor | None = None,
        point: ComplementaryPoint | None = None,
        relative: RelativeChange | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            system: of the programs' structure.
            program: the programs.
            solution: their solutions. Every element must have a finite point.
            factor: one made nearby, for instance by ``polished``; used if it is that of these solutions too.
            point: the complementary points near the solutions, if they are known.
            relative: how much a change of x and y is relative to what is made of them, (B,), given also how x and y
                answer to a tangent of the program; relative to x unless given.
        """
        self._system = system
        self._program = program
        self._near = factor
        self._point = point or solution.complementary(program)
        here = self._point
        self._relative = relative or (lambda dx, dy, _: here.relative_change(dx, 0.0 * dy))

    @cached_property
    def _factor(self) -> ReducedFactor:
        near = self._near
        if near is not None and near.serves(self._program, self._point.derivative):
            return near
        return self._system.factor(self._program, self._point)

    @cached_property
    def _off(self) -> tuple[Array, Array]:
        """How far off w may be, (B, m), and the solutions, relative to themselves, (B,).

        By a Newton step, with what rounding may do to its right-hand side.
        """
        point, structure, factor = self._point, self._program.structure, self._factor
        signs_x, signs_y = _signs(structure.n, structure.m)
        dual = point.dual + signs_x * point.scales.dual_rounding
        primal = point.primal + signs_y * point.scales.primal_rounding
        dx, dy = factor.newton_row_by_row(-dual, -primal)
        dw = self._moved_w(dx, dy, primal)
        error = self._size_of_step(dx, dy, dw)
        if factor.regular:
            return dw, error
        large = factor.singular & ~(error <= ACCURATE_SOLUTION)
        if np.any(large):  # the step of minimum norm: what is not unique has no error
            dx, dy, *_ = factor.solve(-dual, -primal, lambda index: np.ones(len(index), dtype=bool))
            shortest = self._moved_w(dx, dy, primal)
            error = np.where(large, self._size_of_step(dx, dy, shortest), error)
            dw = np.where(large[:, None], shortest, dw)
        return dw, error

    def _moved_w(self, dx: Array, dy: Array, primal: Array) -> Array:
        """How a Newton step on (dual, primal) moves w."""
        c, program = self._point.scales.c, self._program
        return c * dy + (program.structure.A.matvec(program.A, dx) + primal) / c

    def _size_of_step(self, dx: Array, dy: Array, dw: Array) -> Array:
        """The largest change of an output relative to it, or of w relative to its block, (B,)."""
        point = self._point
        dx = np.where((point.x == 0.0) & held_at_zero(self._program, point.s), 0.0, dx)  # exact, whatever is rounded
        return np.maximum(self._relative(dx, dy, self._respond), max_norm(dw / point.scales.size))

    @cached_property
    def _certain(self) -> Array:
        """Margins (B,) above which it is certain on which side of the jumps of D the solutions are."""
        return DerivativeReport.certain(max_norm(self._off[0] / self._point.scales.size))

    @cached_property
    def _error(self) -> Array:
        """How far off the solutions may be, or an eigenvalue d or 1 - d of D relative to it, (B,).

        Blocks at jumps are judged by their margin alone.
        """
        dw, error = self._off
        if not np.all(self._point.margin > self._certain):
            dw = np.where(self._weak, 0.0, dw)
        return np.maximum(error, self._point.derivative_change(dw))

    @cached_property
    def _weak(self) -> BoolArray:
        """Rows of the blocks that may be on either side of a jump of D, (B, m)."""
        weak = self._point.derivative.weak(self._point.scales.size, self._certain)
        return np.asarray(weak, dtype=bool)

    def vjp(
        self,
        cotangent: SolutionCotangent,
        *,
        on: Structure | None = None,
        seen: Callable[[ConeProgram], Array] = whole_data,
    ) -> tuple[ConeProgram, DerivativeReport]:
        """K [l; u] = [dx - A'ds; L'dy], v = ds + L u, then the gradients of ``data_cotangent``."""
        program, x, y = self._program, self._point.x, self._point.y
        structure = on or program.structure

        def outside(l: Array, v: Array) -> Array:  # noqa: E741 (the design's name)
            return seen(data_cotangent(structure, x, y, l, v))

        ds, top = cotangent.s, cotangent.x
        if ds is not None:
            top = top - program.structure.A.rmatvec(program.A, ds)
        l, v, report = self._solve(top, cotangent.y, outside)  # noqa: E741
        return data_cotangent(structure, x, y, l, v if ds is None else v + ds), report

    def jvp(
        self, tangent: ConeProgram, *, seen: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """With r1 = dP x + dq + dA'y and r2 = dA x - db: K [dx; u] = -[r1; L'r2], dy = L u, ds = -(A dx + r2)."""
        r1, r2 = self._right_hand_side(tangent)

        def outside(dx: Array, dy: Array) -> Array:
            return seen(self._tangent(dx, dy, 0.0))

        dx, dy, report = self._solve(-r1, -r2, outside)
        return self._tangent(dx, dy, r2), report

    def _right_hand_side(self, tangent: ConeProgram) -> tuple[Array, Array]:
        """R1 and r2 of ``jvp``."""
        P, A = tangent.structure.P, tangent.structure.A
        x, y = self._point.x, self._point.y
        return P.matvec(tangent.P, x) + tangent.q + A.rmatvec(tangent.A, y), A.matvec(tangent.A, x) - tangent.b

    def _respond(self, tangent: ConeProgram) -> tuple[Array, Array]:
        """(dx, dy) of ``jvp``, to the accuracy of a Newton step.

        Where K is singular they are of minimum norm, and A does not move the stationarity of x: multipliers have no
        bound there, and what they make of A tells nothing of the size of outputs.
        """
        factor, (r1, r2) = self._factor, self._right_hand_side(tangent)
        if factor.regular:
            return factor.newton(-r1, -r2)
        by_multipliers = tangent.structure.A.rmatvec(tangent.A, self._point.y)
        r1 = np.where(factor.singular[:, None], r1 - by_multipliers, r1)
        dx, dy, *_ = factor.solve(-r1, -r2, lambda index: np.ones(len(index), dtype=bool))
        return dx, dy

    def objective_report(self, *, seen: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """A null direction of K moves (x, y) among the solutions; all is well where the derivative does not move.

        The optimal value is smooth where multipliers are unique, whether constraints are weakly active or not: the
        margin is of no concern.
        """
        factor, batch, weak = self._factor, self._program.batch, self._weak

        def outside(dx: Array, dy: Array) -> Array:
            return seen(self._tangent(dx, dy, 0.0))

        singular = sees_null_space_of(factor, outside, place=np.arange(batch), batch=batch)
        ones = np.ones(weak.shape[1])
        for side in (ones, -ones):  # y is the less unique the more rows are active, x the fewer
            index = np.flatnonzero(np.any(weak, axis=1) & ~singular)
            if len(index):
                beside = self._factor_beside(index, weak[index], side)
                singular[index] = sees_null_space_of(beside, outside, place=index, batch=batch)
        nothing, far = np.zeros(batch), np.full(batch, np.inf)
        return DerivativeReport.judge(nothing, far, factor.condition, singular, self._off[1])

    def _tangent(self, dx: Array, dy: Array, r2: Array | float) -> SolutionTangent:
        return SolutionTangent(dx, dy, -(self._program.structure.A.matvec(self._program.A, dx) + r2))

    def _solve(self, top: Array, bottom: Array, outside: Seen) -> tuple[Array, Array, DerivativeReport]:
        """(l, v) of ``ReducedFactor.solve``, and the report."""
        factor, batch = self._factor, self._program.batch

        def visible(index: IndexArray) -> BoolArray:
            return sees_null_space(factor, index, outside, place=index, batch=batch)

        l, v, residual, singular = factor.solve(top, bottom, visible)  # noqa: E741
        margin, error = self._point.margin, self._error
        if factor.regular and DerivativeReport.all_ok(residual, margin, error):
            return l, v, DerivativeReport.ok(residual, margin, factor.condition)
        if not np.all(margin > self._certain):
            margin = self._effective_margin((l, v), (top, bottom), outside, ~singular)
        return l, v, DerivativeReport.judge(residual, margin, factor.condition, singular, error, self._certain)

    def _effective_margin(
        self, answer: tuple[Array, Array], rhs: tuple[Array, Array], outside: Seen, unique: BoolArray
    ) -> Array:
        """The margin without the blocks whose side of the jump does not change what was asked for.

        The answer must be the same, and as unique, with all of them in K*, with none, and with some at random. Where it
        is not unique as it is, nobody asks.
        """
        point, weak = self._point, self._weak
        margin = point.margin.copy()
        index = np.flatnonzero(np.any(weak, axis=1) & unique)
        ones, blocks = np.ones(weak.shape[1]), self._system.cone.largest_of_blocks
        some = np.sign(blocks(np.random.default_rng(0).normal(size=(1, weak.shape[1])))[0])
        for side in (ones, -ones, some, -some):
            if len(index):
                index = index[self._same_beside(index, weak[index], side, answer, rhs, outside)]
        if len(index):
            margin[index] = point.margin_without(weak)[index]
        return margin

    def _same_beside(
        self,
        index: IndexArray,
        weak: BoolArray,
        side: Array,
        answer: tuple[Array, Array],
        rhs: tuple[Array, Array],
        outside: Seen,
    ) -> BoolArray:
        """Whether the same is seen of these elements, and nothing of a null space, on that side of the jumps."""
        factor, batch = self._factor_beside(index, weak, side), self._program.batch

        def visible(some: IndexArray) -> BoolArray:
            return sees_null_space(factor, some, outside, place=index[some], batch=batch)

        top, bottom = (part[index] for part in rhs)
        *other, singular = factor.solve_unique(top, bottom, visible)
        here = answer[0][index], answer[1][index]
        noise = factor.rounding((other[0], other[1]), top, bottom)
        moved = (there - mine for there, mine in zip(other, here, strict=True))
        dl, dv = (np.where(np.abs(d) <= size, 0.0, d) for d, size in zip(moved, noise, strict=True))
        return ~singular & ~is_seen((dl, dv), here, outside, place=index, batch=batch)

    def _factor_beside(self, index: IndexArray, weak: BoolArray, side: Array) -> ReducedFactor:
        """K of these elements with D on that side of its jumps in the weak rows."""
        point = self._point.select(index)
        derivative = point.beside(weak, side, BESIDE * self._certain[index])
        return ReducedFactor(self._system, self._program.select(index), derivative, point.scales.c)


@lru_cache(maxsize=256)
def _signs(n: int, m: int) -> tuple[Array, Array]:
    """Random signs of so many numbers, always the same."""
    rng = np.random.default_rng(0)
    return rng.choice((-1.0, 1.0), n), rng.choice((-1.0, 1.0), m)
