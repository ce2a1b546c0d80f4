"""Results of requests, as plain data with NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, final

import numpy as np

from convexlayer_client.arrays import Array

__all__ = [
    "ApiResult",
    "DerivativeReport",
    "Job",
    "JobStatus",
    "JvpResult",
    "Options",
    "PortableState",
    "Problem",
    "Residuals",
    "SolveResult",
    "SplitState",
    "VjpResult",
]

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class ApiResult:
    """Base class of all results.

    Attributes:
        request_id: ID of the request in the server's log; None if unknown, or for an entry of a list.
    """

    request_id: str | None = field(default=None, compare=False)


@final
@dataclass(frozen=True, kw_only=True)
class Options:
    """Solver options; None is the server's default.

    Attributes:
        tol: Tolerance of the residuals.
        max_iter: Iteration limit.
        time_limit_s: Seconds for solving all elements.
    """

    tol: float | None = None
    max_iter: int | None = None
    time_limit_s: float | None = None

    @staticmethod
    def of(options: Options | Mapping[str, Any] | None, default: Options) -> Options:
        """Return complete options from options, a mapping of changes to the default, or None.

        Raises:
            TypeError: ``options`` has another type, or an unknown name.
        """
        if options is None or isinstance(options, Options):
            return options or default
        if not isinstance(options, Mapping):
            raise TypeError(
                f"expected convexlayer_client.Options or a mapping of changes, got {type(options).__name__}"
            )
        return replace(default, **options)


@final
@dataclass(frozen=True)
class Problem(ApiResult):
    """A registered problem.

    Attributes:
        id: ID on the server, a hash of the document.
        parameters: Shape of each parameter.
        variables: Shape of each variable.
        duals: Shape of each dual variable: ``c0``, ``c1``, ... by position of the constraint, ``c3.0``, ``c3.1`` if it
            has several.
        details: Further information: kind, curvature, cones, sizes, solver.
    """

    id: str
    parameters: Mapping[str, tuple[int, ...]]
    variables: Mapping[str, tuple[int, ...]]
    duals: Mapping[str, tuple[int, ...]]
    details: Mapping[str, Any]


@final
@dataclass(frozen=True)
class Residuals:
    """Residuals of the optimality conditions of each element, arrays of shape (batch,).

    Attributes:
        primal: Primal residual.
        dual: Dual residual (stationarity).
        gap: Duality gap.
        natural: Natural residual (complementarity of slack and dual variable).
    """

    primal: Array
    dual: Array
    gap: Array
    natural: Array


@final
@dataclass(frozen=True)
class DerivativeReport:
    """Accuracy of each element's derivative.

    Attributes:
        status: ``ok``, ``inaccurate``, ``degenerate`` (the derivative may not exist) or ``failed``, for each element.
        linear_residual: Relative residual of the linear system; this and the following have shape (batch,).
        margin: Strict complementarity margin: distance to the nearest point where the derivative jumps.
        condition: Condition estimate of the linear system.
    """

    status: tuple[str, ...]
    linear_residual: Array
    margin: Array
    condition: Array

    def worse(self, other: DerivativeReport) -> DerivativeReport:
        """Combine two reports at the same solutions: the worse of each entry."""
        rank = ("ok", "inaccurate", "degenerate", "failed").index
        return DerivativeReport(
            tuple(max(pair, key=rank) for pair in zip(self.status, other.status, strict=True)),
            np.maximum(self.linear_residual, other.linear_residual),
            np.minimum(self.margin, other.margin),
            np.maximum(self.condition, other.condition),
        )


@final
@dataclass(frozen=True)
class PortableState:
    """The state of a solve, from which a later vjp or jvp with the same parameters can start.

    Attributes:
        digest: Hash that binds it to its problem and parameters.
        status: Status of each element.
        x: Primal variables of the standard form, shape (batch, n).
        y: Dual variables of the standard form, shape (batch, m).
        s: Slacks of the standard form, shape (batch, m).
    """

    digest: str
    status: tuple[str, ...]
    x: Array
    y: Array
    s: Array

    def as_dict(self) -> dict[str, Any]:
        """Return the state as a dictionary, for the body of a request."""
        return {"digest": self.digest, "status": list(self.status), "x": self.x, "y": self.y, "s": self.s}


@final
@dataclass(frozen=True)
class SplitState(Generic[T_co]):
    """The state of a batch that was solved in parts.

    Attributes:
        sizes: Number of elements of each part.
        parts: State of each part, a handle or portable.
    """

    sizes: tuple[int, ...]
    parts: tuple[T_co, ...]


@final
@dataclass(frozen=True)
class SolveResult(ApiResult):
    """A solved batch.

    Attributes:
        variables: Arrays of shape (batch, *shape), or of the variable's shape if no parameter was batched. NaN for
            failed elements.
        duals: The same for dual variables, if requested.
        status: Status of each element: optimal, optimal_inaccurate, infeasible, unbounded, iteration_limit, time_limit,
            numerical_error, or invalid (invalid parameter values).
        objective: Objective values, shape (batch,).
        iterations: Iterations of the solver, shape (batch,).
        residuals: Residuals of each element.
        meta: Solver, versions, batch size and seconds; sums for a batch that was sent in parts.
        state: Handle of the state, if requested; None if the state is too large for the server to keep.
        portable: The state itself, if requested.
        details: Messages about single elements, by position: why values are invalid, and why elements failed.
    """

    variables: Mapping[str, Array]
    duals: Mapping[str, Array]
    status: tuple[str, ...]
    objective: Array
    iterations: Array
    residuals: Residuals
    meta: Mapping[str, Any]
    state: str | SplitState[str] | None = None
    portable: PortableState | SplitState[PortableState] | None = None
    details: Mapping[int, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class VjpResult(ApiResult):
    """Gradients.

    Attributes:
        gradients: Gradients of each element, shape (batch, *shape), for a parameter with a batch axis; summed over the
            batch for one without. Zero for failed elements.
        status: Status of each element's solution.
        report: Accuracy of each element's gradient.
        meta: See ``SolveResult``.
        details: See ``SolveResult``.
    """

    gradients: Mapping[str, Array]
    status: tuple[str, ...]
    report: DerivativeReport
    meta: Mapping[str, Any]
    details: Mapping[int, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class JvpResult(ApiResult):
    """Tangents of the outputs.

    Attributes:
        tangents: Tangents by variable, and by dual variable if requested, of the shapes of ``SolveResult``.
        objective: Tangents of the objective values, shape (batch,).
        status: Status of each element's solution.
        report: Accuracy of each element's tangent.
        meta: See ``SolveResult``.
        details: See ``SolveResult``.
    """

    tangents: Mapping[str, Array]
    objective: Array
    status: tuple[str, ...]
    report: DerivativeReport
    meta: Mapping[str, Any]
    details: Mapping[int, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Job(ApiResult, Generic[T_co]):
    """A solve, vjp or jvp that runs on the server without a connection; plain data that any process can use.

    Attributes:
        id: ID on the server.
        problem_id: ID of the problem.
        operation: ``solve``, ``vjp`` or ``jvp``.
    """

    id: str
    problem_id: str
    operation: str


@final
@dataclass(frozen=True, kw_only=True)
class JobStatus(ApiResult):
    """The status of a job.

    Attributes:
        id: ID on the server.
        problem_id: ID of the problem.
        operation: ``solve``, ``vjp`` or ``jvp``.
        status: ``waiting``, ``running``, ``done`` (with a result or an error) or ``cancelled``.
        done: Number of computed elements.
        total: Number of elements; 0 before the start.
        seconds: Seconds from submission to now, or to its end.
        expires_s: Seconds until the result expires; None until the job ends.
    """

    id: str
    problem_id: str
    operation: str
    status: str
    done: int
    total: int
    seconds: float
    expires_s: float | None

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.status in ("done", "cancelled")
