"""Bodies of requests and answers. Arrays are ``Any`` here: their form is read by ``arrays``, off the event loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from convexlayer.status import Status

from ..arrays import Encoding
from ..body import refuse_unknown

__all__ = [
    "Capabilities",
    "DayUsage",
    "DerivativeReport",
    "JobAnswer",
    "JobList",
    "JvpAnswer",
    "JvpRequest",
    "Meta",
    "Options",
    "Portable",
    "Problem",
    "ProblemDetail",
    "ProblemList",
    "ProblemSummary",
    "Residuals",
    "SolveAnswer",
    "SolveRequest",
    "SolverCapability",
    "UsageAnswer",
    "VjpAnswer",
    "VjpRequest",
]

Arrays = dict[str, Any]
Part = Literal["variables", "duals"]
SolvePart = Literal["variables", "duals", "state", "portable"]
Numbers = list[float | None]
JobStatus = Literal["waiting", "running", "done", "cancelled"]


class _Body(BaseModel):
    """An object of a request; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        return refuse_unknown(cls, given)


class Options(_Body, strict=True):
    """How to solve; what is left out is the library's default."""

    solver: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,32}$")] = "auto"
    tol: Annotated[float, Field(ge=1e-15, le=1.0)] | None = None
    max_iter: Annotated[int, Field(ge=1)] | None = None
    time_limit_s: Annotated[float, Field(gt=0)] | None = None


class _Compute(_Body):
    parameters: Arrays = {}
    options: Options = Options()
    encoding: Encoding = "list"


class SolveRequest(_Compute):
    """Parameter values, each of its registered shape or with one leading batch axis.

    With ``state`` in ``return``, the answer holds a handle for later vjp and jvp; with ``portable``, the state itself.
    """

    parts: Annotated[list[SolvePart], Field(alias="return", fail_fast=True)] = ["variables"]


class Portable(_Body):
    """Solutions of the standard form, as a solve gave them: what a vjp or jvp can start from beside the parameters.

    ``digest`` is a hash of the problem's id, the parameters and these arrays; x is (batch, n), y and s (batch, m).
    """

    digest: Annotated[str, Field(max_length=128)]
    status: Annotated[list[Status], Field(fail_fast=True)]
    x: Any
    y: Any
    s: Any


State = Annotated[str, Field(max_length=128)] | Portable
"""A handle, in place of parameters and options; or a portable state, beside the parameters."""


class VjpRequest(_Compute):
    """Parameter values, cotangents of variables, duals and ``objective``, and the parameters to differentiate by.

    ``state`` may be a handle (without parameters; 410 when it is gone) or portable (with the parameters of its solve).
    """

    state: State | None = None
    cotangents: Arrays
    wrt: Annotated[list[str], Field(fail_fast=True)] | None = None


class JvpRequest(_Compute):
    """Parameter values and tangents of parameters; ``state`` as for a vjp."""

    state: State | None = None
    tangents: Arrays
    parts: Annotated[list[Part], Field(alias="return", fail_fast=True)] = ["variables"]


class Meta(BaseModel):
    """What served the request."""

    problem_id: str
    solver: str
    reason: str
    batch: int
    batched: bool
    seconds: dict[str, float]
    versions: dict[str, str]


class Residuals(BaseModel):
    """How far each solution is from optimal, by the server's own account."""

    primal: Numbers
    dual: Numbers
    gap: Numbers
    natural: Numbers


class DerivativeReport(BaseModel):
    """How far each derivative can be trusted."""

    status: list[str]
    linear_residual: Numbers
    margin: Numbers
    condition: Numbers
    consistent: list[bool | None]


class SolveAnswer(BaseModel):
    """Solutions; null (NaN in base64) in rows of elements without one.

    ``details`` holds what there is to say of elements beyond their status, by position: what is wrong with values that
    are ``invalid``, and what happened to elements that failed otherwise. ``state`` is a handle, null where the state is
    too large to be kept here.
    """

    variables: Arrays | None = None
    duals: Arrays | None = None
    state: str | None = None
    portable: Portable | None = None
    status: list[Status]
    details: dict[str, str]
    objective: Numbers
    iterations: list[int]
    residuals: Residuals
    meta: Meta


class VjpAnswer(BaseModel):
    """Gradients: per element of parameters given with a batch axis, summed over the batch of the others."""

    gradients: Arrays
    status: list[Status]
    details: dict[str, str]
    report: DerivativeReport
    meta: Meta


class JvpAnswer(BaseModel):
    """Tangents of outputs and of the objective values."""

    tangents: Arrays
    objective: Numbers
    status: list[Status]
    details: dict[str, str]
    report: DerivativeReport
    meta: Meta


class JobAnswer(BaseModel):
    """A solve, vjp or jvp that was asked for with ``Prefer: respond-async``.

    ``status`` is waiting, running, done (its result is there: an answer or an error), or cancelled; ``done`` of
    ``total`` elements are computed. ``expires_s`` is the time for which the result will be kept.
    """

    id: str
    problem_id: str
    operation: str
    status: JobStatus
    done: int
    total: int
    seconds: float
    expires_s: float | None = None


class JobList(BaseModel):
    """The caller's jobs."""

    jobs: list[JobAnswer]


class FieldProblem(BaseModel):
    """One wrong place of a request."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457); ``type`` is ``urn:convexlayer:problem:<slug>``."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem]
    request_id: str


class ProblemSummary(BaseModel):
    """A compiled problem."""

    id: str
    kind: str
    parameters: dict[str, Any]
    variables: dict[str, Any]
    duals: dict[str, Any]
    curvature: str | None
    cones: dict[str, Any]
    sizes: dict[str, int]
    solver: dict[str, str]


class ProblemDetail(ProblemSummary):
    """A compiled problem with its normalised document."""

    document: dict[str, Any]


class ProblemList(BaseModel):
    """A page of what is registered, oldest first; ``next`` is the ``after`` of the page that follows, else null."""

    problems: list[ProblemSummary]
    next: str | None


class SolverCapability(BaseModel):
    """A solver that is installed, and what it takes."""

    name: str
    quadratic: bool
    cones: list[str]


class Capabilities(BaseModel):
    """What a server can do; ``limits`` are those of its settings, ``kernels`` are compiled or portable."""

    versions: dict[str, str]
    solvers: list[SolverCapability]
    functions: list[str]
    documents: list[str]
    keys_required: bool
    workers: int
    kernels: str
    kernels_reason: str
    limits: dict[str, int | float | None]


class DayUsage(BaseModel):
    """What was used in one day (UTC): requests, elements solved or differentiated, and seconds of the engine."""

    day: str
    requests: int
    elements: int
    seconds: float


class UsageAnswer(BaseModel):
    """What a key used, by day; ``key`` is null where the server asks for none."""

    key: str | None
    days: list[DayUsage]
