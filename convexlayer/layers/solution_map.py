"""The solution map with its derivatives in NumPy, on which the torch layer and the server are built."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple, final

import numpy as np

from convexlayer.arguments import check_bool, check_kind
from convexlayer.canon import OutputSpec, ParameterSpec, ParametricProgram
from convexlayer.certificate import ComplementaryPoint
from convexlayer.diff import KKTFactor, KKTSystem, derivative_mode, polished
from convexlayer.errors import ProblemError, SolverError
from convexlayer.layers.choice import ResolvedSolver, checked_device, choose, fastest
from convexlayer.layers.chunked_batch import ChunkedBatch, solve_in_chunks
from convexlayer.layers.chunks import Chunks, element_bytes
from convexlayer.layers.component_solver import ComponentSolver
from convexlayer.layers.convexity import convexity_is_unproven
from convexlayer.layers.final_status import unproved_claims, unsettled, with_certificates
from convexlayer.layers.instantiation import Instances, instantiate, scatter_to_batch, valid_part
from convexlayer.layers.report import Report
from convexlayer.layers.scaling import Scaling, differentiate_scaled
from convexlayer.layers.solved_batch import SolvedBatch
from convexlayer.layers.warm_start import checked_size, starting_points
from convexlayer.program import Array, ConeProgram
from convexlayer.solution import Residuals, Solution
from convexlayer.solvers import Clock, Options
from convexlayer.solvers.auto import candidates
from convexlayer.status import Status

__all__ = ["SolutionMap"]


class _Certified(NamedTuple):
    """Certified solutions, their residuals, and intermediate results that the derivative reuses."""

    solution: Solution
    residuals: Residuals
    factor: KKTFactor | None
    point: ComplementaryPoint


@final
class SolutionMap:
    """The solution map of a parametric program, computed in this process (``AbstractSolutionMap``).

        theta --affine map--> cone program --solver--> solution --recovery--> outputs

    Thread-safe; picklable. Solvers are initialised once and keep no state between calls.
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
            solver: a name listed by ``convexlayer solvers``, or ``auto``.
            tune: time the candidates of ``auto`` at the first call and use the fastest from then on.
            device: a torch device, such as ``cuda``, on which ``auto`` solves batches of small dense programs (zero,
                nonnegative and second-order cones), and which factorises derivative systems of up to 1500 unknowns.
            derivative: ``exact``, or ``diffcp`` for the reference implementation.
            options: default options of all calls.
            check_attributes: whether values are invalid that violate a parameter's attributes, or make an objective
                nonconvex whose convexity is only declared (``psd_wrap``).

        Raises:
            ProblemError: an argument has the wrong type.
            SolverError: the solver is unknown, not installed, or does not support the problem; a named solver is
                combined with ``tune``; or the device does not exist.
            DerivativeError: the derivative mode is unknown.
        """
        check_kind("program", program, ParametricProgram, "the result of canonicalize")
        check_kind("solver", solver, str, "a name such as 'auto' or 'clarabel'")
        check_kind("device", device, str, "a name such as 'cpu' or 'cuda'")
        check_kind("derivative", derivative, str, "a name such as 'exact'")
        check_bool("tune", tune)
        check_bool("check_attributes", check_attributes)
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
        self._convexity_is_unproven = convexity_is_unproven(program)
        self._automatic = solver.lower() == "auto"
        if tune and not self._automatic:
            raise SolverError(f"tune=True chooses the fastest solver, but solver={solver!r} names one: leave one out")
        self._device = checked_device(device)
        self._chosen = choose(solver, program.structure, self._device)
        self._tune = tune
        self._tuned: ResolvedSolver | None = None
        self._tuning = threading.Lock()
        self._system = KKTSystem(program.structure, device=self._device)
        self._mode = derivative_mode(derivative)
        self._element_bytes = element_bytes(program)

    def __reduce__(self) -> tuple[Callable[..., SolutionMap], tuple[Any, ...]]:
        tuned = None if self._tuned is None else (self._tuned.solver.name, self._tuned.reason)
        return _rebuild, (self.program, self.options, self._arguments, tuned)

    has_iterates = True

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """The parameters, in order."""
        return self.program.parameters

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The outputs, in order."""
        return self.program.outputs

    @property
    def summary(self) -> str:
        """Sizes and solver, in a few words."""
        structure, record = self.program.structure, self.program.presolve
        given = structure if record is None else record.source.structure
        presolve = "" if record is None else f" (n={given.n}, m={given.m} before presolve)"
        return f"n={structure.n}, m={structure.m}{presolve}, solver={self.solver}"

    @property
    def solver(self) -> str:
        """Name of the chosen solver."""
        return (self._tuned or self._chosen).solver.name

    @property
    def reason(self) -> str:
        """Why the solver was chosen."""
        return (self._tuned or self._chosen).reason

    def solve(
        self,
        theta: Sequence[Array],
        *,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: Report | None = None,
        differentiable: bool = True,
    ) -> SolvedBatch | ChunkedBatch:
        """Solve for a batch of parameters.

        Elements whose values are not finite or violate a parameter's attributes are not solved: their status is
        ``invalid``, and the report's ``details`` give the reason. A huge batch is solved and differentiated in chunks
        (see ``Options.chunk_size``).

        Args:
            theta: one array per parameter, of its shape or with one additional leading batch axis.
            options: complete options, or changes to the defaults.
            warm_start: the report of an earlier call of this map. If the solver supports no warm start or the batch
                size differs, it is not used, and the report's ``cold_start`` gives the reason.
            differentiable: whether derivatives will be asked for, so that the factors that the polish computed are
                kept; without it derivatives factorise again.

        Raises:
            ShapeError: shapes or batch sizes do not match, or the warm start is that of another problem.
            ProblemError: an argument has the wrong type.
            SolverError: the solver does not know an option.
        """
        chosen = Options.of(options, self.options)
        chunks = Chunks.of(self.program, theta, chosen, self._element_bytes)
        if chunks is not None:
            return solve_in_chunks(
                self.program, chunks, self.solve, self._resumed, options=chosen, warm_start=warm_start
            )
        chosen = self._with_device(chosen)
        clock = Clock(chosen.time_limit_s)
        given = self._instantiate(theta)
        scaling, own = Scaling.of(given.program, given.divisor)
        instantiated = time.perf_counter()
        part, valid = valid_part(own, given.invalid)
        by = self._solver_for(part, chosen)
        start, cold = starting_points(warm_start, by.solver, own.structure, valid, scaling)
        limited = clock.applied(chosen)
        solution = by.solver.solve(by.state, part, limited, start) if part.batch else _empty_solution(part)
        solved, raw = time.perf_counter(), solution
        solution, residuals, factor, point = self._certified(part, solution, chosen, clock)
        solution, residuals, again = self._solved_again(by, part, raw, solution, residuals, chosen, clock)
        solution, details = with_certificates(part, solution, raw, clock.applied(chosen))
        solution, residuals = scatter_to_batch(solution, residuals, valid, own.batch)
        if valid is not None:
            again = tuple(valid[list(again)].tolist())
            details = given.invalid | {int(valid[i]): message for i, message in details.items()}
        polished = time.perf_counter()
        objective = self._objective(residuals, solution, scaling)
        report = Report(
            status=solution.status,
            residuals=residuals,
            objective=objective,
            iterations=solution.iterations,
            seconds={"canonical": given.seconds, "solve": solved - instantiated, "polish": polished - solved},
            solver=by.solver.name,
            reason=by.reason,
            solution=scaling.unscale_solution(solution),
            solved_again=again,
            details=details,
            cold_start=cold,
        )
        same = not again and bool(np.all(solution.solved))  # else factor and point belong to other solutions
        factor, found = (factor, point) if same and differentiable else (None, None)
        return self._differentiable(given, scaling, own, solution, report, factor=factor, point=found)

    def at(
        self, theta: Sequence[Array], solution: Solution, *, options: Options | Mapping[str, Any] | None = None
    ) -> SolvedBatch:
        """Rebuild the batch that ``solve`` returned for these parameters from its ``report.solution``.

        Args:
            theta: as for ``solve``.
            solution: the solution of the cone program. Elements with a status other than solved are not verified.
            options: the options of the solve; residuals are compared with ``tol``.

        Raises:
            ShapeError: shapes or batch sizes do not match.
            ProblemError: an argument has the wrong type, or an element with status solved does not solve the program at
                these parameters.
        """
        check_kind("solution", solution, Solution, "a Solution, such as a report's ``solution``")
        given = self._instantiate(theta)
        scaling, own = Scaling.of(given.program, given.divisor)
        held = scaling.scale_solution(checked_size(solution, own.structure, own.batch, "solution"))
        certified, residuals = held.certified(own, Options.of(options, self.options).tol)
        for i in sorted(given.invalid):
            if solution.status[i].solved:
                raise ProblemError(f"element {i} has status {solution.status[i]}, but {given.invalid[i]}")
        wrong = np.flatnonzero(solution.solved & ~certified.solved)
        if len(wrong):
            worst = residuals.worst[wrong[0]]
            raise ProblemError(
                f"element {wrong[0]} has status {solution.status[wrong[0]]}, but its largest residual is {worst:.1e}: "
                "solve it again"
            )
        objective = self._objective(residuals, solution, scaling)
        report = Report(
            status=solution.status,
            residuals=residuals,
            objective=objective,
            iterations=solution.iterations,
            seconds={"canonical": given.seconds},
            solver=str(solution.stats.get("solver", "")),
            reason="solved before",
            solution=solution,
            details=given.invalid,
        )
        return self._differentiable(given, scaling, own, held, report)

    def _resumed(self, theta: Sequence[Array], report: Report) -> SolvedBatch:
        """The batch of a report of this map for these parameters, as ``at`` without verification."""
        given = self._instantiate(theta)
        scaling, own = Scaling.of(given.program, given.divisor)
        return self._differentiable(given, scaling, own, scaling.scale_solution(report.solution), report)

    def _differentiable(
        self,
        given: Instances,
        scaling: Scaling,
        own: ConeProgram,
        solution: Solution,
        report: Report,
        **found: Any,
    ) -> SolvedBatch:
        """A solved batch from the scaled programs ``own``, their solutions, and what was found beside them."""
        differentiate = partial(differentiate_scaled, self._mode, self._system, scaling, own, solution, **found)
        objective = np.asarray(report.objective)
        return SolvedBatch(self.program, differentiate, given.features, objective, report, batched=given.batched)

    def _instantiate(self, theta: Sequence[Array]) -> Instances:
        checked = self._check_attributes
        return instantiate(self.program, theta, attributes=checked, curvature=checked and self._convexity_is_unproven)

    def _objective(self, residuals: Residuals, solution: Solution, scaling: Scaling) -> Array:
        """Objective values of the problem (B,) from those of the scaled programs; NaN without a solution."""
        reached = self.program.objective.value(residuals.objective * scaling.c)
        return reached if solution.all_optimal else np.where(solution.solved, reached, np.nan)

    def _certified(self, program: ConeProgram, solution: Solution, options: Options, clock: Clock) -> _Certified:
        """Polish solutions if the options ask for it, and set each status by the residuals."""
        if options.polish:
            solution, point, factor, measured = polished(self._system, program, solution, deadline=clock.deadline)
        else:
            point, factor, measured = solution.complementary(program), None, None
        measured = measured or solution.residuals(program, point)
        certified, residuals = solution.certified(program, options.tol, measured, row_by_row=options.polish)
        return _Certified(certified, residuals, factor, point)

    def _solved_again(
        self,
        by: ResolvedSolver,
        program: ConeProgram,
        raw: Solution,
        solution: Solution,
        residuals: Residuals,
        options: Options,
        clock: Clock,
    ) -> tuple[Solution, Residuals, tuple[int, ...]]:
        """Solve unsettled elements again, by components and then by the fallback; also return their positions."""
        fallback = by.fallback
        stalled = options.max_iter is None  # reaching the default iteration limit counts as stalled
        index = (
            unproved_claims(solution, raw)
            if by.solver.fallback_for_unproved
            else unsettled(solution, raw, stalled=stalled)
        )
        if not len(index) or clock.expired:
            return solution, residuals, ()
        attempts: list[Callable[[ConeProgram], Solution]] = []
        if self._component_solver.several and options.time_limit_s is None:
            attempts.append(lambda part: self._component_solver.solve(part, options))
        if fallback is not None and (fallback.solver.supports_time_limit or options.time_limit_s is None):
            attempts.append(lambda part: fallback.solver.solve(fallback.state, part, clock.applied(options)))
        left = index
        for attempt in attempts:
            if not len(left):
                break
            part = program.select(left)
            answer = attempt(part)
            other, found, *_ = self._certified(part, answer, options, clock)
            settled = np.array([status is not Status.TIME_LIMIT for status in other.status], dtype=bool)
            settled[unsettled(other, answer, stalled=stalled)] = False
            better = np.flatnonzero(settled | (found.backward < residuals.backward[left]))
            solution = solution.with_elements(left[better], other.select(better))
            residuals, left = solution.residuals(program), left[~settled]
        return solution, residuals, tuple(index.tolist()) if attempts else ()

    @cached_property
    def _component_solver(self) -> ComponentSolver:
        """The independent components of the program, for elements that are not settled as a whole."""
        return ComponentSolver("auto" if self._automatic else self._chosen.solver.name, self.program.structure)

    def _solver_for(self, program: ConeProgram, options: Options) -> ResolvedSolver:
        """The solver of a batch; with ``tune``, the first batch is used to choose it."""
        if self._tune and self._tuned is None and program.batch:
            with self._tuning:
                if self._tuned is None:
                    self._tuned = self._fastest(program, options)
        chosen = self._tuned or self._chosen
        untimed = options.time_limit_s is not None and not chosen.solver.supports_time_limit
        if self._automatic and chosen.fallback and untimed:
            reason = f"{chosen.solver.name}, the choice without a time limit, does not support one"
            return ResolvedSolver(chosen.fallback.solver, chosen.fallback.state, fallback=None, reason=reason)
        return chosen

    def _with_device(self, options: Options) -> Options:
        """Set the device of the dense torch solver, unless the options name another."""
        if self._device == "cpu":
            return options
        dense = {"device": self._device, **options.solver_options.get("dense", {})}
        return replace(options, solver_options={**options.solver_options, "dense": dense})

    def _fastest(self, program: ConeProgram, options: Options) -> ResolvedSolver:
        """The fastest candidate of ``auto`` by solving the program; with a time limit, of those that support one."""
        structure = program.structure
        names = [name for name in candidates(structure, self._device) if name != self._chosen.solver.name]
        contenders = [self._chosen, *(choose(name, structure) for name in names)]
        if options.time_limit_s is not None:
            contenders = [each for each in contenders if each.solver.supports_time_limit]

        def attempt(candidate: ResolvedSolver) -> int:
            clock = Clock(options.time_limit_s)
            solution = candidate.solver.solve(candidate.state, program, options)
            return int(np.count_nonzero(self._certified(program, solution, options, clock).solution.solved))

        return fastest(contenders, attempt)


def _empty_solution(program: ConeProgram) -> Solution:
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
