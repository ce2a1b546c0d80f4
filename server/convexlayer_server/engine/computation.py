"""One call of the library.

A merged solve, whose rows belong to several requests, is stopped at a few times the usual number of iterations, so that
a slow row keeps nobody waiting: whoever has one is served again on its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress
from statistics import median
from typing import Any, final

import numpy as np

from convexlayer.errors import DerivativeError as LibraryDerivativeError
from convexlayer.errors import ProblemError, SolverError
from convexlayer.layers import SolvedBatch
from convexlayer.solution import Solution
from convexlayer.status import Status

from ..arrays import Array
from ..errors import DerivativeError, InvalidError, SolverChoiceError, pointer
from .compiled import CompiledProblem
from .protocol import ComputeRequest, ComputeResult, PortableState

__all__ = ["Computation"]

_LEAST = 64
"""Iterations that a merged solve may take at least; interior-point methods take 10 to 30."""

_TIMES_USUAL = 4
_LATELY = 32


@dataclass(frozen=True)
class _Operands:
    """The arrays of one request.

    Attributes:
        theta: parameter values in order, each of its shape or (batch, *shape); one at least with a batch axis where the
            batch is not one element without an axis.
        directions: by name, (batch, *shape).
        batch: number of elements.
        batched: whether anything came with a batch axis.
    """

    theta: list[Array]
    directions: dict[str, Array]
    batch: int
    batched: bool


@final
class Computation:
    """What is computed with one problem.

    Args:
        problem: the problem.
        device: ``cpu`` or ``cuda``, where small dense programs are solved and differentiated.
    """

    def __init__(self, problem: CompiledProblem, device: str) -> None:
        self._problem = problem
        self._device = device
        self._iterations: dict[str, deque[float]] = {}

    def result(
        self, request: ComputeRequest, solved: SolvedBatch | None = None, *, merged: bool = False
    ) -> tuple[ComputeResult, SolvedBatch, bool]:
        """The result, the batch that it is of, and whether its solve was stopped because it was merged.

        Args:
            request: the request.
            solved: the batch that its state stands for, if that is an id.
            merged: whether its rows belong to several requests.

        Raises:
            RequestError: something is wrong with the request.
        """
        operands, stopped = _operands(self._problem, request), False
        try:
            if solved is None and isinstance(request.state, PortableState):
                solved = self._resumed(request, request.state, operands)
            elif solved is None:
                solved, stopped = self._solved(request, operands, merged=merged)
            arrays, objective = self._outcome(request, solved, operands.directions)
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
            report=None if request.operation == "solve" else _derivative_report(solved),
            solver=report.solver,
            reason=report.reason,
            seconds=dict(report.seconds),
            portable=_points(report.solution, status) if request.keep or request.portable else None,
            details=report.details,
        )
        return result, solved, stopped

    def _solved(self, request: ComputeRequest, operands: _Operands, *, merged: bool) -> tuple[SolvedBatch, bool]:
        """The batch, and whether a row of it was stopped before its time."""
        asked = request.options
        options = {name: getattr(asked, name) for name in ("tol", "max_iter", "time_limit_s")}
        seen = self._iterations.setdefault(asked.solver, deque(maxlen=_LATELY))
        usual = 2 ** int(np.log2(max(1.0, median(seen or [1.0]))))  # few limits: a solver may keep one object for each
        limit = max(_LEAST, _TIMES_USUAL * usual)
        limited = merged and (asked.max_iter is None or asked.max_iter > limit)
        if limited:
            options["max_iter"] = limit
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        solved = self._problem.solution_map(asked.solver, self._device).solve(operands.theta, options=given)
        seen.append(float(np.median(solved.report.iterations)))
        return solved, limited and Status.ITERATION_LIMIT in solved.report.status

    def _resumed(self, request: ComputeRequest, state: PortableState, operands: _Operands) -> SolvedBatch:
        """The batch of a state; the one row of it stands for all rows of the directions."""
        times = operands.batch // len(state.status)
        x, y, s = (np.repeat(values, times, axis=0) if times > 1 else values for values in (state.x, state.y, state.s))
        status, none = tuple(map(Status, state.status * times)), np.zeros(operands.batch)
        solution = Solution(x, y, s, status, none.astype(np.int64), none, {"solver": "none"})
        tol = {} if request.options.tol is None else {"tol": request.options.tol}
        return self._problem.solution_map(request.options.solver, self._device).at(
            operands.theta, solution, options=tol
        )

    def _outcome(
        self, request: ComputeRequest, solved: SolvedBatch, directions: Mapping[str, Array]
    ) -> tuple[dict[str, Array], Array | None]:
        """Arrays by name, and objective values or their tangents."""
        names, specs = self._problem.names, self._problem.program.parameters
        wanted = [request.outputs is None or name in request.outputs for name in names]
        if request.operation == "solve":
            return dict(compress(zip(names, solved.outputs, strict=True), wanted)), solved.objective
        if request.operation == "jvp":
            tangents, objective = solved.jvp([directions.get(spec.name) for spec in specs], of=wanted)
            return dict(compress(zip(names, tangents, strict=True), wanted)), objective
        _check_cotangents(directions, solved)
        gradients = solved.vjp(
            [directions.get(name) for name in names],
            objective=directions.get("objective"),
            wrt=[spec.name in request.wrt for spec in specs],
        )
        return {
            spec.name: gradient if request.parameters[spec.name].ndim > len(spec.shape) else gradient.sum(axis=0)
            for spec, gradient in zip(specs, gradients, strict=True)
            if gradient is not None
        }, None


def _operands(problem: CompiledProblem, request: ComputeRequest) -> _Operands:
    """Where directions are batched and no parameter is, the parameters are the same for every element."""
    specs = problem.program.parameters
    theta = [request.parameters[spec.name] for spec in specs]
    sizes = [value.shape[0] for spec, value in zip(specs, theta, strict=True) if value.ndim > len(spec.shape)]
    shapes = _shapes(problem, request)
    sizes += [value.shape[0] for name, value in request.directions.items() if value.ndim > len(shapes[name])]
    batch = sizes[0] if sizes else 1
    if theta and sizes and all(value.shape == spec.shape for spec, value in zip(specs, theta, strict=True)):
        theta[0] = np.broadcast_to(theta[0], (batch, *specs[0].shape))
    if not theta and batch > 1:
        raise InvalidError.at("/cotangents", "the problem has no parameters, so there is no batch")
    directions = {name: np.broadcast_to(value, (batch, *shapes[name])) for name, value in request.directions.items()}
    return _Operands(theta, directions, batch, bool(sizes))


def _shapes(problem: CompiledProblem, request: ComputeRequest) -> dict[str, tuple[int, ...]]:
    """Shapes of what directions belong to."""
    if request.operation == "jvp":
        return {spec.name: spec.shape for spec in problem.program.parameters}
    outputs = zip(problem.names, problem.program.outputs, strict=True)
    return {"objective": (), **{name: output.shape for name, output in outputs}}


def _points(solution: Solution, status: tuple[str, ...]) -> PortableState:
    """Solutions to be kept; zeros where they are not finite, as they may be of elements that have none."""
    x, y, s = (
        values if np.isfinite(values).all() else np.where(np.isfinite(values), values, 0.0)
        for values in (solution.x, solution.y, solution.s)
    )
    return PortableState(digest="", x=x, y=y, s=s, status=status)


def _check_cotangents(cotangents: Mapping[str, Array], solved: SolvedBatch) -> None:
    """Rows of elements without a solution are ignored, as in the layer; all others must be finite."""
    usable = np.ones(solved.batch, dtype=bool)
    usable[list(solved.report.failed)] = False
    for name, value in cotangents.items():
        finite = np.isfinite(value).reshape(solved.batch, -1).all(axis=1)
        wrong = np.flatnonzero(usable & ~finite)
        if len(wrong):
            where = pointer("cotangents", name)
            raise InvalidError.at(where, f"element {wrong[0]} is not finite, though it has a solution")


def _derivative_report(solved: SolvedBatch) -> dict[str, list[Any]]:
    """How far the derivative can be trusted; of the objective's alone, which needs no linear system, only a status."""
    report = solved.report.derivative
    if report is None:
        status = ["ok" if status.solved else "failed" for status in solved.report.status]
        missing: list[Any] = [None] * solved.batch
        return {
            "status": status,
            "linear_residual": missing,
            "margin": missing,
            "condition": missing,
            "consistent": missing,
        }
    return {
        "status": list(report.status),
        "linear_residual": report.linear_residual.tolist(),
        "margin": report.margin.tolist(),
        "condition": report.condition.tolist(),
        "consistent": [bool(value) for value in report.consistent],
    }
