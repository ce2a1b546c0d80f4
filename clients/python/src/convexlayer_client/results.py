"""What the server answers, as plain data with NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, final

from convexlayer_client.arrays import Array

__all__ = [
    "Answer",
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
class Answer:
    """What every answer has.

    Attributes:
        request_id: What the server's log calls the request; None where it did not say, or the answer is one of a list.
    """

    request_id: str | None = field(default=None, compare=False)


@final
@dataclass(frozen=True, kw_only=True)
class Options:
    """How to solve; what is None is left to the server.

    Attributes:
        tol: Tolerance of the residuals.
        max_iter: Iterations that a solver may take.
        time_limit_s: Seconds that solving all elements may take.
    """

    tol: float | None = None
    max_iter: int | None = None
    time_limit_s: float | None = None

    @staticmethod
    def of(options: Options | Mapping[str, Any] | None, default: Options) -> Options:
        """Options from what a caller gave: complete options, a mapping of changes to the default, or None.

        Raises:
            TypeError: It is something else, or names an option that a server does not take.
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
class Problem(Answer):
    """A registered problem.

    Attributes:
        id: Its name on the server, a hash of its document.
        parameters: Shape of each parameter.
        variables: Shape of each variable.
        duals: Shape of each dual variable: ``c0``, ``c1``, ... by position of the constraint, ``c3.0``, ``c3.1`` where
            it has several.
        details: What else the server says: kind, curvature, cones, sizes, solver.
    """

    id: str
    parameters: Mapping[str, tuple[int, ...]]
    variables: Mapping[str, tuple[int, ...]]
    duals: Mapping[str, tuple[int, ...]]
    details: Mapping[str, Any]


@final
@dataclass(frozen=True)
class Residuals:
    """How well each element is solved, arrays of shape (batch,).

    Attributes:
        primal: Of the constraints.
        dual: Of stationarity.
        gap: Of the duality gap.
        natural: Of the complementarity of slack and dual variable.
    """

    primal: Array
    dual: Array
    gap: Array
    natural: Array


@final
@dataclass(frozen=True)
class DerivativeReport:
    """How far each element's derivative can be trusted.

    Attributes:
        status: ``ok``, ``inaccurate``, ``degenerate`` (the derivative may not exist) or ``failed``, one an element.
        linear_residual: Relative residual of the linear system, shape (batch,), as the following.
        margin: Distance from the nearest point where the derivative jumps.
        condition: Estimate of the system's condition.
    """

    status: tuple[str, ...]
    linear_residual: Array
    margin: Array
    condition: Array


@final
@dataclass(frozen=True)
class PortableState:
    """What a solve found, for a later vjp or jvp with the same parameters to start from.

    Attributes:
        digest: Hash that binds it to its problem and parameters.
        status: Status of each element.
        x: Primal variables of the standard form, shape (batch, n).
        y: Its dual variables, shape (batch, m).
        s: Its slacks, shape (batch, m).
    """

    digest: str
    status: tuple[str, ...]
    x: Array
    y: Array
    s: Array

    def described(self) -> dict[str, Any]:
        """The state as the body of a request has it."""
        return {"digest": self.digest, "status": list(self.status), "x": self.x, "y": self.y, "s": self.s}


@final
@dataclass(frozen=True)
class SplitState(Generic[T_co]):
    """The state of a batch that was solved in parts, because it was too large for one request.

    Attributes:
        rows: Elements of each part.
        parts: The state of each, a handle or portable.
    """

    rows: tuple[int, ...]
    parts: tuple[T_co, ...]


@final
@dataclass(frozen=True)
class SolveResult(Answer):
    """A solved batch.

    Attributes:
        variables: Arrays of shape (batch, *shape), or of the variable's shape if no parameter was batched. NaN in the
            rows of failed elements.
        duals: The same for dual variables, where asked for.
        status: Status of each element: optimal, optimal_inaccurate, infeasible, unbounded, iteration_limit, time_limit,
            numerical_error, or invalid, whose values cannot be used.
        objective: Objective values, shape (batch,).
        iterations: Iterations of the solver, shape (batch,).
        residuals: Residuals of each element.
        meta: Solver, versions, batch size and seconds; of a batch that was sent in parts, their sums.
        state: Handle of the solve's state, where asked for; None where the server could not keep it.
        portable: The state itself, where asked for.
        details: What there is to say of elements beyond their status, by position: what is wrong with values that are
            invalid, and what happened to elements that failed otherwise.
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
class VjpResult(Answer):
    """Gradients.

    Attributes:
        gradients: Per element, shape (batch, *shape), for a parameter that was sent as a batch; summed over the batch
            for one that was not. Zero for failed elements.
        status: Status of each element's solution.
        report: How far each element's gradient can be trusted.
        meta: As of ``SolveResult``, as are the details.
        details: What there is to say of elements beyond their status, by position.
    """

    gradients: Mapping[str, Array]
    status: tuple[str, ...]
    report: DerivativeReport
    meta: Mapping[str, Any]
    details: Mapping[int, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class JvpResult(Answer):
    """Tangents of the outputs.

    Attributes:
        tangents: By variable, and dual variable where asked for, shaped as the outputs of ``SolveResult``.
        objective: Of the objective values, shape (batch,).
        status: Status of each element's solution.
        report: How far each element's tangent can be trusted.
        meta: As of ``SolveResult``, as are the details.
        details: What there is to say of elements beyond their status, by position.
    """

    tangents: Mapping[str, Array]
    objective: Array
    status: tuple[str, ...]
    report: DerivativeReport
    meta: Mapping[str, Any]
    details: Mapping[int, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Job(Answer, Generic[T_co]):
    """A solve, vjp or jvp that goes on without a connection; plain data, so that any process may follow it.

    Attributes:
        id: Its name on the server.
        problem_id: The problem.
        operation: ``solve``, ``vjp`` or ``jvp``.
    """

    id: str
    problem_id: str
    operation: str


@final
@dataclass(frozen=True, kw_only=True)
class JobStatus(Answer):
    """How far a job is.

    Attributes:
        id: Its name on the server.
        problem_id: The problem.
        operation: ``solve``, ``vjp`` or ``jvp``.
        status: ``waiting``, ``running``, ``done`` (its result is there, or its error) or ``cancelled``.
        done: Elements that are done.
        total: Elements of the batch; 0 before it is begun.
        seconds: Since it was submitted, until it ended.
        expires_s: Seconds for which the server will keep the result; None before it ends.
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
        """Whether nothing more will happen to it."""
        return self.status in ("done", "cancelled")
