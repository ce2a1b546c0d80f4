"""The calls of the API, independent of an HTTP library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import numpy as np
from numpy.typing import ArrayLike

from convexlayer_client import readers
from convexlayer_client.account import Capabilities, Usage
from convexlayer_client.arrays import Array
from convexlayer_client.call import Call
from convexlayer_client.errors import EncodingError
from convexlayer_client.operations import JVP, OPERATIONS, SOLVE, VJP, Operation
from convexlayer_client.results import (
    Job,
    JobStatus,
    JvpResult,
    Options,
    PortableState,
    Problem,
    SolveResult,
    SplitState,
    VjpResult,
)

__all__ = [
    "capabilities",
    "delete",
    "get",
    "health",
    "job",
    "job_cancel",
    "job_events",
    "job_result",
    "job_status",
    "jobs",
    "jvp",
    "problems",
    "register",
    "solve",
    "submit",
    "usage",
    "vjp",
]

T = TypeVar("T")

_PROBLEMS = "/v1/problems"
_JOBS = "/v1/jobs"


def register(document: Mapping[str, Any]) -> Call[Problem]:
    """POST /v1/problems: register a document; equal documents have the same ID."""
    return Call("POST", _PROBLEMS, readers.problem, document)


def problems(after: str | None = None) -> Call[tuple[list[Problem], str | None]]:
    """GET /v1/problems: a page of problems, and the cursor of the next page; None after the last."""
    return Call("GET", _PROBLEMS if after is None else f"{_PROBLEMS}?{urlencode({'after': after})}", readers.page)


def get(problem_id: str) -> Call[Problem]:
    """GET /v1/problems/{id}."""
    return Call("GET", _path(_PROBLEMS, problem_id), readers.problem)


def delete(problem_id: str) -> Call[None]:
    """DELETE /v1/problems/{id}."""
    return Call("DELETE", _path(_PROBLEMS, problem_id), lambda payload: None)


def health() -> Call[Mapping[str, Any]]:
    """GET /healthz."""
    return Call("GET", "/healthz", dict)


def capabilities() -> Call[Capabilities]:
    """GET /v1/capabilities: the capabilities of the server."""
    return Call("GET", "/v1/capabilities", readers.capabilities)


def usage(days: int = 31) -> Call[Usage]:
    """GET /v1/usage: usage of this key on the last days."""
    return Call("GET", f"/v1/usage?{urlencode({'days': days})}", readers.usage)


def solve(
    problem_id: str,
    parameters: Mapping[str, ArrayLike],
    *,
    solver: str = "auto",
    options: Options | None = None,
    duals: bool = False,
    state: bool = False,
    portable: bool = False,
) -> Call[SolveResult]:
    """POST /v1/problems/{id}/solve: solutions for a batch of parameters."""
    parts = {"variables": True, "duals": duals, "state": state, "portable": portable}
    body = {
        "parameters": _arrays(parameters),
        "options": _options(solver, options),
        "return": [part for part, requested in parts.items() if requested],
    }
    return _operation_call(SOLVE, problem_id, body)


def vjp(
    problem_id: str,
    cotangents: Mapping[str, ArrayLike],
    parameters: Mapping[str, ArrayLike] | None = None,
    *,
    state: str | SplitState[str] | None = None,
    portable: PortableState | SplitState[PortableState] | None = None,
    wrt: Sequence[str] | None = None,
    solver: str = "auto",
    options: Options | None = None,
) -> Call[VjpResult]:
    """POST /v1/problems/{id}/vjp: gradients of <cotangents, outputs> with respect to ``wrt`` (default: all)."""
    body: dict[str, Any] = {"cotangents": _arrays(cotangents)}
    if wrt is not None:
        body["wrt"] = list(wrt)
    return _from_state(_operation_call(VJP, problem_id, body), parameters, state, portable, _options(solver, options))


def jvp(
    problem_id: str,
    tangents: Mapping[str, ArrayLike],
    parameters: Mapping[str, ArrayLike] | None = None,
    *,
    state: str | SplitState[str] | None = None,
    portable: PortableState | SplitState[PortableState] | None = None,
    solver: str = "auto",
    options: Options | None = None,
    duals: bool = False,
) -> Call[JvpResult]:
    """POST /v1/problems/{id}/jvp: tangents of the outputs along tangents of the parameters."""
    body = {"tangents": _arrays(tangents), "return": ["variables", "duals"] if duals else ["variables"]}
    return _from_state(_operation_call(JVP, problem_id, body), parameters, state, portable, _options(solver, options))


def submit(call: Call[T]) -> Call[Job[T]]:
    """The same request with ``Prefer: respond-async``, which starts a job.

    Raises:
        ValueError: The call is not a solve, vjp or jvp, or its state comes from several solves.
    """
    if call.operation is None:
        raise ValueError(f"expected a call of solve, vjp or jvp, got {call.method} {call.path}")
    if isinstance((call.body or {}).get("state"), SplitState):
        raise ValueError(
            "a job is one request, but this state comes from several: submit the parts, or the parameters alone"
        )
    fallback = None if call.fallback is None else submit(call.fallback)
    return Call(
        call.method,
        call.path,
        readers.job,
        call.body,
        arrays=True,
        idempotent=False,
        headers={"Prefer": "respond-async"},
        fallback=fallback,
    )


def jobs() -> Call[tuple[JobStatus, ...]]:
    """GET /v1/jobs: the jobs of this key."""
    return Call("GET", _JOBS, lambda payload: tuple(map(readers.job_status, payload["jobs"])))


def job(job_id: str) -> Call[Job[Any]]:
    """GET /v1/jobs/{id}: a job that was started elsewhere."""
    return Call("GET", _path(_JOBS, job_id), readers.job)


def job_status(job: Job[Any]) -> Call[JobStatus]:
    """GET /v1/jobs/{id}."""
    return Call("GET", _path(_JOBS, job.id), readers.job_status)


def job_result(job: Job[T]) -> Call[T]:
    """GET /v1/jobs/{id}/result."""
    operation: Operation[T] = OPERATIONS[job.operation]
    return Call("GET", _path(_JOBS, job.id, "result"), operation.read, arrays=True)


def job_events(job: Job[Any]) -> str:
    """Return the path of GET /v1/jobs/{id}/events."""
    return _path(_JOBS, job.id, "events")


def job_cancel(job: Job[Any]) -> Call[None]:
    """DELETE /v1/jobs/{id}."""
    return Call("DELETE", _path(_JOBS, job.id), lambda payload: None)


def _path(root: str, name: str, *steps: str) -> str:
    return "/".join([root, quote(name, safe=""), *steps])


def _operation_call(operation: Operation[T], problem_id: str, body: Mapping[str, Any]) -> Call[T]:
    path = _path(_PROBLEMS, problem_id, operation.name)
    return Call("POST", path, operation.read, body, arrays=True, problem_id=problem_id, operation=operation)


def _options(solver: str, options: Options | None) -> dict[str, Any]:
    given = {name: value for name, value in asdict(options or Options()).items() if value is not None}
    return {"solver": solver} | given


def _from_state(
    call: Call[T],
    parameters: Mapping[str, ArrayLike] | None,
    state: str | SplitState[str] | None,
    portable: PortableState | SplitState[PortableState] | None,
    options: Mapping[str, Any],
) -> Call[T]:
    """Return the call of a derivative from the handle, with fallbacks to the portable state and to the parameters.

    Raises:
        ValueError: There are neither parameters nor a handle, or a portable state without parameters.
    """
    if parameters is None and (portable is not None or state is None):
        raise ValueError("expected parameters, or the handle of a state; a portable state needs parameters, too")
    best: Call[T] | None = None
    if parameters is not None:
        body = {**(call.body or {}), "parameters": _arrays(parameters), "options": options}
        best = replace(call, body=body)
        if portable is not None:
            plain = portable.as_dict() if isinstance(portable, PortableState) else portable
            best = replace(call, body=body | {"state": plain}, fallback=best)
    if state is not None:
        best = replace(call, body={**(call.body or {}), "state": state}, fallback=best)
    return best or call


def _arrays(values: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Convert values to arrays in double precision, without a copy if possible."""
    arrays = {}
    for name, value in values.items():
        try:
            arrays[name] = np.asarray(value, dtype="<f8")
        except (TypeError, ValueError) as error:
            kind = type(value).__name__
            raise EncodingError(f"{name}: expected a number or an array of numbers, got {kind}: {error}") from error
    return arrays
