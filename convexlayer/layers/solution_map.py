"""theta -> solution, with derivatives both ways, in NumPy: what the torch layer and the server are made of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np
import torch

from convexlayer.canon import ParametricProgram
from convexlayer.cones import ProductPoint
from convexlayer.diff import (
    ReducedFactor,
    ReducedSystem,
    derivative_mode,
    polished,
)
from convexlayer.errors import ProblemError, ShapeError, SolverError
from convexlayer.layers.choice import Chosen, Prepared, choose, fastest
from convexlayer.layers.report import Report
from convexlayer.layers.solved_batch import SolvedBatch
from convexlayer.layers.theta import batch_size, check_values
from convexlayer.program import Array, ConeProgram
from convexlayer.solution import Residuals, Solution, Status
from convexlayer.solvers import Clock, Options
from convexlayer.solvers.auto import candidates

__all__ = ["SolutionMap"]

UNSETTLED = (Status.NUMERICAL_ERROR, Status.OPTIMAL_INACCURATE)
"""What a solver's deputy is asked about; so are elements at a limit of iterations that is not the caller's wish."""


class _Posed(NamedTuple):
    """Feature vectors, their programs, scales of objectives, whether there is a batch axis, and the seconds it took."""

    features: Array
    program: ConeProgram
    scale: Array
    batched: bool
    seconds: float


class _Certified(NamedTuple):
    """Solutions with the statuses that their residuals warrant, and what is known there that may serve again."""

    solution: Solution
    residuals: Residuals
    factor: ReducedFactor | None
    at: ProductPoint


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
        tune: bool = False,
        device: str = "cpu",
        derivative: str = "exact",
        options: Options | Mapping[str, Any] | None = None,
        check_attributes: bool = True,
    ) -> None:
        """Choose the solver and do the symbolic work.

        Args:
            program: from ``canonicalize``.
            solver: a name of ``convexlayer solvers``, or ``auto``.
            tune: let the first call time the solvers that ``auto`` would consider, and stay with the fastest.
            device: a torch device, such as ``cuda``, on which ``auto`` solves batches of small dense programs (zero,
                nonnegative and second-order cones), and where systems of the derivative up to 1500 unknowns are
                factorised.
            derivative: ``exact``, or ``diffcp`` for the reference.
            options: defaults of every call.
            check_attributes: whether values that violate a parameter's attributes are refused.

        Raises:
            SolverError: the solver is unknown, missing, or cannot take the problem; or it is named and ``tune`` is set;
                or there is no such device.
            DerivativeError: the derivative mode is unknown.
        """
        self.program = program
        self.options = Options.of(options, Options())
        self._arguments = {
            "solver": solver,
            "tune": tune,
            "device": device,
            "derivative": derivative,
            "check_attributes": check_attributes,
        }
        self._check_attributes = check_attributes
        self._automatic = solver.lower() == "auto"
        if tune and not self._automatic:
            raise SolverError(
                f"tune=True chooses the solver by its time, but solver={solver!r} is named: leave one out"
            )
        self._device = _checked_device(device)
        self._chosen = choose(solver, program.structure, self._device)
        self._tune = tune
        self._tuned: Chosen | None = None
        self._tuning = threading.Lock()
        self._system = ReducedSystem(program.structure, device=self._device)
        self._mode = derivative_mode(derivative)

    def __reduce__(self) -> tuple[Callable[..., SolutionMap], tuple[Any, ...]]:
        tuned = None if self._tuned is None else (self._tuned.solver.name, self._tuned.reason)
        return _rebuild, (self.program, self.options, self._arguments, tuned)

    @property
    def solver(self) -> str:
        """The name of the solver."""
        return (self._tuned or self._chosen).solver.name

    @property
    def reason(self) -> str:
        """Why it was chosen."""
        return (self._tuned or self._chosen).reason

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
        chosen = self._placed(Options.of(options, self.options))
        clock = Clock(chosen.time_limit_s)
        features, program, scale, batched, instantiated_s = self._posed(theta)
        before = (
            None
            if warm_start is None
            else self._fitting(warm_start.solution, program.batch, "warm_start").divided(scale)
        )

        instantiated = time.perf_counter()
        by = self._solver_for(program, chosen)
        limited = clock.applied(chosen)
        solution = by.solver.solve(by.state, program, limited, before) if program.batch else _nothing(program)
        solved = time.perf_counter()
        solution, residuals, factor, at = self._certified(program, solution, chosen, clock)
        solution, residuals, again = self._solved_again(by.deputy, program, solution, residuals, chosen, clock)
        polished = time.perf_counter()

        objective = self._objective(residuals, solution, scale)
        report = Report(
            status=solution.status,
            residuals=residuals,
            objective=objective,
            iterations=solution.iterations,
            seconds={"canonical": instantiated_s, "solve": solved - instantiated, "polish": polished - solved},
            solver=by.solver.name,
            reason=by.reason,
            solution=solution.divided(1.0 / scale),
            solved_again=again,
        )
        same = not again and bool(np.all(solution.solved))  # else these are of other points, or of more
        differentiate = partial(self._mode, self._system, factor=factor if same else None, at=at if same else None)
        return SolvedBatch(
            self.program,
            differentiate,
            features,
            program,
            solution,
            scale,
            objective,
            report,
            batched=batched,
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
        features, program, scale, batched, instantiated_s = self._posed(theta)
        scaled = self._fitting(solution, program.batch, "solution").divided(scale)
        certified, residuals = scaled.certified(program, Options.of(options, self.options).tol)
        wrong = np.flatnonzero(scaled.solved & ~certified.solved)
        if len(wrong):
            worst = residuals.worst[wrong[0]]
            raise ProblemError(
                f"element {wrong[0]} is called solved, but its residuals reach {worst:.1e}: solve it again"
            )
        objective = self._objective(residuals, scaled, scale)
        report = Report(
            status=scaled.status,
            residuals=residuals,
            objective=objective,
            iterations=scaled.iterations,
            seconds={"canonical": instantiated_s},
            solver=str(scaled.stats.get("solver", "")),
            reason="solved before",
            solution=solution,
        )
        differentiate = partial(self._mode, self._system)
        return SolvedBatch(
            self.program, differentiate, features, program, scaled, scale, objective, report, batched=batched
        )

    def _posed(self, theta: Sequence[Array]) -> _Posed:
        """The programs of these parameters."""
        specs = self.program.parameters
        values = [np.asarray(value, dtype=np.float64) for value in theta]
        batch = batch_size(specs, [value.shape for value in values])
        for spec, value in zip(specs, values, strict=True):
            check_values(spec, value, attributes=self._check_attributes)
        start = time.perf_counter()
        features = self.program.features.apply(values, 1 if batch is None else batch)
        program, scale = self.program.normalised(features)
        return _Posed(features, program, scale, batch is not None, time.perf_counter() - start)

    def _objective(self, residuals: Residuals, solution: Solution, scale: Array) -> Array:
        """Objective values of the problem (B,); not a number where there is no solution."""
        reached = self.program.objective.value(residuals.objective * scale)
        return reached if solution.all_optimal else np.where(solution.solved, reached, np.nan)

    def _fitting(self, solution: Solution, batch: int, name: str) -> Solution:
        """A solution of the right size; the name is that of the argument it came in."""
        expected = (batch, self.program.structure.n), (batch, self.program.structure.m)
        if (solution.x.shape, solution.y.shape) != expected:
            raise ShapeError(
                f"{name} must be that of a call of this layer with {batch} elements, got that of one with "
                f"{solution.x.shape[0]} elements of {solution.x.shape[1]} variables"
            )
        return solution

    def _certified(self, program: ConeProgram, solution: Solution, options: Options, clock: Clock) -> _Certified:
        """Polished where that is asked for, with statuses that the residuals warrant."""
        at = solution.at(program.structure.cones)
        residuals, factor = solution.residuals(program, at), None
        if options.polish:
            made = polished(self._system, program, solution, residuals=residuals, at=at, deadline=clock.deadline)
            if made.solution is not solution:
                solution, factor = made.solution, made.factor
                at = made.at or solution.at(program.structure.cones)
                residuals = solution.residuals(program, at)
        return _Certified(*solution.certified(program, options.tol, residuals), factor, at)

    def _solved_again(
        self,
        deputy: Prepared | None,
        program: ConeProgram,
        solution: Solution,
        residuals: Residuals,
        options: Options,
        clock: Clock,
    ) -> tuple[Solution, Residuals, tuple[int, ...]]:
        """With the elements that the solver left unsolved or inaccurate solved by its deputy, and their positions."""
        if deputy is None or solution.all_optimal or clock.over:
            return solution, residuals, ()
        unsettled = UNSETTLED if options.max_iter is not None else (*UNSETTLED, Status.ITERATION_LIMIT)
        index = np.array([i for i, status in enumerate(solution.status) if status in unsettled], dtype=np.int64)
        if not len(index):
            return solution, residuals, ()
        part = program.select(index)
        again = deputy.solver.solve(deputy.state, part, clock.applied(options))
        other, found, *_ = self._certified(part, again, options, clock)
        settled = np.array([status not in (*unsettled, Status.TIME_LIMIT) for status in other.status], dtype=bool)
        better = np.flatnonzero(settled | (found.worst < residuals.worst[index]))
        merged = solution.with_elements(index[better], other.select(better))
        return merged, merged.residuals(program), tuple(index.tolist())

    def _solver_for(self, program: ConeProgram, options: Options) -> Chosen:
        """Who solves a batch; where tuning is asked for, the first batch decides."""
        if self._tune and self._tuned is None and program.batch:
            with self._tuning:
                if self._tuned is None:
                    self._tuned = self._fastest(program, options)
        chosen = self._tuned or self._chosen
        if self._automatic and chosen.deputy and options.time_limit_s is not None and not chosen.solver.timed:
            reason = f"{chosen.solver.name}, the choice without a time limit, cannot keep one"
            return Chosen(*chosen.deputy, deputy=None, reason=reason)
        return chosen

    def _placed(self, options: Options) -> Options:
        """With the dense engine on the map's device, unless the options name another."""
        if self._device == "cpu":
            return options
        dense = {"device": self._device, **options.solver_options.get("dense", {})}
        return replace(options, solver_options={**options.solver_options, "dense": dense})

    def _fastest(self, program: ConeProgram, options: Options) -> Chosen:
        """The fastest of those that ``auto`` considers, solutions as exact as the derivative needs them.

        Under a time limit those that can keep one.
        """
        structure = program.structure
        names = [name for name in candidates(structure, self._device) if name != self._chosen.solver.name]
        contenders = [self._chosen, *(choose(name, structure) for name in names)]
        if options.time_limit_s is not None:
            contenders = [each for each in contenders if each.solver.timed]

        def attempt(candidate: Chosen) -> int:
            clock = Clock(options.time_limit_s)
            solution = candidate.solver.solve(candidate.state, program, options)
            return int(np.count_nonzero(self._certified(program, solution, options, clock).solution.solved))

        return fastest(contenders, attempt)


def _checked_device(device: str) -> str:
    """The device, if doubles can be kept there."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).splitlines()[0]
        raise SolverError(f"torch has no device {device!r} for float64 here ({said}): device='cpu' works") from error
    return device


def _nothing(program: ConeProgram) -> Solution:
    """The solution of an empty batch."""
    n, m, empty = program.structure.n, program.structure.m, np.zeros(0)
    return Solution(np.zeros((0, n)), np.zeros((0, m)), np.zeros((0, m)), (), empty.astype(np.int64), empty, {})


def _rebuild(
    program: ParametricProgram, options: Options, arguments: dict[str, Any], tuned: tuple[str, str] | None
) -> SolutionMap:
    made = SolutionMap(program, options=options, **arguments)
    if tuned is not None:
        name, reason = tuned
        made._tuned = choose(name, program.structure)._replace(reason=reason)
    return made
