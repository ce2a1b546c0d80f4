"""A batch that was solved in chunks, with the derivative of the solution map at it, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol, final

import numpy as np

from convexlayer.canon import ParametricProgram
from convexlayer.diff import DerivativeReport
from convexlayer.layers.chunks import Chunks, progress_bar
from convexlayer.layers.derivative_arguments import checked_arrays, checked_mask, result_specs, with_last
from convexlayer.layers.joined import JoinedReport, JoinedRows, joined_derivative_report
from convexlayer.layers.protocol import AbstractSolvedBatch
from convexlayer.layers.report import Report
from convexlayer.layers.solved_batch import SolvedBatch
from convexlayer.layers.warm_start import checked_warm_start, other_size
from convexlayer.program import Array
from convexlayer.solvers import Clock, Options

__all__ = ["ChunkedBatch", "solve_in_chunks"]


class Solve(Protocol):
    """``SolutionMap.solve``."""

    def __call__(
        self, theta: Sequence[Array], *, options: Options, warm_start: Report | None, differentiable: bool
    ) -> AbstractSolvedBatch:
        """Solve a chunk."""


Resume = Callable[[Sequence[Array], Report], SolvedBatch]
"""Rebuilds the solved batch of a chunk from its parameter values and its report."""


@final
class ChunkedBatch:
    """A batch that was solved in chunks, with vjp and jvp of the solution map at it (``AbstractSolvedBatch``).

    Between calls it keeps the parameter values, the solutions and the outputs. Program data and factors of a chunk
    exist only while its derivative is computed.

    Attributes:
        report: the report of the solve.
        objective: objective values of the problem, (B,); NaN without a solution.
        iterates: the outputs, each (B, *shape); the solver's last iterate for elements without a solution.
        batched: mask of the parameters whose values had a batch axis.
        chunk_size: number of elements that are computed at a time.
    """

    def __init__(
        self,
        program: ParametricProgram,
        chunks: Chunks,
        resume: Resume,
        iterates: tuple[Array, ...],
        report: Report,
        *,
        progress: bool,
    ) -> None:
        """Store the results of ``solve_in_chunks``.

        Args:
            program: the parametric program.
            chunks: the parameter values; they must not change.
            resume: rebuilds the solved batch of a chunk.
            iterates: see the attributes.
            report: see the attributes.
            progress: whether derivatives show progress bars.
        """
        self.report = report
        self.objective: Array = np.asarray(report.objective)
        self.iterates = iterates
        self.batched = chunks.batched
        self.chunk_size = chunks.size
        self._program = program
        self._chunks = chunks
        self._resume = resume
        self._progress = progress

    @property
    def batch(self) -> int:
        """Number of elements."""
        return self._chunks.batch

    @cached_property
    def outputs(self) -> tuple[Array, ...]:
        """The outputs, each (B, *shape); NaN for elements without a solution."""
        if self.report.solution.all_solved:
            return self.iterates
        failed = list(self.report.failed)
        outputs = tuple(value.copy() for value in self.iterates)
        for value in outputs:
            value[failed] = np.nan
        return outputs

    def parts(self, label: str) -> Iterator[tuple[slice, SolvedBatch]]:
        """The chunks one after another, with their positions: solved batches that keep their factors.

        Args:
            label: what the progress bar, if there is one, says about them.
        """
        with progress_bar(label, self.batch, shown=self._progress) as bar:
            for rows in self._chunks.ranges():
                yield rows, self._part(rows)
                bar.update(rows.stop - rows.start)

    @staticmethod
    def joined_report(reports: Sequence[DerivativeReport]) -> DerivativeReport:
        """The report of a derivative of the whole batch from those of ``parts``."""
        return joined_derivative_report(reports)

    def vjp(
        self, cotangents: Sequence[Array | None], *, wrt: Sequence[bool] | None = None, per_element: bool = True
    ) -> tuple[tuple[Array | None, ...], DerivativeReport]:
        """Compute gradients of a loss with respect to the parameters, as ``SolvedBatch.vjp`` does."""
        results, count = result_specs(self._program), len(self._program.parameters)
        wanted = checked_mask("wrt", wrt, count)
        values = checked_arrays("cotangents", with_last(cotangents, None, results), results, self.batch)
        joined, sums, reports = JoinedRows(self.batch), dict[int, Array](), list[DerivativeReport]()
        summed = [not (batched or per_element) for batched in self.batched]
        with progress_bar("vjp", self.batch, shown=self._progress) as bar:
            for rows in self._chunks.ranges():
                pulled = [None if value is None else value[rows] for value in values]
                gradients, report = self._part(rows).vjp(pulled, wrt=wanted, per_element=per_element)
                reports.append(report)
                for i, gradient in enumerate(gradients):
                    if gradient is not None and summed[i]:
                        sums[i] = np.asarray(sums[i] + gradient) if i in sums else gradient
                    elif gradient is not None:
                        joined.fill(i, rows, gradient)
                bar.update(rows.stop - rows.start)
        found = tuple((sums[i] if summed[i] else joined[i]) if wanted[i] else None for i in range(count))
        return found, joined_derivative_report(reports)

    def jvp(
        self, tangents: Sequence[Array | None], *, of: Sequence[bool] | None = None
    ) -> tuple[tuple[Array | None, ...], DerivativeReport]:
        """Compute tangents of the outputs and of the objective value, as ``SolvedBatch.jvp`` does."""
        program, results = self._program, result_specs(self._program)
        wanted = checked_mask("of", None if of is None else with_last(of, True, results), len(results))
        values = checked_arrays("tangents", tangents, program.parameters, self.batch, shared=True)
        joined, reports = JoinedRows(self.batch), list[DerivativeReport]()
        with progress_bar("jvp", self.batch, shown=self._progress) as bar:
            for rows in self._chunks.ranges():
                pushed = [
                    value if value is None or value.shape == spec.shape else value[rows]
                    for value, spec in zip(values, program.parameters, strict=True)
                ]
                moved, report = self._part(rows).jvp(pushed, of=wanted)
                reports.append(report)
                for i, value in enumerate(moved):
                    if value is not None:
                        joined.fill(i, rows, value)
                bar.update(rows.stop - rows.start)
        return tuple(joined[i] if want else None for i, want in enumerate(wanted)), joined_derivative_report(reports)

    def _part(self, rows: slice) -> SolvedBatch:
        """The solved batch of a chunk; its report has what derivatives need."""
        index, report = np.arange(rows.start, rows.stop), self.report
        solution = report.solution.select(index)
        part = replace(report, status=solution.status, solution=solution, objective=self.objective[rows])
        return self._resume(self._chunks.part(rows), part)


def solve_in_chunks(
    program: ParametricProgram,
    chunks: Chunks,
    solve: Solve,
    resume: Resume,
    *,
    options: Options,
    warm_start: Report | None,
) -> ChunkedBatch:
    """Solve a batch chunk by chunk.

    Args:
        program: the parametric program.
        chunks: the parameter values.
        solve: ``SolutionMap.solve``.
        resume: rebuilds the solved batch of a chunk.
        options: options of the call; the time limit holds for all chunks together.
        warm_start: see ``SolutionMap.solve``.

    Raises:
        ShapeError: the warm start is that of another problem.
        ProblemError: the warm start has the wrong type.
        SolverError: the solver does not know an option.
    """
    clock, inner = Clock(options.time_limit_s), replace(options, chunk_size=chunks.size, progress=False)
    start = None if warm_start is None else checked_warm_start(warm_start, program.structure)
    cold = None if start is None else other_size(start.solution, chunks.batch)
    report, iterates = JoinedReport(chunks.batch), JoinedRows(chunks.batch)

    def add(rows: slice) -> None:
        index = np.arange(rows.start, rows.stop)
        near = None if start is None or cold else replace(start, solution=start.solution.select(index))
        part = solve(chunks.part(rows), options=clock.applied(inner), warm_start=near, differentiable=False)
        report.add(rows, part.report)
        for i, value in enumerate(part.iterates):
            iterates.fill(i, rows, value)

    with progress_bar("solve", chunks.batch, shown=options.progress) as bar:
        for rows in chunks.ranges():
            add(rows)
            bar.update(rows.stop - rows.start)
    joined = report.report()
    if cold is not None:
        joined.cold_start = cold
    values = tuple(iterates[i] for i in range(len(program.outputs)))
    return ChunkedBatch(program, chunks.owned(), resume, values, joined, progress=options.progress)
