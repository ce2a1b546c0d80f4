"""One call of the library for several requests: rows are stacked, and each request is given its own.

Requests that are computed together differ in their arrays alone. A merged solve is stopped at a few times the usual
number of iterations; a request with a row that is not done by then is left to be computed on its own, so that a slow
row keeps nobody waiting. Where a request of several is wrong, none is computed: the caller does them one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, final

import numpy as np

from convexlayer.errors import DerivativeError as LibraryDerivativeError
from convexlayer.errors import ProblemError, SolverError
from convexlayer.layers import SolvedBatch
from convexlayer.solution import Solution, Status

from ..arrays import Array
from ..errors import DerivativeError, InvalidError, SolverChoiceError, pointer
from .compiled import CompiledProblem
from .protocol import ComputeRequest, ComputeResult, PortableState

__all__ = ["Computation", "Stacked"]

_USUAL = 64
"""Iterations that a merged solve may take at least; interior-point methods take 10 to 30."""

_TIMES_USUAL = 4


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
class Stacked:
    """Requests as one batch.

    Raises:
        InvalidError: directions have a batch axis, but the problem has no parameters.
    """

    def __init__(self, problem: CompiledProblem, requests: Sequence[ComputeRequest]) -> None:
        specs = problem.program.parameters
        operands = [_operands(problem, request) for request in requests]
        ends = np.cumsum([each.batch for each in operands]).tolist()
        self.rows = [slice(end - each.batch, end) for end, each in zip(ends, operands, strict=True)]
        self.batched = [each.batched for each in operands]
        if len(operands) == 1:
            self.theta, self.directions = operands[0].theta, operands[0].directions
            return
        self.theta = [
            np.concatenate([np.broadcast_to(each.theta[i], (each.batch, *spec.shape)) for each in operands])
            for i, spec in enumerate(specs)
        ]
        self.directions = {
            name: np.concatenate([each.directions[name] for each in operands]) for name in operands[0].directions
        }


@final
class Computation:
    """What is computed with one problem.

    Args:
        problem: the problem.
        device: ``cpu`` or ``cuda``, for the solvers that know devices.
    """

    def __init__(self, problem: CompiledProblem, device: str) -> None:
        self._problem = problem
        self._device = device
        self._iterations: dict[str, list[float]] = {}

    def results(
        self, requests: Sequence[ComputeRequest], solved: SolvedBatch | None = None
    ) -> tuple[list[ComputeResult | None], SolvedBatch]:
        """Results in order, None of those that take long, and the batch that they are rows of.

        Args:
            requests: one or several, of one operation, with the same options, ``wrt`` and names of directions, all with
                states or none.
            solved: the batch that the state of the only request stands for.

        Raises:
            RequestError: of one request or another.
        """
        first = requests[0]
        stacked = Stacked(self._problem, requests)
        try:
            slow: list[bool] = [False] * len(requests)
            if solved is None and first.state is not None:
                solved = self._resumed(requests, stacked)
            elif solved is None:
                solved, slow = self._solved(requests, stacked)
            arrays, objective = self._outcome(first, solved, stacked.directions)
        except ProblemError as error:
            raise InvalidError.at("/parameters", str(error)) from error
        except SolverError as error:
            raise SolverChoiceError.at("/options", str(error)) from error
        except LibraryDerivativeError as error:
            raise DerivativeError(str(error)) from error
        whole = _Whole(solved, arrays, objective, None if first.operation == "solve" else _derivative_report(solved))
        parts = zip(requests, stacked.rows, stacked.batched, slow, strict=True)
        return [
            None if again else self._part(whole, request, rows, batched) for request, rows, batched, again in parts
        ], solved

    def _solved(self, requests: Sequence[ComputeRequest], stacked: Stacked) -> tuple[SolvedBatch, list[bool]]:
        """The batch, and for each request whether it has a row that was stopped before its time."""
        asked = requests[0].options
        options = {name: getattr(asked, name) for name in ("tol", "max_iter", "time_limit_s")}
        seen = self._iterations.setdefault(asked.solver, [])
        limit = max(_USUAL, _TIMES_USUAL * 2 ** int(np.log2(max(1.0, median(seen or [1.0])))))
        merged = len(requests) > 1 and (asked.max_iter is None or asked.max_iter > limit)
        if merged:
            options["max_iter"] = limit
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if self._device != "cpu":
            given["solver_options"] = {"dense": {"device": self._device}}
        solved = self._problem.solution_map(asked.solver).solve(stacked.theta, options=given)
        seen[:] = [*seen[-31:], float(np.median(solved.report.iterations))]
        stopped = [merged and status is Status.ITERATION_LIMIT for status in solved.report.status]
        return solved, [any(stopped[rows]) for rows in stacked.rows]

    def _resumed(self, requests: Sequence[ComputeRequest], stacked: Stacked) -> SolvedBatch:
        states = [request.state for request in requests]
        points = [state for state in states if isinstance(state, PortableState)]
        x, y, s = (
            np.concatenate(
                [
                    np.repeat(getattr(each, name), (rows.stop - rows.start) // len(each.status), axis=0)
                    for each, rows in zip(points, stacked.rows, strict=True)
                ]
            )
            for name in ("x", "y", "s")
        )
        status = [
            Status(word)
            for each, rows in zip(points, stacked.rows, strict=True)
            for word in each.status
            for _ in range((rows.stop - rows.start) // len(each.status))
        ]
        none = np.zeros(len(status))
        solution = Solution(x, y, s, tuple(status), none.astype(np.int64), none, {"solver": "none"})
        asked = requests[0].options
        tol = {} if asked.tol is None else {"tol": asked.tol}
        return self._problem.solution_map(asked.solver).at(stacked.theta, solution, options=tol)

    def _outcome(
        self, request: ComputeRequest, solved: SolvedBatch, directions: Mapping[str, Array]
    ) -> tuple[dict[str, Array], Array | None]:
        """Arrays of all rows by name, gradients row by row; and objective values or their tangents."""
        names, specs = self._problem.names, self._problem.program.parameters
        if request.operation == "solve":
            return dict(zip(names, solved.outputs, strict=True)), solved.objective
        if request.operation == "jvp":
            wanted = [request.outputs is None or name in request.outputs for name in names]
            tangents, objective = solved.jvp([directions.get(spec.name) for spec in specs], of=wanted)
            return dict(zip(names, tangents, strict=True)), objective
        _check_cotangents(directions, solved)
        gradients = solved.vjp(
            [directions.get(name) for name in names],
            objective=directions.get("objective"),
            wrt=[spec.name in request.wrt for spec in specs],
        )
        pairs = zip(specs, gradients, strict=True)
        return {spec.name: gradient for spec, gradient in pairs if gradient is not None}, None

    def _part(self, whole: _Whole, request: ComputeRequest, rows: slice, batched: bool) -> ComputeResult:
        """The rows of one request."""
        report = whole.solved.report
        if request.operation == "vjp":
            shapes = {spec.name: spec.shape for spec in self._problem.program.parameters}
            arrays = {
                name: value[rows] if request.parameters[name].ndim > len(shapes[name]) else value[rows].sum(axis=0)
                for name, value in whole.arrays.items()
            }
        else:
            wanted = self._problem.names if request.outputs is None else request.outputs
            arrays = {name: whole.arrays[name][rows] for name in wanted}
        status = tuple(str(status) for status in report.status[rows])
        residuals = report.residuals
        return ComputeResult(
            arrays=arrays,
            batched=batched,
            status=status,
            objective=None if whole.objective is None else whole.objective[rows],
            iterations=tuple(report.iterations[rows].tolist()),
            residuals={name: getattr(residuals, name)[rows] for name in ("primal", "dual", "gap", "natural")},
            report=None if whole.report is None else {name: values[rows] for name, values in whole.report.items()},
            solver=report.solver,
            reason=report.reason,
            seconds=dict(report.seconds),
            portable=_points(report.solution, rows, status) if request.keep or request.portable else None,
        )


@dataclass(frozen=True)
class _Whole:
    """What was computed for all rows."""

    solved: SolvedBatch
    arrays: Mapping[str, Array]
    objective: Array | None
    report: Mapping[str, list[Any]] | None


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


def _points(solution: Solution, rows: slice, status: tuple[str, ...]) -> PortableState:
    """Rows of solutions; zeros where they are not finite, as they may be of elements that have none."""
    x, y, s = (
        values if np.isfinite(values).all() else np.where(np.isfinite(values), values, 0.0)
        for values in (solution.x[rows], solution.y[rows], solution.s[rows])
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
