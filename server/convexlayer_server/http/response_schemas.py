"""Schemas of response bodies, for the OpenAPI document and for small responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from convexlayer.status import Status

from .request_schemas import Portable

__all__ = [
    "Capabilities",
    "DayUsage",
    "DerivativeReport",
    "JobList",
    "JobResponse",
    "JvpResponse",
    "Meta",
    "ProblemDetails",
    "ProblemList",
    "ProblemSummary",
    "ProblemWithDocument",
    "Residuals",
    "SolveResponse",
    "SolverCapability",
    "UsageResponse",
    "VjpResponse",
]

Arrays = dict[str, Any]
"""Arrays by name, in the requested encoding."""

Numbers = list[float | None]
"""One number for each element; null stands for NaN and infinity."""

JobStatus = Literal["waiting", "running", "done", "cancelled"]


class Meta(BaseModel):
    """How the request was computed.

    ``reason`` tells why ``solver`` was chosen. ``batch`` is the number of elements, ``batched`` whether any array had a
    batch axis. ``seconds`` is the wall time of each step, and ``queue`` the time before them.
    """

    problem_id: str
    solver: str
    reason: str
    batch: int
    batched: bool
    seconds: dict[str, float]
    versions: dict[str, str]


class Residuals(BaseModel):
    """Residuals of the optimality conditions of each solution, as the server computes them.

    ``primal`` and ``dual`` are those of feasibility, ``gap`` is the duality gap, and ``natural`` that of the
    complementarity of slack and dual variable. All are relative, and of the equilibrated program.
    """

    primal: Numbers
    dual: Numbers
    gap: Numbers
    natural: Numbers


class DerivativeReport(BaseModel):
    """How accurate each derivative is.

    ``status`` is ok, inaccurate, degenerate (the derivative may not exist) or failed. ``linear_residual`` is the
    relative residual of the linear system and ``condition`` an estimate of its condition number. ``margin`` is the
    distance to the nearest point where the derivative jumps; ``consistent`` tells whether the linear system has a
    solution.
    """

    status: list[str]
    linear_residual: Numbers
    margin: Numbers
    condition: Numbers
    consistent: list[bool | None]


class SolveResponse(BaseModel):
    """Solutions; null (NaN in base64) for elements without one.

    ``details`` holds messages about single elements, by position: why values are ``invalid``, and why elements failed.
    ``state`` is a handle, or null if the state is too large for the server to keep.
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


class VjpResponse(BaseModel):
    """Gradients: an element each for parameters with a batch axis, summed over the batch for the others."""

    gradients: Arrays
    status: list[Status]
    details: dict[str, str]
    report: DerivativeReport
    meta: Meta


class JvpResponse(BaseModel):
    """Tangents of outputs and of the objective values."""

    tangents: Arrays
    objective: Numbers
    status: list[Status]
    details: dict[str, str]
    report: DerivativeReport
    meta: Meta


class JobResponse(BaseModel):
    """A solve, vjp or jvp that was requested with ``Prefer: respond-async``.

    ``status`` is waiting, running, done (its result is available: a response or an error), or cancelled; ``done`` of
    ``total`` elements are computed. The result expires after ``expires_s`` seconds.
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
    """The jobs of the key."""

    jobs: list[JobResponse]


class InvalidField(BaseModel):
    """One invalid field of a request, with its JSON pointer."""

    pointer: str
    detail: str


class ProblemDetails(BaseModel):
    """An error (RFC 9457); ``type`` is ``urn:convexlayer:problem:<slug>``."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[InvalidField]
    request_id: str


class ProblemSummary(BaseModel):
    """A registered problem."""

    id: str
    kind: str
    parameters: dict[str, Any]
    variables: dict[str, Any]
    duals: dict[str, Any]
    curvature: str | None
    cones: dict[str, Any]
    sizes: dict[str, int]
    solver: dict[str, str]


class ProblemWithDocument(ProblemSummary):
    """A registered problem with its normalised document."""

    document: dict[str, Any]


class ProblemList(BaseModel):
    """A page of registered problems, oldest first; ``next`` is the ``after`` of the following page, or null."""

    problems: list[ProblemSummary]
    next: str | None


class SolverCapability(BaseModel):
    """An installed solver."""

    name: str
    quadratic: bool
    cones: list[str]


class Capabilities(BaseModel):
    """The capabilities of the server; ``limits`` are settings, ``kernels`` is compiled or portable."""

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
    """Usage on one day (UTC): requests, elements solved or differentiated, and compute seconds."""

    day: str
    requests: int
    elements: int
    seconds: float


class UsageResponse(BaseModel):
    """Usage of a key by day; ``key`` is null if the server has no keys."""

    key: str | None
    days: list[DayUsage]
