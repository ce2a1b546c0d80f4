"""A batch of solutions, and the derivative of the solution map at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from typing import Any, final

import numpy as np

from convexlayer.canon import ParametricProgram
from convexlayer.diff import AbstractDifferentiator, DerivativeReport, SolutionCotangent, SolutionTangent
from convexlayer.layers.derivative_arguments import checked_arrays, checked_mask, result_specs, with_last
from convexlayer.layers.outputs import OutputChange
from convexlayer.layers.report import Report
from convexlayer.program import Array, IndexArray, ProgramCotangent
from convexlayer.solution import BoolArray, Solution

__all__ = ["SolvedBatch"]


@final
class SolvedBatch:
    """A batch of solutions, with vjp and jvp of the solution map at them (``AbstractSolvedBatch``).

    Attributes:
        report: the report of the solve.
        objective: objective values of the problem, (B,); NaN without a solution.
        batched: mask of the parameters whose values had a batch axis.
    """

    def __init__(
        self,
        program: ParametricProgram,
        differentiate: Callable[..., AbstractDifferentiator],
        features: Array,
        objective: Array,
        report: Report,
        *,
        batched: Sequence[bool],
    ) -> None:
        """Store the results of ``SolutionMap.solve``.

        Args:
            program: the parametric program.
            differentiate: creates the derivative at the elements at given positions (None for all).
            features: feature vectors, (B, features).
            objective: see the attributes.
            report: see the attributes.
            batched: see the attributes.
        """
        self.report = report
        self.objective = objective
        self.batched = tuple(batched)
        self._solution = report.solution
        self._all_solved = report.solution.all_solved
        self._program = program
        self._differentiate = differentiate
        self._features = features

    @property
    def batch(self) -> int:
        """Number of elements."""
        return len(self._features)

    @cached_property
    def iterates(self) -> tuple[Array, ...]:
        """The outputs, each (B, *shape); the solver's last iterate for elements without a solution."""
        return self._program.recovery.apply(self._features, self._solution.x, self._solution.y)

    @cached_property
    def outputs(self) -> tuple[Array, ...]:
        """The outputs, each (B, *shape); NaN for elements without a solution."""
        if self._all_solved:
            return self.iterates
        solved = self._solution.solved
        return tuple(np.where(_column(solved, value), value, np.nan) for value in self.iterates)

    def vjp(
        self, cotangents: Sequence[Array | None], *, wrt: Sequence[bool] | None = None, per_element: bool = True
    ) -> tuple[tuple[Array | None, ...], DerivativeReport]:
        """Compute gradients of a loss with respect to the parameters.

        Args:
            cotangents: d loss / d output, each (B, *shape), and last d loss / d objective value, (B,), which may be
                left out; None is zero. Rows of elements without a solution are ignored. By the envelope theorem the
                derivative of the objective value is the partial derivative of the Lagrangian.
            wrt: mask of the parameters; default all.
            per_element: whether gradients of parameters without a batch axis have one too, or are summed over the
                elements.

        Returns:
            One array (B, *shape) per parameter, zero for elements without a solution, or of the parameter's shape if
            summed; None for parameters not in ``wrt``. And the accuracy report.

        Raises:
            ShapeError: the wrong number of cotangents or entries of ``wrt``, or a cotangent of the wrong shape.
        """
        program, features = self._program, self._solved_rows(self._features)
        wanted, results = checked_mask("wrt", wrt, len(program.parameters)), result_specs(program)
        *at_outputs, at_objective = checked_arrays(
            "cotangents", with_last(cotangents, None, results), results, self.batch
        )
        columns = None if all(wanted) else program.features.mask_of(wanted)
        moved: list[Array] = []
        reports: list[DerivativeReport] = []
        some = self._any_solved
        if some and any(c is not None for c in at_outputs):
            chosen = [None if c is None else self._solved_rows(c) for c in at_outputs]
            direct, dx, dy = program.recovery.pull(self._point, self._values, chosen)
            gradient, report = self._differentiator.vjp(
                SolutionCotangent(dx, dy), observe=lambda data: program.pullback(features, data, wanted=columns)
            )
            moved.append(program.pullback(features, gradient, wanted=columns))
            moved += [] if direct is None else [direct]
            reports.append(report)
        if some and at_objective is not None:
            weight = self._slope * self._solved_rows(at_objective)
            moved.append(program.pullback(features, self._value_cotangent(weight), wanted=columns))
            reports.append(self._objective_report(columns))
        total = reduce(np.add, moved) if moved else np.zeros_like(features)
        pulled = program.split(program.features.pull(features, total))
        gradients = tuple(
            None if not want else self._scatter(value) if batched or per_element else np.asarray(value.sum(axis=0))
            for value, want, batched in zip(pulled, wanted, self.batched, strict=True)
        )
        return gradients, self._report(reports)

    def jvp(
        self, tangents: Sequence[Array | None], *, of: Sequence[bool] | None = None
    ) -> tuple[tuple[Array | None, ...], DerivativeReport]:
        """Compute tangents of the outputs and of the objective value, element by element.

        Args:
            tangents: one per parameter, (B, *shape), or of the parameter's shape for all elements; None is zero.
            of: mask of the outputs and, last, of the objective value, which may be left out; default all. The report
                ignores whether other outputs are unique.

        Returns:
            One array (B, *shape) per output, and (B,) for the objective value, NaN for elements without a solution;
            None for those not in ``of``. And the accuracy report, which covers the outputs only; that of ``vjp`` covers
            the objective value too.

        Raises:
            ShapeError: the wrong number of tangents or entries of ``of``, or a tangent of the wrong shape.
        """
        program, recovery = self._program, self._program.recovery
        results = result_specs(program)
        wanted = checked_mask("of", None if of is None else with_last(of, True, results), len(results))
        values = checked_arrays("tangents", tangents, program.parameters, self.batch, shared=True)
        features = self._solved_rows(self._features)
        push = self._solved_rows(program.features.push(self._features, values))
        data = program.push(features, push)
        reports: list[DerivativeReport] = []
        dx, dy = self._solved_part.x, self._solved_part.y  # of an empty batch
        if self._any_solved:
            observed = recovery.entries_of(wanted[:-1])
            moved, report = self._differentiator.jvp(
                data, observe=lambda moved: recovery.push_linear(features, moved.x, moved.y)[:, observed]
            )
            dx, dy = moved.x, moved.y
            reports.append(report)
        pushed = (
            *recovery.push(self._point, self._values, (push, dx, dy)),
            self._slope * self._value_cotangent(np.ones(len(features))).inner(data),
        )
        moved_results = tuple(
            self._scatter(value, fill=np.nan) if want else None for value, want in zip(pushed, wanted, strict=True)
        )
        return moved_results, self._report(reports)

    @cached_property
    def _solved_index(self) -> IndexArray:
        return np.flatnonzero(self._solution.solved).astype(np.int64)

    def _solved_rows(self, value: Array) -> Array:
        """Select the rows of the solved elements; returns the array itself if all are solved."""
        return value if self._all_solved else value[self._solved_index]

    def _scatter(self, value: Array, fill: float = 0.0) -> Array:
        """Scatter rows of the solved elements, with ``fill`` for the others; the array itself if all are solved."""
        if self._all_solved:
            return value
        out = np.full((self.batch, *value.shape[1:]), fill)
        out[self._solved_index] = value
        return out

    @property
    def _any_solved(self) -> bool:
        """Whether some element has a solution."""
        return self.batch > 0 and (self._all_solved or len(self._solved_index) > 0)

    @cached_property
    def _solved_part(self) -> Solution:
        return self._solution if self._all_solved else self._solution.select(self._solved_index)

    @property
    def _point(self) -> tuple[Array, Array, Array]:
        """Features, x and y of the solved elements."""
        return self._solved_rows(self._features), self._solved_part.x, self._solved_part.y

    @property
    def _values(self) -> list[Array]:
        """The outputs of the solved elements."""
        return [self._solved_rows(value) for value in self.iterates]

    @cached_property
    def _differentiator(self) -> AbstractDifferentiator:
        change = OutputChange(self._program, *self._point, self._values)
        return self._differentiate(None if self._all_solved else self._solved_index, relative=change)

    @property
    def _slope(self) -> Array:
        """Derivative of the problem's objective value by the program's, for the solved elements."""
        return self._program.objective.slope(self._solved_rows(self.objective))

    def _value_cotangent(self, weight: Array) -> ProgramCotangent:
        """weight (B,) times the derivative of the program's optimal value, for the solved elements."""
        return ProgramCotangent.of_value(self._solved_part.x, self._solved_part.y, weight)

    def _objective_report(self, columns: BoolArray | None) -> DerivativeReport:
        """Accuracy report of the objective's derivative with respect to the features in ``columns``."""
        features, x, y = self._point

        def observe(moved: SolutionTangent) -> Array:
            """How the derivative of the optimal value changes when the solution moves."""
            return self._program.pullback(features, ProgramCotangent(x, y, -moved.x, -moved.y), wanted=columns)

        return self._differentiator.objective_report(observe=observe)

    def _report(self, reports: list[DerivativeReport]) -> DerivativeReport:
        """Combine the reports of the solved elements, and scatter them into the whole batch."""
        if not reports:
            count = len(self._solved_index)
            reports = [DerivativeReport.ok(np.zeros(count), np.full(count, np.inf), np.ones(count))]
        report = reduce(DerivativeReport.worse, reports)
        if self._all_solved:
            return report
        index, batch = self._solved_index, self.batch
        status = np.full(batch, "failed", dtype=object)
        status[index] = report.status
        consistent = np.zeros(batch, dtype=bool)
        consistent[index] = report.consistent
        return DerivativeReport(
            linear_residual=self._scatter(report.linear_residual, fill=np.nan),
            margin=self._scatter(report.margin, fill=np.nan),
            condition=self._scatter(report.condition, fill=np.nan),
            consistent=consistent,
            status=tuple(status.tolist()),
        )


def _column(mask: Any, value: Array) -> Any:
    return mask.reshape(-1, *[1] * (value.ndim - 1))
