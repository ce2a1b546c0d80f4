"""solve, vjp and jvp. Large arrays are decoded and serialised off the event loop.

A request is cancelled when its client disconnects. With ``Prefer: respond-async`` (RFC 7240) it runs as a job: once its
arrays are decoded, the response is 202 with the job in ``Location``, and the job outlives the connection.

Each endpoint defines ``to_tree``, which makes the response of a result. A job keeps this function with its result, so
the function refers to names alone: neither to the request with its arrays, nor to the problem with its document.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar, final

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ..compute.protocol import ComputeOptions, ComputeRequest, ComputeResult, OnProgress, Operation
from ..encodings.arrays import Array, Encoding
from ..errors import MAX_QUOTED, InvalidError, SolverChoiceError, pointer
from ..http import problem_details
from ..http.request_arrays import RequestArrays, known_names
from ..http.request_body import MAX_INLINE_BYTES, openapi_body
from ..http.request_info import path_of, prefers_async
from ..http.request_schemas import JvpRequest, Options, Portable, SolveRequest, VjpRequest
from ..http.response_schemas import JobResponse, JvpResponse, Meta, SolveResponse, VjpResponse
from ..http.responses import SAFETENSORS_RESPONSE, ArrayResponse
from ..observability.tracing import current_context
from ..problem_registry import versions
from ..service import Service
from ..settings import Settings
from ..store import StoredProblem
from .dependencies import body_reader, owner_of, reservation_of, service_of

__all__ = ["DirectDispatch", "router"]

_PARENT = "/v1/problems"

router = APIRouter(prefix=f"{_PARENT}/{{problem_id}}", tags=["compute"])

_T = TypeVar("_T")

_request_numbers = itertools.count()

_RESPONSES: dict[int | str, dict[str, Any]] = {
    **SAFETENSORS_RESPONSE,
    202: {"model": JobResponse, "description": "The request runs as a job"},
}

_MAX_INLINE_ARRAYS = 128
"""Arrays that the event loop decodes itself.

More would delay other requests, fewer would pay for a thread too often.
"""

_DOUBLE_BYTES = 8
"""Bytes of a number in double precision."""

_PARTS = ("parameters", "variables", "duals")
_MEASURES = ("linear_residual", "margin", "condition")

_PARAMETERS: list[dict[str, Any]] = [
    {"name": "problem_id", "in": "path", "required": True, "schema": {"type": "string"}},
    {
        "name": "Prefer",
        "in": "header",
        "required": False,
        "description": "respond-async runs the request as a job (RFC 7240)",
        "schema": {"type": "string", "default": ""},
    },
]

_solve_bodies, _vjp_bodies, _jvp_bodies = TypeAdapter(SolveRequest), TypeAdapter(VjpRequest), TypeAdapter(JvpRequest)


def _openapi(bodies: TypeAdapter[Any]) -> dict[str, Any]:
    return {"parameters": _PARAMETERS, **openapi_body(bodies, safetensors_too=True)}


@router.post("/solve", response_model=SolveResponse, responses=_RESPONSES, openapi_extra=_openapi(_solve_bodies))
async def solve(http: Request) -> Response:
    """Solve for a batch of parameters. An element without a solution has a status; it is not an error.

    An element of a batch with invalid values has the status ``invalid``; without a batch, invalid values are an error.
    """
    service, owner, body, problem = await _receive(http, _solve_bodies)
    problem_id, keep = problem.id, "state" in body.parts
    names = {part: tuple(problem.summary[part]) for part in body.parts if part in ("variables", "duals")}
    request = await _compute_request(
        http,
        service,
        problem,
        body,
        "solve",
        outputs=_outputs(problem, names),
        owner=owner,
        keep=keep,
        portable="portable" in body.parts,
    )

    def to_tree(result: ComputeResult) -> dict[str, Any]:
        tree: dict[str, Any] = {part: _outputs_of(result, outputs) for part, outputs in names.items()}
        if keep:
            tree["state"] = result.state
        if result.portable is not None:
            tree["portable"] = result.portable.as_dict()
        return tree | {
            **_status(result),
            "objective": result.objective,
            "iterations": list(result.iterations),
            "residuals": dict(result.residuals),
            "meta": _meta(problem_id, result),
        }

    return await _respond(http, service, problem, request, to_tree, body.encoding)


@router.post("/vjp", response_model=VjpResponse, responses=_RESPONSES, openapi_extra=_openapi(_vjp_bodies))
async def vjp(http: Request) -> Response:
    """Gradients of a loss with respect to parameters, from its cotangents with respect to outputs."""
    service, owner, body, problem = await _receive(http, _vjp_bodies)
    known = problem.summary["parameters"]
    for position, name in enumerate(body.wrt or ()):
        if name not in known:
            detail = f"unknown parameter {name[:MAX_QUOTED]!r}{known_names(known)}"
            raise InvalidError.at(pointer("wrt", position), detail)
    problem_id, wrt = problem.id, tuple(known) if body.wrt is None else tuple(body.wrt)
    request = await _compute_request(
        http, service, problem, body, "vjp", body.cotangents, state=body.state, owner=owner, wrt=wrt
    )

    def to_tree(result: ComputeResult) -> dict[str, Any]:
        return {"gradients": dict(result.arrays), **_status(result), **_report(problem_id, result)}

    return await _respond(http, service, problem, request, to_tree, body.encoding)


@router.post("/jvp", response_model=JvpResponse, responses=_RESPONSES, openapi_extra=_openapi(_jvp_bodies))
async def jvp(http: Request) -> Response:
    """Tangents of outputs, from tangents of parameters."""
    service, owner, body, problem = await _receive(http, _jvp_bodies)
    problem_id, outputs = problem.id, _outputs(problem, body.parts)
    request = await _compute_request(
        http, service, problem, body, "jvp", body.tangents, state=body.state, owner=owner, outputs=outputs
    )

    def to_tree(result: ComputeResult) -> dict[str, Any]:
        tangents = _outputs_of(result, outputs)
        return {"tangents": tangents, "objective": result.objective, **_status(result), **_report(problem_id, result)}

    return await _respond(http, service, problem, request, to_tree, body.encoding)


@final
class DirectDispatch:
    """ASGI middleware: calls these endpoints directly; FastAPI's dispatch takes half as long as a small solve.

    The endpoints read the request themselves, and FastAPI describes them in the OpenAPI document.

    Args:
        app: the application, which serves all other requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._direct = ExceptionMiddleware(self._serve, handlers=problem_details.exception_handlers())
        self._routes = {route.path: route for route in router.routes if isinstance(route, APIRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request (ASGI)."""
        if scope["type"] == "http" and scope["method"] == "POST":
            before, _, operation = path_of(scope).rpartition("/")
            parent, _, problem_id = before.rpartition("/")
            route = self._routes.get(f"{router.prefix}/{operation}") if parent == _PARENT and problem_id else None
            if route is not None:
                scope["path_params"] = {"problem_id": problem_id}
                scope["route"] = route  # as FastAPI does, for the access log and the metrics
                await self._direct(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await scope["route"].endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


async def _receive(http: Request, bodies: TypeAdapter[_T]) -> tuple[Service, str, _T, StoredProblem]:
    """Return the service, the owner of a request, its body, and its problem."""
    service, owner = service_of(http), owner_of(http)
    body = await body_reader(http).read(bodies)
    return service, owner, body, await service.registry.get(owner, http.path_params["problem_id"])


async def _compute_request(
    http: Request,
    service: Service,
    problem: StoredProblem,
    body: SolveRequest | VjpRequest | JvpRequest,
    operation: Operation,
    directions: Mapping[str, Any] | None = None,
    *,
    state: str | Portable | None = None,
    **others: Any,
) -> ComputeRequest:
    """Decode and check the arrays of a body, and reserve memory for its result.

    Raises:
        InvalidError: an array is invalid.
        TooManyError: the memory budget is exceeded.
    """
    options = _options(body.options, service.settings)
    handle = isinstance(state, str)
    if handle and body.parameters:
        raise InvalidError.at(
            "/parameters", "the handle in state already determines the parameters; send one of the two"
        )

    arrays = RequestArrays(problem.summary, service.settings)

    def decode() -> ComputeRequest:
        return ComputeRequest(
            request_id=str(next(_request_numbers)),  # X-Request-Id need not be unique
            problem_id=problem.id,
            operation=operation,
            parameters={} if handle else arrays.parameters(body.parameters),
            directions=arrays.directions(operation, directions or {}),
            options=options,
            state=arrays.state(state) if isinstance(state, Portable) else state,
            **others,
        )

    many = len(body.parameters) + len(directions or ()) > _MAX_INLINE_ARRAYS
    large = many or (current_context().body_bytes or 0) > MAX_INLINE_BYTES
    request = await run_in_threadpool(decode) if large else decode()  # a thread costs more than a small body
    reservation = reservation_of(http)
    reservation.reserve("arrays", arrays.copied_bytes)
    reservation.reserve("result", _expected_bytes(problem, request, arrays.batch))
    return request


async def _respond(
    http: Request,
    service: Service,
    problem: StoredProblem,
    request: ComputeRequest,
    to_tree: Callable[[ComputeResult], dict[str, Any]],
    encoding: Encoding,
) -> Response:
    """Compute a request and return its response; or, if the client prefers that, a job for it."""

    async def respond(result: ComputeResult) -> Response:
        return ArrayResponse(to_tree(result), encoding)

    def run(on_progress: OnProgress | None = None) -> Awaitable[ComputeResult]:
        return service.compute.run(request, problem.document, on_progress)

    reservation = reservation_of(http)
    if not prefers_async(http.headers.getlist("prefer")):
        result = await run()
        reservation.set("body", 0)
        reservation.set("arrays", 0)
        reservation.set("result", result.size_bytes)
        return await respond(result)
    job = service.jobs.start(request, run, respond)
    assert job.task is not None
    reservation.transfer_to(job.task)
    headers = {"Location": f"/v1/jobs/{job.id}", "Preference-Applied": "respond-async"}
    body = JobResponse(**job.describe()).model_dump_json()
    return Response(body, 202, headers=headers, media_type="application/json")


def _expected_bytes(problem: StoredProblem, request: ComputeRequest, batch: int) -> int:
    """Estimate the bytes of the result's arrays; the batch of a handle is unknown here, and counts as one element."""
    summary, sizes = problem.summary, problem.summary["sizes"]
    shapes = {name: entry["shape"] for part in _PARTS for name, entry in summary[part].items()}
    each = sum(math.prod(shapes[name]) for name in (request.wrt or request.outputs or ()))
    each += sizes["n"] + 2 * sizes["m"] if request.portable else 0
    return _DOUBLE_BYTES * batch * each


def _outputs(problem: StoredProblem, parts: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the outputs in some parts of the response."""
    return tuple(name for part in dict.fromkeys(parts) for name in problem.summary[part])


def _options(options: Options, settings: Settings) -> ComputeOptions:
    limits = {"max_iter": settings.max_iter, "time_limit_s": settings.max_time_limit_s}
    for name, limit in limits.items():
        if (getattr(options, name) or 0) > limit:
            raise InvalidError.at(pointer("options", name), f"exceeds the limit of this server, {limit}")
    if not settings.allows(options.solver):
        allowed = f"this server allows auto, {settings.solvers}; got {options.solver}"
        raise SolverChoiceError.at("/options/solver", allowed)
    return ComputeOptions(**options.model_dump())


def _outputs_of(result: ComputeResult, names: Iterable[str]) -> dict[str, Array]:
    """Return outputs by name, without the batch axis if no input had one."""
    return {name: result.arrays[name] if result.batched else result.arrays[name][0, ...] for name in names}


def _status(result: ComputeResult) -> dict[str, Any]:
    """Return the status of each element, and messages by position; keys of JSON objects are strings."""
    details = {str(i): detail for i, detail in sorted(result.details.items())}
    return {"status": list(result.status), "details": details}


def _report(problem_id: str, result: ComputeResult) -> dict[str, Any]:
    """Return the report of a derivative, with its numbers as arrays, and the metadata."""
    report = dict(result.report or {})
    measures = {name: np.array(report[name], dtype=np.float64) for name in _MEASURES if name in report}
    return {"report": report | measures, "meta": _meta(problem_id, result)}


def _meta(problem_id: str, result: ComputeResult) -> dict[str, Any]:
    meta = Meta(
        problem_id=problem_id,
        solver=result.solver,
        reason=result.reason,
        batch=len(result.status),
        batched=result.batched,
        seconds=dict(result.seconds),
        versions=dict(versions()),
    )
    return dict(meta)
