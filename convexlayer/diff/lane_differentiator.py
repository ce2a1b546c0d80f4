"""The exact derivative by kernels, for the elements at which nothing needs a closer look.

What a closer look is for, ``exact`` says: singular systems, weakly active blocks, inaccurate solutions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, final

import numpy as np

from convexlayer.certificate import ComplementaryPoint
from convexlayer.diff.base import (
    AbstractDifferentiator,
    SolutionCotangent,
    SolutionTangent,
    whole_point,
    whole_program,
)
from convexlayer.diff.exact import ExactDifferentiator, RelativeChange, change_of_x
from convexlayer.diff.kkt_system import KKTFactor, KKTSystem
from convexlayer.diff.report import ACCURATE, ACCURATE_SOLUTION, DerivativeReport
from convexlayer.linalg import SINGULAR
from convexlayer.program import Array, ConeProgram, IndexArray, ProgramCotangent
from convexlayer.solution import BoolArray, Solution

if TYPE_CHECKING:
    from convexlayer.diff.lanes.calls import LaneFactor

__all__ = ["LaneDifferentiator", "exact_differentiator"]


def exact_differentiator(
    system: KKTSystem,
    program: ConeProgram,
    solution: Solution,
    *,
    factor: KKTFactor | None = None,
    point: ComplementaryPoint | None = None,
    relative: RelativeChange | None = None,
) -> AbstractDifferentiator:
    """The exact derivative, by kernels where they are used; see ``ExactDifferentiator`` for the arguments."""
    if system.lanes is None:
        return ExactDifferentiator(system, program, solution, factor=factor, point=point, relative=relative)
    point = point or solution.complementary(program)
    return LaneDifferentiator(system, program, solution, point, relative or change_of_x(point))


@final
class LaneDifferentiator(AbstractDifferentiator):
    """Exact derivative at a batch of solutions by kernels; ``ExactDifferentiator`` takes over elements in doubt.

    An element is in doubt unless the condition of K, the margin and the estimated error of its solution are all good
    enough for a derivative with status ok, whatever is asked for.
    """

    def __init__(
        self,
        system: KKTSystem,
        program: ConeProgram,
        solution: Solution,
        point: ComplementaryPoint,
        relative: RelativeChange,
    ) -> None:
        """Store the arguments, which are those of ``ExactDifferentiator``; nothing is computed yet."""
        assert system.lanes is not None
        self._system, self._lanes = system, system.lanes
        self._program, self._solution, self._point, self._relative = program, solution, point, relative
        self._careful: dict[bytes, ExactDifferentiator] = {}

    @cached_property
    def _factor(self) -> LaneFactor:
        return self._lanes.factor(self._program, self._point)

    @cached_property
    def _doubtful(self) -> BoolArray:
        """Mask (B,) of the elements in doubt."""
        factor = self._factor
        error = np.maximum(factor.error, self._relative(factor.dx, factor.dy, _no_response))
        certain = DerivativeReport.certain_margin(error)
        good = (factor.condition < SINGULAR) & (factor.margin > certain) & (error <= ACCURATE_SOLUTION)
        return ~good

    def vjp(
        self, cotangent: SolutionCotangent, *, observe: Callable[[ProgramCotangent], Array] | None = None
    ) -> tuple[ProgramCotangent, DerivativeReport]:
        """See ``AbstractDifferentiator``."""
        program, x, y, ds, top = self._program, self._point.x, self._point.y, cotangent.s, cotangent.x
        if ds is not None:
            top = top - program.structure.A.rmatvec(program.A, ds)
        l, v, residual = self._lanes.solve(self._factor, top, cotangent.y)  # noqa: E741 (the name in the mathematics)
        gradient = ProgramCotangent(x, y, l, v if ds is None else v + ds)
        index = self._in_doubt(residual)
        if not len(index):
            return gradient, DerivativeReport.ok(residual, self._factor.margin, self._factor.condition)
        used, batch = observe or whole_program(program.structure), len(x)

        def observed(part: ProgramCotangent) -> Array:
            return used(ProgramCotangent(*(_spread(each, index, batch) for each in (part.x, part.y, part.l, part.v))))[
                index
            ]

        chosen = SolutionCotangent(cotangent.x[index], cotangent.y[index], None if ds is None else ds[index])
        found, report = self._carefully(index).vjp(chosen, observe=observed)
        gradient.l[index], gradient.v[index] = found.l, found.v
        return gradient, self._report(residual, index, report)

    def jvp(
        self, tangent: ConeProgram, *, observe: Callable[[SolutionTangent], Array] = whole_point
    ) -> tuple[SolutionTangent, DerivativeReport]:
        """See ``AbstractDifferentiator``."""
        A, (r1, r2) = self._program.structure.A, tangent.residuals_at(self._point.x, self._point.y)
        dx, dy, residual = self._lanes.solve(self._factor, -r1, -r2)
        moved = SolutionTangent(dx, dy, -(A.matvec(self._program.A, dx) + r2))
        index = self._in_doubt(residual)
        if not len(index):
            return moved, DerivativeReport.ok(residual, self._factor.margin, self._factor.condition)
        found, report = self._carefully(index).jvp(tangent.select(index), observe=self._observed(observe, index))
        moved.x[index], moved.y[index], moved.s[index] = found.x, found.y, found.s
        return moved, self._report(residual, index, report)

    def objective_report(self, *, observe: Callable[[SolutionTangent], Array]) -> DerivativeReport:
        """See ``AbstractDifferentiator``."""
        batch, index = len(self._point.x), np.flatnonzero(self._doubtful)
        nothing, far = np.zeros(batch), np.full(batch, np.inf)
        if not len(index):
            return DerivativeReport.ok(nothing, far, self._factor.condition)
        report = self._carefully(index).objective_report(observe=self._observed(observe, index))
        return self._report(nothing, index, report, margin=far)

    def _in_doubt(self, residual: Array) -> IndexArray:
        """Positions of the elements in doubt, given the relative residuals of their linear systems."""
        return (self._doubtful | ~(residual <= ACCURATE)).nonzero()[0]

    def _observed(
        self, observe: Callable[[SolutionTangent], Array], index: IndexArray
    ) -> Callable[[SolutionTangent], Array]:
        """``observe`` for a batch of the elements at ``index``."""
        batch = len(self._point.x)

        def observed(part: SolutionTangent) -> Array:
            return observe(SolutionTangent(*(_spread(each, index, batch) for each in (part.x, part.y, part.s))))[index]

        return observed

    def _carefully(self, index: IndexArray) -> ExactDifferentiator:
        """The derivative of the elements at ``index``, which judges them closely."""
        key = index.tobytes()
        if key not in self._careful:
            batch, relative = len(self._point.x), self._relative

            def of_part(dx: Array, dy: Array, respond: Callable[[ConeProgram], tuple[Array, Array]]) -> Array:
                def respond_to(tangent: ConeProgram) -> tuple[Array, Array]:
                    x, y = respond(tangent.select(index))
                    return _spread(x, index, batch), _spread(y, index, batch)

                return relative(_spread(dx, index, batch), _spread(dy, index, batch), respond_to)[index]

            program, solution = self._program.select(index), self._solution.select(index)
            point = self._point.select(index)
            self._careful[key] = ExactDifferentiator(self._system, program, solution, point=point, relative=of_part)
        return self._careful[key]

    def _report(
        self, residual: Array, index: IndexArray, careful: DerivativeReport, *, margin: Array | None = None
    ) -> DerivativeReport:
        """The report of the batch, with that of the elements at ``index``."""
        measures = [residual, self._factor.margin if margin is None else margin, self._factor.condition]
        measures = [measure.copy() for measure in measures]
        found = careful.linear_residual, careful.margin, careful.condition
        for whole, part in zip(measures, found, strict=True):
            whole[index] = part
        report = DerivativeReport.ok(*measures)
        report.consistent[index] = careful.consistent
        words = list(report.status)
        for i, word in zip(index.tolist(), careful.status, strict=True):
            words[i] = word
        return replace(report, status=tuple(words))


def _spread(values: Array, index: IndexArray, batch: int) -> Array:
    """Rows of the elements at ``index`` in a batch, zeros elsewhere."""
    whole = np.zeros((batch, *values.shape[1:]))
    whole[index] = values
    return whole


def _no_response(tangent: ConeProgram) -> tuple[Array, Array]:
    """Without a response, outputs near zero make an element doubtful."""
    return np.zeros_like(tangent.q), np.zeros_like(tangent.b)
