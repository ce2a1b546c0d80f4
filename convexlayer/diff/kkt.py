"""The exact derivative, by one symmetric system (see ``reduced``) that is factorised once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.certificate import ComplementaryPoint
from convexlayer.diff.base import (
    AbstractDifferentiator,
    SolutionCotangent,
    SolutionTangent,
    data_cotangent,
    whole_data,
    whole_point,
)
from convexlayer.diff.reduced import VISIBLE, ReducedFactor, ReducedSystem
from convexlayer.diff.report import DerivativeReport
from convexlayer.program import Array, ConeProgram, Structure, max_norm
from convexlayer.solution import Solution

__all__ = ["ExactDifferentiator"]

RelativeChange = Callable[[Array, Array, Callable[[ConeProgram], tuple[Array, Array]]], Array]
"""See ``ExactDifferentiator``."""

NEGLIGIBLE = 1e-11
"""Part of the solution of the linear system that counts as zero, relative to its largest entry."""


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
        self._relative = relative or (lambda dx, dy, _: self._point.relative_change(dx, 0.0 * dy))

    @cached_property
    def _factor(self) -> ReducedFactor:
        near = self._near
        if near is not None and near.serves(self._program, self._point.derivative):
            return near
        return self._system.factor(self._program, self._point)

    @cached_property
    def _error(self) -> Array:
        """How far off the solutions may be, relative to themselves, (B,).

        A Newton step, with what rounding may have done to its right-hand side: the largest change of an output relative
        to it, of w relative to its block, and of an eigenvalue d or 1 - d of the projection's derivative.
        """
        point, program, factor = self._point, self._program, self._factor
        scales, c = point.scales, point.scales.c
        rng = np.random.default_rng(0)
        dual = point.dual + rng.choice((-1.0, 1.0), point.dual.shape[1]) * scales.dual_rounding
        primal = point.primal + rng.choice((-1.0, 1.0), point.primal.shape[1]) * scales.primal_rounding
        dx, dy = factor.newton_row_by_row(-dual, -primal)
        ds = -(program.structure.A.matvec(program.A, dx) + primal)
        dw = c * dy - ds / c
        error = np.maximum(self._relative(dx, dy, self._respond), max_norm(dw / scales.size))
        return np.maximum(error, point.derivative_change(dw))

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

        def visible(l: Array, v: Array) -> Array:  # noqa: E741 (the design's name)
            size = np.maximum(1.0, np.maximum(max_norm(x), max_norm(y)))[:, None]
            data = data_cotangent(structure, x, y, l, v)
            return max_norm(seen(replace(data, P=data.P / size, A=data.A / size)))

        ds, top = cotangent.s, cotangent.x
        if ds is not None:
            top = top - program.structure.A.rmatvec(program.A, ds)
        l, v, report = self._solve(top, cotangent.y, visible)  # noqa: E741
        return data_cotangent(structure, x, y, l, v if ds is None else v + ds), report

    def jvp(
        self, tangent: ConeProgram, *, seen: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """With r1 = dP x + dq + dA'y and r2 = dA x - db: K [dx; u] = -[r1; L'r2], dy = L u, ds = -(A dx + r2)."""
        r1, r2 = self._right_hand_side(tangent)

        def visible(dx: Array, dy: Array) -> Array:
            return max_norm(seen(self._tangent(dx, dy, 0.0)))

        dx, dy, report = self._solve(-r1, -r2, visible)
        return self._tangent(dx, dy, r2), report

    def _right_hand_side(self, tangent: ConeProgram) -> tuple[Array, Array]:
        """R1 and r2 of ``jvp``."""
        P, A = tangent.structure.P, tangent.structure.A
        x, y = self._point.x, self._point.y
        return P.matvec(tangent.P, x) + tangent.q + A.rmatvec(tangent.A, y), A.matvec(tangent.A, x) - tangent.b

    def _respond(self, tangent: ConeProgram) -> tuple[Array, Array]:
        """(dx, dy) of ``jvp``, to the accuracy of a Newton step."""
        r1, r2 = self._right_hand_side(tangent)
        return self._factor.newton(-r1, -r2)

    def objective_report(self, *, seen: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """A null direction of K moves (x, y) among the solutions; all is well where the derivative does not move.

        The optimal value is smooth where multipliers are unique, whether constraints are weakly active or not: the
        margin is of no concern.
        """
        factor, batch = self._factor, self._program.batch
        singular = factor.singular
        if np.any(singular):
            singular = singular & (max_norm(seen(self._tangent(*factor.null_direction, 0.0))) > VISIBLE)
        return DerivativeReport.judge(
            np.zeros(batch), np.full(batch, np.inf), factor.condition, singular, self._error
        )

    def _tangent(self, dx: Array, dy: Array, r2: Array | float) -> SolutionTangent:
        return SolutionTangent(dx, dy, -(self._program.structure.A.matvec(self._program.A, dx) + r2))

    def _solve(
        self, top: Array, bottom: Array, visible: Callable[[Array, Array], Array]
    ) -> tuple[Array, Array, DerivativeReport]:
        """(l, v) of ``ReducedFactor.solve``, and the report."""
        factor = self._factor
        l, v, residual, singular = factor.solve(top, bottom, visible)  # noqa: E741
        if factor.regular and DerivativeReport.beyond_doubt(residual, self._point.margin, self._error):
            return l, v, DerivativeReport.ok(residual, self._point.margin, factor.condition)
        margin = self._margin_that_matters(l, v, bottom)
        return l, v, DerivativeReport.judge(residual, margin, factor.condition, singular, self._error)

    def _margin_that_matters(self, l: Array, v: Array, bottom: Array) -> Array:  # noqa: E741
        """The margin without the nonnegative rows on which (l, v) is right whether they are active or not.

        Active rows ask for (A l - bottom)_i = 0 and leave v_i free, inactive ones ask for v_i = 0; where both hold, the
        side that row i lies on makes no difference.
        """
        return self._point.margin
