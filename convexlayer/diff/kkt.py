"""The exact derivative, by one symmetric system (see ``reduced``) that is factorised once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import final

import numpy as np

from convexlayer.cones import ProductDerivative, ProductPoint
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
        at: ProductPoint | None = None,
        accuracy: Array | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            system: of the programs' structure.
            program: the programs.
            solution: their solutions. Every element must have a finite point.
            factor: one made nearby, for instance by ``polished``; used if it is that of these solutions too.
            at: the cones at w = y - s, if they have been asked there.
            accuracy: the worst residual of each solution, (B,), if it is known.
        """
        self._system = system
        self._program = program
        self._solution = solution
        self._near = factor
        self._at = at or solution.at(program.structure.cones)
        self._accuracy = accuracy

    @property
    def _w(self) -> Array:
        return self._at.w

    @cached_property
    def _w_scale(self) -> Array:
        return max_norm(self._w)

    @property
    def _derivative(self) -> ProductDerivative:
        return self._at.derivative

    @cached_property
    def _solution_residual(self) -> Array:
        return self._solution.residuals(self._program).worst if self._accuracy is None else self._accuracy

    @cached_property
    def _margin(self) -> Array:
        return self._derivative.margin

    @cached_property
    def _factor(self) -> ReducedFactor:
        near, derivative = self._near, self._derivative
        if near is not None and near.serves(self._program, derivative):
            return near
        return self._system.factor(self._program, derivative)

    def vjp(
        self,
        cotangent: SolutionCotangent,
        *,
        on: Structure | None = None,
        seen: Callable[[ConeProgram], Array] = whole_data,
    ) -> tuple[ConeProgram, DerivativeReport]:
        """K [l; u] = [dx - A'ds; L'dy], v = ds + L u, then the gradients of ``data_cotangent``."""
        program, x, y = self._program, self._solution.x, self._solution.y
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
        P, A = tangent.structure.P, tangent.structure.A
        x, y = self._solution.x, self._solution.y
        r1 = P.matvec(tangent.P, x) + tangent.q + A.rmatvec(tangent.A, y)
        r2 = A.matvec(tangent.A, x) - tangent.b

        def visible(dx: Array, dy: Array) -> Array:
            return max_norm(seen(self._tangent(dx, dy, 0.0)))

        dx, dy, report = self._solve(-r1, -r2, visible)
        return self._tangent(dx, dy, r2), report

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
            np.zeros(batch),
            np.full(batch, np.inf),
            factor.condition,
            singular,
            self._w_scale,
            self._solution_residual,
        )

    def _tangent(self, dx: Array, dy: Array, r2: Array | float) -> SolutionTangent:
        return SolutionTangent(dx, dy, -(self._program.structure.A.matvec(self._program.A, dx) + r2))

    def _solve(
        self, top: Array, bottom: Array, visible: Callable[[Array, Array], Array]
    ) -> tuple[Array, Array, DerivativeReport]:
        """(l, v) of ``ReducedFactor.solve``, and the report."""
        factor = self._factor
        l, v, residual, singular = factor.solve(top, bottom, visible)  # noqa: E741
        w_scale, solution_residual = self._w_scale, self._solution_residual
        if factor.regular and DerivativeReport.beyond_doubt(residual, self._margin, w_scale, solution_residual):
            return l, v, DerivativeReport.ok(residual, self._margin, factor.condition)
        margin = self._margin_that_matters(l, v, bottom)
        return l, v, DerivativeReport.judge(residual, margin, factor.condition, singular, w_scale, solution_residual)

    def _margin_that_matters(self, l: Array, v: Array, bottom: Array) -> Array:  # noqa: E741
        """The margin without the nonnegative rows on which (l, v) is right whether they are active or not.

        Active rows ask for (A l - bottom)_i = 0 and leave v_i free, inactive ones ask for v_i = 0; where both hold, the
        side that row i lies on makes no difference.
        """
        index = np.flatnonzero(self._margin <= DerivativeReport.certain(self._w_scale, self._solution_residual))
        cones = self._program.structure.cones
        rows = slice(cones.zero, cones.zero + cones.nonnegative)
        if not len(index) or not cones.nonnegative:
            return self._margin
        l, v, bottom, w = l[index], v[index], bottom[index], self._w[index]  # noqa: E741
        active = self._program.structure.A.matvec(self._program.A[index], l) - bottom
        largest = np.maximum(np.maximum(max_norm(l), max_norm(v)), max_norm(bottom))
        negligible = NEGLIGIBLE * largest[:, None]
        either = (np.abs(active[:, rows]) <= negligible) & (np.abs(v[:, rows]) <= negligible)
        margin = np.min(np.where(either, np.inf, np.abs(w[:, rows])), axis=1)
        for group, other in zip(self._system.cone.groups, self._derivative.margins, strict=True):
            if group.rows != rows:
                margin = np.minimum(margin, other[index])
        whole = self._margin.copy()
        whole[index] = margin
        return whole
