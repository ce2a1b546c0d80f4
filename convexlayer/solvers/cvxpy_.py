"""Solvers installed in CVXPY: the standard form is passed to them as a CVXPY problem, which adds overhead."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import cvxpy as cp
import numpy as np

from convexlayer.cones import symmetric_vectors
from convexlayer.errors import SolverError
from convexlayer.program import Array, ConeProgram, Cones, Structure
from convexlayer.solution import Solution
from convexlayer.solvers.base import (
    AbstractSolver,
    ElementResult,
    SolverState,
    batch_solution,
    failed_element,
    not_started,
    smallest_program,
)
from convexlayer.solvers.options import Clock, Options
from convexlayer.solvers.presolve_constant_rows import Presolved
from convexlayer.status import Status

__all__ = ["CvxpySolver"]

logger = logging.getLogger(__name__)

STATUS = {
    cp.OPTIMAL: Status.OPTIMAL,
    cp.OPTIMAL_INACCURATE: Status.OPTIMAL_INACCURATE,
    cp.INFEASIBLE: Status.INFEASIBLE,
    cp.INFEASIBLE_INACCURATE: Status.INFEASIBLE,
    cp.UNBOUNDED: Status.UNBOUNDED,
    cp.UNBOUNDED_INACCURATE: Status.UNBOUNDED,
    cp.USER_LIMIT: Status.ITERATION_LIMIT,
}

LP = frozenset({"zero", "nonnegative"})
SOCP = LP | {"second_order"}
"""Cones of linear and of second-order cone programs."""


@dataclass(frozen=True)
class _SolverSpec:
    """Capabilities of a solver behind CVXPY, and its names of the portable options.

    Attributes:
        package: distribution to install.
        cones: supported kinds of cones.
        tol: its names of the tolerance.
        min_tol: smallest tolerance that it accepts, or reaches on every processor.
        max_iter: its names of the iteration limit.
        time_limit_s: its name of the time limit in seconds.
        fixed: options that are always set.
        raw: its raw options; None if it rejects unknown options itself.
        cycling_limit: its name of the iteration limit of a method that may cycle forever.
        unsupported_reason: checks that CVXPY does not make: why it cannot solve these data with these arguments, or "".
    """

    package: str
    cones: frozenset[str]
    tol: tuple[str, ...] = ()
    min_tol: float = 0.0
    max_iter: tuple[str, ...] = ()
    time_limit_s: str | None = None
    fixed: tuple[tuple[str, Any], ...] = ()
    raw: frozenset[str] | None = None
    cycling_limit: str | None = None
    unsupported_reason: Callable[[Presolved, Mapping[str, Any]], str] = lambda presolved, arguments: ""


HIGHS_INFINITE, HIGHS_LARGE_COEFFICIENT = 1e20, 1e15
"""Defaults of HiGHS: from the first on costs and bounds count as infinite, beyond the second it rejects coefficients
(its options ``infinite_cost``, ``infinite_bound`` and ``large_matrix_value``)."""


def _highs_unsupported(presolved: Presolved, arguments: Mapping[str, Any]) -> str:
    """CVXPY runs HiGHS even if HiGHS rejected the data, which may abort the process, or never end with NaN costs."""
    infinite, cost = (arguments.get(f"infinite_{what}", HIGHS_INFINITE) for what in ("bound", "cost"))
    coefficient, zero = arguments.get("large_matrix_value", HIGHS_LARGE_COEFFICIENT), presolved.cones.zero
    if not np.all(np.abs(np.concatenate([presolved.P.data, presolved.A.data])) <= coefficient):
        return f"coefficients of P and A must not exceed {coefficient:g}"
    if not (
        np.all(np.abs(presolved.q) < cost) and np.all(presolved.b > -infinite) and np.all(presolved.b[:zero] < infinite)
    ):
        return f"it treats q beyond {cost:g} and b beyond {infinite:g} as infinite"
    if np.any(presolved.P.diagonal() < 0.0):
        return "the objective is not convex: P has a negative diagonal entry"
    return ""


SOLVER_SPECS = {
    "ecos": _SolverSpec("ecos", SOCP | {"exponential"}, ("abstol", "reltol", "feastol"), max_iter=("max_iters",)),
    "osqp": _SolverSpec(
        "osqp",
        LP,
        ("eps_abs", "eps_rel"),
        max_iter=("max_iter",),
        time_limit_s="time_limit",
        fixed=(("polishing", True),),
        raw=frozenset(
            {
                *("adaptive_rho", "adaptive_rho_fraction", "adaptive_rho_interval", "adaptive_rho_tolerance", "alpha"),
                *("check_dualgap", "check_termination", "delta", "eps_abs", "eps_dual_inf", "eps_prim_inf", "eps_rel"),
                *("max_iter", "polish_refine_iter", "polishing", "rho", "rho_is_vec", "scaled_termination", "scaling"),
                *("sigma", "time_limit"),
            }
        ),
    ),
    "highs": _SolverSpec(
        "highspy",
        LP,
        ("primal_feasibility_tolerance", "dual_feasibility_tolerance"),
        min_tol=1e-10,  # the smallest value that HiGHS accepts
        max_iter=("simplex_iteration_limit", "ipm_iteration_limit", "qp_iteration_limit"),
        time_limit_s="time_limit",
        cycling_limit="qp_iteration_limit",
        unsupported_reason=_highs_unsupported,
    ),
    "cvxopt": _SolverSpec(
        "cvxopt",
        SOCP | {"psd"},
        ("abstol", "reltol", "feastol"),
        min_tol=1e-7,  # with smaller ones it breaks down on some processors; polishing then reaches the tolerance
        max_iter=("max_iters",),
        raw=frozenset({"abstol", "feastol", "kktsolver", "max_iters", "refinement", "reltol"}),
    ),
    "piqp": _SolverSpec(
        "piqp", LP, ("eps_abs", "eps_rel", "eps_duality_gap_abs", "eps_duality_gap_rel"), max_iter=("max_iter",)
    ),
    "qoco": _SolverSpec(
        "qoco",
        SOCP,
        ("abstol", "reltol"),
        max_iter=("max_iters",),
        raw=frozenset(
            {
                *("abstol", "abstol_inacc", "bisect_iters", "iter_ref_iters", "kkt_dynamic_reg", "kkt_static_reg"),
                *("max_iters", "reltol", "reltol_inacc", "ruiz_iters"),
            }
        ),
    ),
    "mosek": _SolverSpec("Mosek", SOCP | {"psd", "exponential", "power"}),
    "gurobi": _SolverSpec(
        "gurobipy",
        SOCP,
        ("BarConvTol", "FeasibilityTol", "OptimalityTol"),
        min_tol=1e-9,  # the smallest value that Gurobi accepts
        max_iter=("BarIterLimit", "IterationLimit"),
        time_limit_s="TimeLimit",
    ),
}
"""Known solvers. CVXPY reformulates quadratic objectives as second-order cones for solvers that do not support them."""

CYCLING_LIMIT, CYCLING_LIMIT_PER_ROW = 10_000, 100
"""Iteration limit of active-set methods that may cycle: a constant, plus a number per variable and row. Far more than
such a method needs if it converges."""

_LOCK = threading.Lock()
"""Serialises CVXPY, which is not documented to be thread-safe."""


@final
class CvxpySolver(AbstractSolver):
    """One of CVXPY's solvers, by its CVXPY name. Elements are solved sequentially, under a lock."""

    quadratic = True

    def __init__(self, name: str) -> None:
        """Look up the solver; one that is not in SOLVER_SPECS is tried for every cone, with its default tolerances."""
        self._spec = SOLVER_SPECS.get(name, _SolverSpec(name, frozenset(Cones.__dataclass_fields__)))
        self.name = name
        self.package = self._spec.package
        self.cones = self._spec.cones
        self.supports_time_limit = self._spec.time_limit_s is not None

    def installed(self) -> bool:
        """Whether CVXPY lists the solver as installed."""
        return self.name.upper() in cp.installed_solvers()

    def init(self, structure: Structure) -> None:
        """Do nothing: solves share no state."""

    def solve(
        self, state: SolverState, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve every element; warm starts are ignored."""
        clock = Clock(options.time_limit_s)
        self._arguments(options, program.structure)
        with _LOCK:
            answers = [self._within(clock, program, i, options) for i in range(program.batch)]
        stats = {"solver": self.name, "cvxpy": cp.__version__, "ran": tuple(ran for _, ran in answers)}
        return batch_solution([element for element, _ in answers], stats)

    def _within(self, clock: Clock, program: ConeProgram, i: int, options: Options) -> tuple[ElementResult, str]:
        """``_element`` within the remaining time."""
        if clock.expired:
            return not_started(program.structure), self.name
        left = clock.applied(options)
        return self._element(program, i, self._arguments(left, program.structure), left.time_limit_s)

    def _arguments(self, options: Options, structure: Structure) -> dict[str, Any]:
        spec = self._spec
        arguments: dict[str, Any] = dict.fromkeys(spec.tol, max(options.tol, spec.min_tol)) | dict(spec.fixed)
        if spec.cycling_limit is not None:
            arguments[spec.cycling_limit] = CYCLING_LIMIT + CYCLING_LIMIT_PER_ROW * (structure.n + structure.m)
        if options.max_iter is not None:
            if not spec.max_iter:
                raise SolverError(self._no_option("max_iter"))
            arguments |= dict.fromkeys(spec.max_iter, options.max_iter)
        if options.time_limit_s is not None:
            if spec.time_limit_s is None:
                raise SolverError(self._no_option("time_limit_s"))
            arguments[spec.time_limit_s] = options.time_limit_s
        allowed = options.solver_options.get(self.name, ()) if spec.raw is None else spec.raw
        return arguments | options.raw(self.name, allowed)

    def _no_option(self, name: str) -> str:
        return f"solver {self.name!r} has no {name} here: omit it, or set the solver's own option in solver_options"

    def _element(
        self, program: ConeProgram, i: int, arguments: dict[str, Any], limit: float | None
    ) -> tuple[ElementResult, str]:
        """The result of element i, and the name of the solver that CVXPY ran."""
        presolved = Presolved.of(program, i)
        if presolved.result is not None:
            return presolved.result, self.name.upper()
        try:
            reason = self._spec.unsupported_reason(presolved, arguments)
            if reason:
                return failed_element(program.structure, f"{self.name}: {reason}"), self.name.upper()
            result, ran = self._run(_CvxpyProblem(presolved), arguments)
        except SolverError:
            raise
        except Exception as error:  # such as a P that is not positive semidefinite
            logger.debug("%s failed on element %d", self.name, i, exc_info=True)
            self._check_accepted(arguments)
            return failed_element(program.structure, f"{self.name}: {error}"), self.name.upper()
        if result.status is Status.ITERATION_LIMIT and limit is not None and result.seconds >= limit:
            result = replace(result, status=Status.TIME_LIMIT)
        return presolved.postsolve(result), ran

    def _run(self, element: _CvxpyProblem, arguments: dict[str, Any]) -> tuple[ElementResult, str]:
        """The result of a CVXPY problem, and the name of the solver that CVXPY ran."""
        try:
            data, chain, inverse_data = element.problem.get_problem_data(self.name.upper(), solver_opts=arguments)
        except cp.SolverError as error:
            raise SolverError(f"solver {self.name!r} cannot take this problem: {error}") from error
        ran = str(chain.solver.name())
        try:
            answer = chain.solver.solve_via_data(data, False, False, dict(arguments), {})
        except (cp.SolverError, ArithmeticError) as error:
            return replace(element.result(Status.NUMERICAL_ERROR, {}), message=f"{self.name}: {error}"), ran
        solution = chain.invert(answer, inverse_data)
        if solution.status in STATUS:
            element.problem.unpack(solution)
        return element.result(STATUS.get(solution.status, Status.NUMERICAL_ERROR), solution.attr), ran

    def _check_accepted(self, arguments: dict[str, Any]) -> None:
        """Raise a SolverError if the solver rejects these arguments for every program."""
        try:
            self._run(_CvxpyProblem(Presolved.of(smallest_program(), 0)), arguments)
        except Exception as error:
            raise SolverError(f"solver {self.name!r} rejected the arguments {arguments}: {error}") from error


class _CvxpyProblem:
    """One element as a CVXPY problem, and the conversion of its solution to the standard form."""

    def __init__(self, presolved: Presolved) -> None:
        cones = presolved.cones
        self.q, self.b, self.A = presolved.q, presolved.b, presolved.A
        self.x = cp.Variable(len(self.q))
        self.constraints: list[cp.Constraint] = []
        self._duals: list[Callable[[], Array]] = []
        start = 0
        if cones.zero:
            self._add(self._slack(start, cones.zero) == 0, lambda c: -np.ravel(c.dual_value))
            start += cones.zero
        if cones.nonnegative:
            self._add(self._slack(start, cones.nonnegative) >= 0, lambda c: np.ravel(c.dual_value))
            start += cones.nonnegative
        for size in cones.second_order:
            slack = self._slack(start, size)
            self._add(cp.SOC(slack[0], slack[1:]) if size > 1 else slack >= 0, _flat_duals)
            start += size
        for side in cones.psd:
            size = side * (side + 1) // 2
            self._add(cp.PSD(_matrix(self._slack(start, size), side)), _vector_dual)
            start += size
        if cones.exponential:
            slack = self._slack(start, 3 * cones.exponential)
            self._add(cp.ExpCone(slack[0::3], slack[1::3], slack[2::3]), _interleaved_duals)
            start += 3 * cones.exponential
        if cones.power:
            slack = self._slack(start, 3 * len(cones.power))
            self._add(cp.PowCone3D(slack[0::3], slack[1::3], slack[2::3], np.array(cones.power)), _interleaved_duals)
        objective = self.q @ self.x
        if presolved.P.nnz:
            objective = objective + 0.5 * cp.quad_form(self.x, cp.psd_wrap(presolved.P))
        self.problem = cp.Problem(cp.Minimize(objective), self.constraints)

    def _slack(self, start: int, size: int) -> cp.Expression:
        rows = slice(start, start + size)
        return self.b[rows] - self.A[rows] @ self.x

    def _add(self, constraint: cp.Constraint, dual: Callable[[Any], Array]) -> None:
        self.constraints.append(constraint)
        self._duals.append(lambda: dual(constraint))

    def result(self, status: Status, attributes: Mapping[str, Any]) -> ElementResult:
        """The result with this status and CVXPY's solution attributes; NaN if there is no point."""
        x, y = np.full(len(self.q), np.nan), np.full(len(self.b), np.nan)
        if self.x.value is not None and all(c.dual_variables[0].value is not None for c in self.constraints):
            x = np.asarray(self.x.value, dtype=float)
            y = np.concatenate([np.zeros(0), *(dual() for dual in self._duals)])
        iterations = attributes.get("num_iters")
        return ElementResult(
            x=x,
            y=y,
            s=self.b - self.A @ x,
            status=status,
            iterations=0 if iterations is None else int(np.max(iterations)),
            seconds=float(attributes.get("solve_time") or 0.0),
        )


def _flat_duals(constraint: cp.Constraint) -> Array:
    return np.concatenate([np.ravel(dual.value) for dual in constraint.dual_variables])


def _interleaved_duals(constraint: cp.Constraint) -> Array:
    return np.stack([np.ravel(dual.value) for dual in constraint.dual_variables], axis=1).ravel()


def _matrix(v: cp.Expression, side: int) -> cp.Expression:
    """The symmetric matrix of a scaled lower triangle."""
    svec = symmetric_vectors(side)
    spread = svec.matrix(np.eye(svec.size)).reshape(svec.size, side * side).T
    return cp.reshape(spread @ v, (side, side), order="F")


def _vector_dual(constraint: cp.PSD) -> Array:
    return symmetric_vectors(constraint.shape[0]).vector(np.asarray(constraint.dual_value))
