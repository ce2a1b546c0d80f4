"""A batch of solutions, and the derivative of the solution map at them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from typing import Any, final

import numpy as np

from convexlayer.arguments import as_array
from convexlayer.canon import OutputSpec, ParameterSpec, ParametricProgram
from convexlayer.diff import AbstractDifferentiator, DerivativeReport, SolutionCotangent, SolutionTangent
from convexlayer.errors import ShapeError
from convexlayer.layers.outputs import OutputChange
from convexlayer.layers.report import Report
from convexlayer.program import Array, ConeProgram, IndexArray, Structure
from convexlayer.solution import BoolArray, Solution

__all__ = ["SolvedBatch"]


_OBJECTIVE = OutputSpec("objective", ())


@final
class SolvedBatch:
    """A batch of solutions, with vjp and jvp of the solution map at them.

    Attributes:
        objective: objective values of the problem, (B,); NaN without a solution.
        report: the report of the solve; ``vjp`` and ``jvp`` fill its ``derivative``.
        batched: whether any parameter value had a batch axis.
    """

    def __init__(
        self,
        parametric: ParametricProgram,
        differentiate: Callable[..., AbstractDifferentiator],
        features: Array,
        program: ConeProgram,
        solution: Solution,
        scale: Array,
        objective: Array,
        report: Report,
        *,
        batched: bool,
    ) -> None:
        """Store the results of ``SolutionMap.solve``; objectives of program and solution are divided by ``scale``."""
        self.objective = objective
        self.report = report
        self.batched = batched
        self._parametric = parametric
        self._differentiate = differentiate
        self._features = features
        self._program = program
        self._solution = solution
        self._scale = scale

    @property
    def batch(self) -> int:
        """Number of elements."""
        return self._program.batch

    @cached_property
    def iterates(self) -> tuple[Array, ...]:
        """The outputs, each (B, *shape); the solver's last iterate for elements without a solution."""
        solution = self.report.solution  # its duals are not divided by the objective scale
        return self._parametric.recovery.apply(self._features, solution.x, solution.y)

    @cached_property
    def outputs(self) -> tuple[Array, ...]:
        """The outputs, each (B, *shape); NaN for elements without a solution."""
        if self._all_solved:
            return self.iterates
        solved = self._solution.solved
        return tuple(np.where(_column(solved, value), value, np.nan) for value in self.iterates)

    def vjp(
        self,
        cotangents: Sequence[Array | None],
        *,
        objective: Array | None = None,
        wrt: Sequence[bool] | None = None,
    ) -> tuple[Array | None, ...]:
        """Compute gradients of a loss with respect to the parameters, element by element.

        Args:
            cotangents: d loss / d output, each (B, *shape); None is zero. Rows of elements without a solution are
                ignored.
            objective: d loss / d objective value, (B,). By the envelope theorem the derivative of the objective value
                is the partial derivative of the Lagrangian.
            wrt: mask of the parameters; default all.

        Returns:
            One array (B, *shape) per parameter, zero for elements without a solution; None for parameters not in
            ``wrt``.

        Raises:
            ShapeError: the wrong number of cotangents or entries of ``wrt``, or a cotangent of the wrong shape.
        """
        start = time.perf_counter()
        if wrt is not None and len(wrt) != len(self._parametric.parameters):
            raise ShapeError(f"expected {len(self._parametric.parameters)} entries in wrt, got {len(wrt)}")
        cotangents = self._checked("cotangents", cotangents, self._parametric.outputs)
        if objective is not None:
            (objective,) = self._checked("cotangents", [objective], [_OBJECTIVE])
        some = self.batch > 0 and (self._all_solved or len(self._solved_index) > 0)
        program = self._parametric
        scale, features = self._solved_rows(self._scale), self._solved_rows(self._features)
        wanted = [True] * len(program.parameters) if wrt is None else list(wrt)
        columns = None if all(wanted) else program.features.mask_of(wanted)
        moved: list[Array] = []
        reports: list[DerivativeReport] = []
        if some and any(c is not None for c in cotangents):
            chosen = [None if c is None else self._solved_rows(c) for c in cotangents]
            direct, dx, dy = program.recovery.pull(self._point, self._values, chosen)
            gradient, derivative = self._differentiator.vjp(
                SolutionCotangent(dx, dy * scale[:, None]),
                on=program.varying,
                observe=lambda data: program.pullback(features, data, scale=scale, wanted=columns),
            )
            moved.append(program.pullback(features, gradient, scale=scale, wanted=columns))
            moved += [] if direct is None else [direct]
            reports.append(derivative)
        if some and objective is not None:
            weight = self._slope * self._solved_rows(objective)
            envelope = _envelope(program.varying, self._solved_part[1].with_objective_divided(1.0 / scale), weight)
            moved.append(program.pullback(features, envelope, wanted=columns))
            reports.append(self._objective_report(columns))
        self._record(reports)
        total = reduce(np.add, moved) if moved else np.zeros_like(features)
        pulled = program.split(program.features.pull(features, total))
        self.report.seconds["derivative"] = time.perf_counter() - start
        return tuple(self._scatter(value) if want else None for value, want in zip(pulled, wanted, strict=True))

    def jvp(
        self, tangents: Sequence[Array | None], *, of: Sequence[bool] | None = None
    ) -> tuple[tuple[Array, ...], Array]:
        """Compute tangents of the outputs and of the objective value, element by element.

        Args:
            tangents: one per parameter, (B, *shape), or of the parameter's shape for all elements; None is zero.
            of: mask of the outputs that the caller will use, default all; the report ignores whether the others are
                unique.

        Returns:
            One array (B, *shape) per output, and (B,) for the objective value; NaN for elements without a solution.
            The report covers the outputs only; that of ``vjp`` covers the objective value too.

        Raises:
            ShapeError: the wrong number of tangents, or a tangent of the wrong shape.
        """
        start = time.perf_counter()
        index = self._solved_index
        program, recovery = self._parametric, self._parametric.recovery
        values = self._checked("tangents", tangents, program.parameters, shared=True)
        features, push = self._solved_rows(self._features), program.features.push(self._features, values)[index]
        data = program.push(features, push)
        part, solution = self._solved_part
        scale = self._solved_rows(self._scale)
        if len(index):
            observed = recovery.of([True] * len(program.outputs) if of is None else of)
            moved, derivative = self._differentiator.jvp(
                data.with_objective_divided(scale),
                observe=lambda moved: recovery.push_linear(features, moved.x, moved.y * scale[:, None])[:, observed],
            )
            self._record([derivative])
            dx, dy = moved.x, moved.y * scale[:, None]
        else:
            dx, dy = solution.x, solution.y
        outputs = recovery.push(self._point, self._values, (push, dx, dy))
        unit = _envelope(part.structure, solution.with_objective_divided(1.0 / scale), np.ones(len(index)))
        objective = self._slope * _inner(data, unit)
        self.report.seconds["derivative"] = time.perf_counter() - start
        return (
            tuple(self._scatter(value, fill=np.nan) for value in outputs),
            self._scatter(objective, fill=np.nan),
        )

    def _checked(
        self,
        what: str,
        values: Sequence[Array | None],
        specs: Sequence[ParameterSpec | OutputSpec],
        *,
        shared: bool = False,
    ) -> list[Array | None]:
        """Convert cotangents or tangents to arrays and check their shapes; with ``shared``, the batch axis may lack."""
        if len(values) != len(specs):
            named = ", ".join(spec.name for spec in specs)
            raise ShapeError(f"expected {len(specs)} {what} (for {named}), got {len(values)}")
        arrays: list[Array | None] = []
        for spec, value in zip(specs, values, strict=True):
            if value is None:
                arrays.append(None)
                continue
            array, whole = as_array(f"{what} of {spec.name!r}", value), (self.batch, *spec.shape)
            if array.shape != whole and not (shared and array.shape == spec.shape):
                raise ShapeError(f"{what} of {spec.name!r}: expected shape {whole}, got {array.shape}")
            arrays.append(array)
        return arrays

    @property
    def _all_solved(self) -> bool:
        """Whether every element has a solution."""
        return self._solution.all_solved

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

    @cached_property
    def _solved_part(self) -> tuple[ConeProgram, Solution]:
        if self._all_solved:
            return self._program, self._solution
        return self._program.select(self._solved_index), self._solution.select(self._solved_index)

    @cached_property
    def _point(self) -> tuple[Array, Array, Array]:
        """Features, x and y of the solved elements; y is not divided by the objective scale."""
        whole = (self._features, self.report.solution.x, self.report.solution.y)
        features, x, y = map(self._solved_rows, whole)
        return features, x, y

    @property
    def _values(self) -> list[Array]:
        """The outputs of the solved elements."""
        return [self._solved_rows(value) for value in self.iterates]

    @cached_property
    def _differentiator(self) -> AbstractDifferentiator:
        features, x, y = self._point
        change = OutputChange(self._parametric, features, x, y, self._values, self._solved_rows(self._scale))
        return self._differentiate(None if self._all_solved else self._solved_index, relative=change)

    @cached_property
    def _slope(self) -> Array:
        """Derivative of the problem's objective value by the program's, for the solved elements."""
        part, solution = self._solved_part
        return self._parametric.objective.slope(part.objective(solution.x) * self._solved_rows(self._scale))

    def _objective_report(self, columns: BoolArray | None) -> DerivativeReport:
        """Accuracy report of the objective's derivative with respect to the features in ``columns``."""
        part, solution = self._solved_part
        P, A, x, y = part.structure.P, part.structure.A, solution.x, solution.y

        def observe(moved: SolutionTangent) -> Array:
            data = ConeProgram(
                part.structure,
                P=0.5 * (moved.x[:, P.rows] * x[:, P.cols] + x[:, P.rows] * moved.x[:, P.cols]),
                q=moved.x,
                r=np.zeros(part.batch),
                A=moved.y[:, A.rows] * x[:, A.cols] + y[:, A.rows] * moved.x[:, A.cols],
                b=-moved.y,
            )
            features = self._solved_rows(self._features)
            return self._parametric.pullback(features, data, wanted=columns)

        return self._differentiator.objective_report(observe=observe)

    def _record(self, reports: list[DerivativeReport]) -> None:
        if reports:
            self.report.record.report = self._spread(reduce(DerivativeReport.worse, reports))

    def _spread(self, report: DerivativeReport) -> DerivativeReport:
        """Scatter the report of the solved elements into the whole batch."""
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


def _inner(left: ConeProgram, right: ConeProgram) -> Array:
    """Inner products (B,) of program tangents and cotangents."""
    pairs = ((left.P, right.P), (left.q, right.q), (left.A, right.A), (left.b, right.b))
    return left.r * right.r + sum((np.sum(a * b, axis=1) for a, b in pairs), np.zeros(left.batch))


def _envelope(structure: Structure, solution: Solution, weight: Array) -> ConeProgram:
    """weight * d optimal value / d data by the envelope theorem: xx'/2 for P, x for q, 1 for r, yx' for A, -y for b."""
    P, A, x, y = structure.P, structure.A, solution.x, solution.y
    w = weight[:, None]
    return ConeProgram(
        structure,
        P=0.5 * w * x[:, P.rows] * x[:, P.cols],
        q=w * x,
        r=weight,
        A=w * y[:, A.rows] * x[:, A.cols],
        b=-w * y,
    )
