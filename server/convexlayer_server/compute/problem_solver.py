"""Solves and differentiates batches of one problem with the library.

A merged solve, whose elements belong to several requests, is stopped at a multiple of the usual number of iterations,
so that a slow element does not delay the others: its request is computed again on its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress
from statistics import median
from typing import Any, final

import numpy as np

from convexlayer.diff import DerivativeReport
from convexlayer.errors import DerivativeError as LibraryDerivativeError
from convexlayer.errors import ProblemError, SolverError
from convexlayer.layers.protocol import AbstractSolvedBatch
from convexlayer.solution import Solution
from convexlayer.status import Status

from ..encodings.arrays import Array
from ..errors import DerivativeError, InvalidError, SolverChoiceError, pointer
from .canonical import CanonicalProblem
from .protocol import ComputeRequest, ComputeResult, PortableState

__all__ = ["ProblemSolver"]

_MIN_MERGED_LIMIT = 64
"""Smallest iteration limit of a merged solve; interior-point methods usually take 10 to 30 iterations."""

_USUAL_MULTIPLE = 4
"""Iteration limit of a merged solve as a multiple of the usual number of iterations.

A smaller multiple stops elements that would soon have finished; a larger one lets a slow element delay the others.
"""

_HISTORY = 32
"""Number of solves whose median number of iterations is the usual one."""


@dataclass(frozen=True)
class _Operands:
    """The arrays of one request.

    Attributes:
        theta: parameters in order, each of its shape or (batch, *shape); at least one has a batch axis, unless the
            request has none.
        directions: directions by name, each (batch, *shape).
        batch: number of elements.
        batched: whether any array of the request has a batch axis.
    """

    theta: list[Array]
    directions: dict[str, Array]
    batch: int
    batched: bool


@final
class ProblemSolver:
    """Computes requests for one problem.

    Args:
        problem: the problem.
        device: ``cpu`` or ``cuda``, where small dense programs are solved and differentiated.
    """

    def __init__(self, problem: CanonicalProblem, device: str) -> None:
        self._problem = problem
        self._device = device
        self._iterations: dict[str, deque[float]] = {}

    def compute(
        self, request: ComputeRequest, solved: AbstractSolvedBatch | None = None, *, merged: bool = False
    ) -> tuple[ComputeResult, AbstractSolvedBatch, bool]:
        """Return the result, its solved batch, and whether the limit of merged solves stopped an element.

        Args:
            request: the request.
            solved: the cached batch that the request's state names, if any.
            merged: whether the elements belong to several requests.

        Raises:
            RequestError: the request is invalid, or its derivative cannot be computed.
        """
        operands, stopped = _operands(self._problem, request), False
        try:
            if solved is None and isinstance(request.state, PortableState):
                solved = self._resume(request, request.state, operands)
            elif solved is None:
                solved, stopped = self._solve(request, operands, merged=merged)
            start = time.perf_counter()
            arrays, objective, derivative = self._outputs(request, solved, operands.directions)
            seconds = dict(solved.report.seconds)
            if derivative is not None:
                seconds["derivative"] = time.perf_counter() - start
        except ProblemError as error:
            raise InvalidError.at("/parameters", str(error)) from error
        except SolverError as error:
            raise SolverChoiceError.at("/options", str(error)) from error
        except LibraryDerivativeError as error:
            raise DerivativeError(str(error)) from error
        report = solved.report
        status, residuals = tuple(map(str, report.status)), report.residuals
        result = ComputeResult(
            arrays={name: np.asarray(value, order="C") for name, value in arrays.items()},  # sent as they lie in memory
            batched=operands.batched,
            status=status,
            objective=objective,
            iterations=tuple(report.iterations.tolist()),
            residuals={name: getattr(residuals, name) for name in ("primal", "dual", "gap", "natural")},
            report=None if derivative is None else _as_columns(derivative),
            solver=report.solver,
            reason=report.reason,
            seconds=seconds,
            portable=_portable_state(report.solution, status) if request.keep or request.portable else None,
            details=report.details,
        )
        return result, solved, stopped

    def _solve(self, request: ComputeRequest, operands: _Operands, *, merged: bool) -> tuple[AbstractSolvedBatch, bool]:
        """Solve; return the batch, and whether the limit of merged solves stopped an element."""
        requested = request.options
        options = {name: getattr(requested, name) for name in ("tol", "max_iter", "time_limit_s")}
        history = self._iterations.setdefault(requested.solver, deque(maxlen=_HISTORY))
        usual = 2 ** int(np.log2(max(1.0, median(history or [1.0]))))  # few distinct limits: solvers cache by options
        limit = max(_MIN_MERGED_LIMIT, _USUAL_MULTIPLE * usual)
        limited = merged and (requested.max_iter is None or requested.max_iter > limit)
        if limited:
            options["max_iter"] = limit
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        solved = self._problem.solution_map(requested.solver, self._device).solve(operands.theta, options=given)
        history.append(float(np.median(solved.report.iterations)))
        return solved, limited and Status.ITERATION_LIMIT in solved.report.status

    def _resume(self, request: ComputeRequest, state: PortableState, operands: _Operands) -> AbstractSolvedBatch:
        """Return the solved batch of a state; a state of one element serves all elements of the directions."""
        times = operands.batch // len(state.status)
        x, y, s = (np.repeat(values, times, axis=0) if times > 1 else values for values in (state.x, state.y, state.s))
        status, zeros = tuple(map(Status, state.status * times)), np.zeros(operands.batch)
        solution = Solution(x, y, s, status, zeros.astype(np.int64), zeros, {"solver": "none"})
        tol = {} if request.options.tol is None else {"tol": request.options.tol}
        solution_map = self._problem.solution_map(request.options.solver, self._device)
        return solution_map.at(operands.theta, solution, options=tol)

    def _outputs(
        self, request: ComputeRequest, solved: AbstractSolvedBatch, directions: Mapping[str, Array]
    ) -> tuple[dict[str, Array], Array | None, DerivativeReport | None]:
        """Return arrays by name, objective values or their tangents, and the derivative's report."""
        names, specs = self._problem.names, self._problem.program.parameters
        requested = [request.outputs is None or name in request.outputs for name in names]
        if request.operation == "solve":
            return dict(compress(zip(names, solved.outputs, strict=True), requested)), solved.objective, None
        if request.operation == "jvp":
            (*tangents, objective), report = solved.jvp([directions.get(spec.name) for spec in specs], of=requested)
            named = zip(names, tangents, strict=True)
            return {name: tangent for name, tangent in named if tangent is not None}, objective, report
        _check_cotangents(directions, solved)
        gradients, report = solved.vjp(
            [directions.get(name) for name in (*names, "objective")], wrt=[spec.name in request.wrt for spec in specs]
        )
        summed = {
            spec.name: gradient if request.parameters[spec.name].ndim > len(spec.shape) else gradient.sum(axis=0)
            for spec, gradient in zip(specs, gradients, strict=True)
            if gradient is not None
        }
        return summed, None, report


def _operands(problem: CanonicalProblem, request: ComputeRequest) -> _Operands:
    """Collect the arrays; if only directions have a batch axis, all elements share the parameters."""
    specs = problem.program.parameters
    theta = [request.parameters[spec.name] for spec in specs]
    sizes = [value.shape[0] for spec, value in zip(specs, theta, strict=True) if value.ndim > len(spec.shape)]
    shapes = _direction_shapes(problem, request)
    sizes += [value.shape[0] for name, value in request.directions.items() if value.ndim > len(shapes[name])]
    batch = sizes[0] if sizes else 1
    if theta and sizes and all(value.shape == spec.shape for spec, value in zip(specs, theta, strict=True)):
        theta[0] = np.broadcast_to(theta[0], (batch, *specs[0].shape))
    if not theta and batch > 1:
        raise InvalidError.at("/cotangents", "a problem without parameters has no batch")
    directions = {name: np.broadcast_to(value, (batch, *shapes[name])) for name, value in request.directions.items()}
    return _Operands(theta, directions, batch, bool(sizes))


def _direction_shapes(problem: CanonicalProblem, request: ComputeRequest) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays that directions belong to, by name."""
    if request.operation == "jvp":
        return {spec.name: spec.shape for spec in problem.program.parameters}
    outputs = zip(problem.names, problem.program.outputs, strict=True)
    return {"objective": (), **{name: output.shape for name, output in outputs}}


def _portable_state(solution: Solution, status: tuple[str, ...]) -> PortableState:
    """Return solutions as a state, with zeros for the non-finite values of elements without a solution."""
    x, y, s = (
        values if np.isfinite(values).all() else np.where(np.isfinite(values), values, 0.0)
        for values in (solution.x, solution.y, solution.s)
    )
    return PortableState(digest="", x=x, y=y, s=s, status=status)


def _check_cotangents(cotangents: Mapping[str, Array], solved: AbstractSolvedBatch) -> None:
    """Check that the cotangents of solved elements are finite; as in the layer, those of other elements are ignored."""
    usable = np.ones(solved.batch, dtype=bool)
    usable[list(solved.report.failed)] = False
    for name, value in cotangents.items():
        finite = np.isfinite(value).reshape(solved.batch, -1).all(axis=1)
        wrong = np.flatnonzero(usable & ~finite)
        if len(wrong):
            where = pointer("cotangents", name)
            raise InvalidError.at(where, f"element {wrong[0]} is not finite, though it has a solution")


def _as_columns(report: DerivativeReport) -> dict[str, list[Any]]:
    """Return the report of a derivative as plain lists, one entry per element."""
    return {
        "status": list(report.status),
        "linear_residual": report.linear_residual.tolist(),
        "margin": report.margin.tolist(),
        "condition": report.condition.tolist(),
        "consistent": [bool(value) for value in report.consistent],
    }
