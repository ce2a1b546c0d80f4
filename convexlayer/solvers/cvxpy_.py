"""Every other solver that CVXPY has installed: the standard form, posed as a CVXPY problem. Slower, always right."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import cvxpy as cp
import numpy as np

from convexlayer.errors import SolverError
from convexlayer.program import Array, ConeProgram, Cones, Structure
from convexlayer.solution import Solution, Status
from convexlayer.solvers.base import AbstractSolver, ElementResult, batch_solution
from convexlayer.solvers.options import Options

__all__ = ["CvxpySolver"]

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


@dataclass(frozen=True)
class _Known:
    """What we know of a solver behind CVXPY, and how it calls the portable options."""

    package: str
    cones: frozenset[str]
    quadratic: bool
    tol: tuple[str, ...] = ()
    max_iter: str | None = None
    time_limit_s: str | None = None
    fixed: tuple[tuple[str, Any], ...] = ()


KNOWN = {
    "ecos": _Known("ecos", SOCP | {"exponential"}, True, ("abstol", "reltol", "feastol"), "max_iters"),
    "osqp": _Known("osqp", LP, True, ("eps_abs", "eps_rel"), "max_iter", "time_limit", (("polishing", True),)),
    "highs": _Known(
        "highspy",
        LP,
        True,
        ("primal_feasibility_tolerance", "dual_feasibility_tolerance"),
        "simplex_iteration_limit",
        "time_limit",
    ),
    "cvxopt": _Known("cvxopt", SOCP | {"psd"}, True, ("abstol", "reltol", "feastol"), "max_iters"),
    "piqp": _Known("piqp", LP, True, ("eps_abs", "eps_rel"), "max_iter"),
    "daqp": _Known("daqp", LP, True, ("primal_tol", "dual_tol"), "iter_limit"),
    "qoco": _Known("qoco", SOCP, True, ("abstol", "reltol"), "max_iters"),
    "mosek": _Known("Mosek", SOCP | {"psd", "exponential", "power"}, True),
    "gurobi": _Known(
        "gurobipy", SOCP, True, ("BarConvTol", "FeasibilityTol", "OptimalityTol"), "BarIterLimit", "TimeLimit"
    ),
}
"""A quadratic objective of a solver without one is turned into a second-order cone by CVXPY."""

_LOCK = threading.Lock()
"""CVXPY does not say that it may be used from several threads at once."""


@final
class CvxpySolver(AbstractSolver):
    """One of CVXPY's solvers, by its name there. Elements are solved one after another, under a lock."""

    def __init__(self, name: str) -> None:
        """Describe the solver; solvers that we know nothing of are tried on anything, with their own tolerances."""
        self._known = KNOWN.get(name, _Known(name, frozenset(Cones.__dataclass_fields__), quadratic=True))
        self.name = name
        self.package = self._known.package
        self.cones = self._known.cones
        self.quadratic = self._known.quadratic

    def installed(self) -> bool:
        """Whether CVXPY finds it."""
        return self.name.upper() in cp.installed_solvers()

    def init(self, structure: Structure) -> Structure:
        """The structure is all that is needed."""
        return structure

    def solve(
        self, state: Structure, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Pose and solve every element; warm starts are not passed on."""
        arguments = self._arguments(options)
        with _LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answers = [self._element(program, i, arguments) for i in range(program.batch)]
        stats = {"solver": self.name, "version": cp.__version__, "ran": [ran for _, ran in answers]}
        return batch_solution([element for element, _ in answers], stats)

    def _arguments(self, options: Options) -> dict[str, Any]:
        known = self._known
        arguments: dict[str, Any] = {name: options.tol for name in known.tol} | dict(known.fixed)
        if options.max_iter is not None and known.max_iter:
            arguments[known.max_iter] = options.max_iter
        if options.time_limit_s is not None and known.time_limit_s:
            arguments[known.time_limit_s] = options.time_limit_s
        raw = options.solver_options.get(self.name, {})
        return arguments | options.raw(self.name, raw)

    def _element(self, program: ConeProgram, i: int, arguments: dict[str, Any]) -> tuple[ElementResult, Any]:
        posed = _Posed(program, i)
        try:
            posed.problem.solve(solver=self.name.upper(), **arguments)
        except cp.SolverError:
            return posed.result(Status.NUMERICAL_ERROR), None
        except (TypeError, ValueError, KeyError) as error:
            raise SolverError(f"CVXPY could not run {self.name!r} with {arguments}: {error}") from error
        status = STATUS.get(posed.problem.status, Status.NUMERICAL_ERROR)
        return posed.result(status), posed.problem.solver_stats


class _Posed:
    """One element as a CVXPY problem, and the way back."""

    def __init__(self, program: ConeProgram, i: int) -> None:
        structure = program.structure
        cones = structure.cones
        self.structure = structure
        self.A = structure.A.csc(program.A[i]).tocsr()
        self.b = program.b[i]
        self.x = cp.Variable(structure.n)
        self.constraints: list[cp.Constraint] = []
        self._duals: list[Callable[[], Array]] = []
        start = 0
        for size, constraint in ((cones.zero, cp.Zero), (cones.nonnegative, cp.NonPos)):
            if size:
                rows = slice(start, start + size)
                self._add(constraint(self.A[rows] @ self.x - self.b[rows]), lambda c: np.ravel(c.dual_value))
                start += size
        for size in cones.second_order:
            slack = self._slack(start, size)
            self._add(cp.SOC(slack[0], slack[1:]) if size > 1 else slack >= 0, _flat_duals)
            start += size
        for side in cones.psd:
            size = side * (side + 1) // 2
            self._add(cp.PSD(_matrix(self._slack(start, size), side)), lambda c: _svec(c.dual_value))
            start += size
        if cones.exponential:
            slack = self._slack(start, 3 * cones.exponential)
            self._add(cp.ExpCone(slack[0::3], slack[1::3], slack[2::3]), _interleaved_duals)
            start += 3 * cones.exponential
        if cones.power:
            slack = self._slack(start, 3 * len(cones.power))
            self._add(cp.PowCone3D(slack[0::3], slack[1::3], slack[2::3], np.array(cones.power)), _interleaved_duals)
        objective = program.q[i] @ self.x
        if structure.P.nnz:
            objective = objective + 0.5 * cp.quad_form(self.x, cp.psd_wrap(structure.P.csc(program.P[i])))
        self.problem = cp.Problem(cp.Minimize(objective), self.constraints)

    def _slack(self, start: int, size: int) -> cp.Expression:
        rows = slice(start, start + size)
        return self.b[rows] - self.A[rows] @ self.x

    def _add(self, constraint: cp.Constraint, dual: Callable[[Any], Array]) -> None:
        self.constraints.append(constraint)
        self._duals.append(lambda: dual(constraint))

    def result(self, status: Status) -> ElementResult:
        """The result with this status; the point is NaN where there is none."""
        n, m = self.structure.n, self.structure.m
        x, y = np.full(n, np.nan), np.full(m, np.nan)
        if self.x.value is not None and all(c.dual_variables[0].value is not None for c in self.constraints):
            x = np.asarray(self.x.value, dtype=float)
            y = np.concatenate([np.zeros(0), *(dual() for dual in self._duals)])
        stats = self.problem.solver_stats
        iterations = 0 if stats is None or stats.num_iters is None else int(np.max(stats.num_iters))
        seconds = 0.0 if stats is None or stats.solve_time is None else float(stats.solve_time)
        return ElementResult(x, y, self.b - self.A @ x, status, iterations, seconds)


def _flat_duals(constraint: cp.Constraint) -> Array:
    return np.concatenate([np.ravel(dual.value) for dual in constraint.dual_variables])


def _interleaved_duals(constraint: cp.Constraint) -> Array:
    return np.stack([np.ravel(dual.value) for dual in constraint.dual_variables], axis=1).ravel()


def _matrix(svec: cp.Expression, side: int) -> cp.Expression:
    """The symmetric matrix of a scaled lower triangle."""
    cols, rows = np.triu_indices(side)
    spread = np.zeros((side * side, len(rows)))
    scale = np.where(rows == cols, 1.0, 1.0 / np.sqrt(2.0))
    spread[rows + side * cols, np.arange(len(rows))] = scale
    spread[cols + side * rows, np.arange(len(rows))] = scale
    return cp.reshape(spread @ svec, (side, side), order="F")


def _svec(matrix: Array) -> Array:
    """The scaled lower triangle of a symmetric matrix."""
    cols, rows = np.triu_indices(matrix.shape[0])
    return np.asarray(matrix[rows, cols]) * np.where(rows == cols, 1.0, np.sqrt(2.0))
