"""theta -> solution, with derivatives both ways, in NumPy: what the torch layer and the server are made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np

from convexlayer.canon import ParametricProgram
from convexlayer.diff import (
    ReducedFactor,
    ReducedSystem,
    derivative_mode,
    polished,
)
from convexlayer.errors import ProblemError, ShapeError
from convexlayer.layers.report import Report
from convexlayer.layers.solved_batch import SolvedBatch
from convexlayer.layers.theta import batch_size, check_values
from convexlayer.program import Array, ConeProgram, Structure
from convexlayer.solution import Residuals, Solution, Status
from convexlayer.solvers import Options
from convexlayer.solvers.base import AbstractSolver, SolverState
from convexlayer.solvers.registry import solver_for

__all__ = ["SolutionMap"]

UNSETTLED = (Status.NUMERICAL_ERROR, Status.OPTIMAL_INACCURATE)
"""What a solver's deputy is asked about; limits are the caller's wish."""


class _Certified(NamedTuple):
    """Solutions with the statuses that their residuals warrant, and a factor from their polish that may serve again."""

    solution: Solution
    residuals: Residuals
    factor: ReducedFactor | None


@final
class SolutionMap:
    """The solution map of a parametric program.

        theta --affine map--> cone program --solver--> solution --recovery--> outputs

    Thread-safe; picklable. Solvers are made once and share nothing between calls.
    """

    def __init__(
        self,
        program: ParametricProgram,
        *,
        solver: str = "auto",
        derivative: str = "exact",
        options: Options | Mapping[str, Any] | None = None,
        check_attributes: bool = True,
    ) -> None:
        """Choose the solver and do the symbolic work.

        Args:
            program: from ``canonicalize``.
            solver: a name of ``convexlayer solvers``, or ``auto``.
            derivative: ``exact``, or ``diffcp`` for the reference.
            options: defaults of every call.
            check_attributes: whether values that violate a parameter's attributes are refused.

        Raises:
            SolverError: the solver is unknown, missing, or cannot take the problem.
            DerivativeError: the derivative mode is unknown.
        """
        self.program = program
        self.options = Options.of(options, Options())
        self._arguments = {"solver": solver, "derivative": derivative, "check_attributes": check_attributes}
        self._check_attributes = check_attributes
        self._automatic = solver.lower() == "auto"
        self._solver, self.reason = solver_for(solver, program.structure)
        self._state = self._solver.init(program.structure)
        self._deputy = None if self._solver.deputy is None else _initialised(self._solver.deputy, program.structure)
        self._system = ReducedSystem(program.structure)
        self._mode = derivative_mode(derivative)

    def __reduce__(self) -> tuple[Callable[..., SolutionMap], tuple[Any, ...]]:
        return _rebuild, (self.program, self.options, self._arguments)

    @property
    def solver(self) -> str:
        """The name of the solver."""
        return self._solver.name

    def solve(
        self,
        theta: Sequence[Array],
        *,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: Report | None = None,
    ) -> SolvedBatch:
        """Solve for a batch of parameters.

        Args:
            theta: one array a parameter, of its shape or with one leading batch axis; the two may be mixed.
            options: complete options, or changes to the defaults.
            warm_start: the report of a call with the same batch size, used where the solver can.

        Raises:
            ShapeError: shapes or batch sizes do not fit, those of the warm start included.
            ProblemError: a value is not finite or violates its parameter's attributes.
            SolverError: an option that the solver does not know.
        """
        specs = self.program.parameters
        values = [np.asarray(value, dtype=np.float64) for value in theta]
        batch = batch_size(specs, [value.shape for value in values])
        for spec, value in zip(specs, values, strict=True):
            check_values(spec, value, attributes=self._check_attributes)
        chosen = Options.of(options, self.options)
        before = None if warm_start is None else self._fitting(warm_start.solution, 1 if batch is None else batch)

        start = time.perf_counter()
        features = self.program.features.apply(values, 1 if batch is None else batch)
        given = self.program.instantiate(features)
        scale = given.objective_scale()
        program = given.divided(scale)
        instantiated = time.perf_counter()
        before = None if before is None else before.divided(scale)
        solution, solver, reason = self._solve(program, chosen, before)
        solved = time.perf_counter()
        solution, residuals, factor = self._certified(program, solution, chosen)
        solution, residuals, again = self._solved_again(program, solution, residuals, chosen)
        polished = time.perf_counter()

        reached = self.program.objective.value(given.objective(solution.x))
        objective = np.where(solution.solved, reached, np.nan)
        report = Report(
            status=solution.status,
            residuals=residuals,
            objective=objective,
            iterations=solution.iterations,
            seconds={"canonical": instantiated - start, "solve": solved - instantiated, "polish": polished - solved},
            solver=solver,
            reason=reason,
            solution=solution.divided(1.0 / scale),
            solved_again=again,
        )
        differentiate = partial(self._mode, self._system, factor=None if again else factor)
        return SolvedBatch(
            self.program,
            differentiate,
            features,
            program,
            solution,
            scale,
            objective,
            report,
            batched=batch is not None,
        )

    def at(
        self, theta: Sequence[Array], solution: Solution, *, options: Options | Mapping[str, Any] | None = None
    ) -> SolvedBatch:
        """The batch that ``solve`` gave for these parameters, made again from its ``report.solution``.

        Args:
            theta: as for ``solve``.
            solution: of the cone program. Statuses are taken at their word where they say that there is no solution.
            options: those of the solve: its ``tol`` is what the residuals are held against.

        Raises:
            ShapeError: shapes or batch sizes do not fit.
            ProblemError: a value is not finite or violates its parameter's attributes; or an element that is called
                solved is no solution for these parameters.
        """
        specs = self.program.parameters
        values = [np.asarray(value, dtype=np.float64) for value in theta]
        batch = batch_size(specs, [value.shape for value in values])
        for spec, value in zip(specs, values, strict=True):
            check_values(spec, value, attributes=self._check_attributes)
        start = time.perf_counter()
        features = self.program.features.apply(values, 1 if batch is None else batch)
        given = self.program.instantiate(features)
        scale = given.objective_scale()
        program = given.divided(scale)
        scaled = self._fitting(solution, program.batch).divided(scale)
        certified, residuals = scaled.certified(program, Options.of(options, self.options).tol)
        wrong = np.flatnonzero(scaled.solved & ~certified.solved)
        if len(wrong):
            worst = residuals.worst[wrong[0]]
            raise ProblemError(
                f"element {wrong[0]} is called solved, but its residuals reach {worst:.1e}: solve it again"
            )
        objective = np.where(scaled.solved, self.program.objective.value(given.objective(scaled.x)), np.nan)
        report = Report(
            status=scaled.status,
            residuals=residuals,
            objective=objective,
            iterations=scaled.iterations,
            seconds={"canonical": time.perf_counter() - start},
            solver=str(scaled.stats.get("solver", "")),
            reason="solved before",
            solution=solution,
        )
        differentiate = partial(self._mode, self._system)
        return SolvedBatch(
            self.program, differentiate, features, program, scaled, scale, objective, report, batched=batch is not None
        )

    def _fitting(self, solution: Solution, batch: int) -> Solution:
        """A solution of the right size."""
        expected = (batch, self.program.structure.n), (batch, self.program.structure.m)
        if (solution.x.shape, solution.y.shape) != expected:
            raise ShapeError(
                f"expected the solutions of a call of this layer with {batch} elements, got those of one with "
                f"{solution.x.shape[0]} elements of {solution.x.shape[1]} variables"
            )
        return solution

    def _certified(self, program: ConeProgram, solution: Solution, options: Options) -> _Certified:
        """Polished where that is asked for, with statuses that the residuals warrant."""
        residuals, factor = solution.residuals(program), None
        if options.polish:
            made = polished(self._system, program, solution, residuals=residuals)
            if made.solution is not solution:
                solution, factor = made.solution, made.factor
                residuals = solution.residuals(program)
        return _Certified(*solution.certified(program, options.tol, residuals), factor)

    def _solved_again(
        self, program: ConeProgram, solution: Solution, residuals: Residuals, options: Options
    ) -> tuple[Solution, Residuals, tuple[int, ...]]:
        """With the elements that the solver left unsolved or inaccurate solved by its deputy, and their positions."""
        if self._deputy is None or all(status not in UNSETTLED for status in solution.status):
            return solution, residuals, ()
        index = np.array([i for i, status in enumerate(solution.status) if status in UNSETTLED], dtype=np.int64)
        solver, state = self._deputy
        part = program.select(index)
        other, found, _ = self._certified(part, solver.solve(state, part, options), options)
        settled = np.array([status not in UNSETTLED for status in other.status], dtype=bool)
        better = np.flatnonzero(settled | (found.worst < residuals.worst[index]))
        merged = solution.with_elements(index[better], other.select(better))
        return merged, merged.residuals(program), tuple(index.tolist())

    def _solve(self, program: ConeProgram, options: Options, warm_start: Solution | None) -> tuple[Solution, str, str]:
        """Solutions, the name of the solver, and why it was chosen."""
        solver, state, reason = self._solver, self._state, self.reason
        if self._automatic and self._deputy and options.time_limit_s is not None and not solver.timed:
            reason = f"{solver.name}, the choice without a time limit, cannot keep one"
            solver, state = self._deputy
        if program.batch:
            return solver.solve(state, program, options, warm_start), solver.name, reason
        n, m = program.structure.n, program.structure.m
        empty = np.zeros(0)
        none = Solution(np.zeros((0, n)), np.zeros((0, m)), np.zeros((0, m)), (), empty.astype(np.int64), empty, {})
        return none, solver.name, reason


def _initialised(name: str, structure: Structure) -> tuple[AbstractSolver, SolverState]:
    solver, _ = solver_for(name, structure)
    return solver, solver.init(structure)


def _rebuild(program: ParametricProgram, options: Options, arguments: dict[str, Any]) -> SolutionMap:
    return SolutionMap(program, options=options, **arguments)
