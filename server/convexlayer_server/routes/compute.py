"""solve, vjp and jvp: arrays are computed, and large ones read and written, off the event loop.

What nobody waits for any more is given up. With ``Prefer: respond-async`` (RFC 7240) any of them is a job: once its
arrays are read it is answered with 202 and the job's place in ``Location``, and lives on whatever becomes of the
connection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, final

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import problems
from ..answers import BINARY_ANSWER, Answer
from ..arrays import Array, Encoding
from ..engine import ComputeOptions, ComputeRequest, ComputeResult, Operation, Progress
from ..errors import InvalidError, SolverChoiceError, pointer
from ..reading import AT_ONCE_BYTES, Reads, described, reader
from ..registry import versions
from ..service import Service, held_for, owner_of, path_of, service_of
from ..settings import Settings
from ..store import StoredProblem
from ..trace import current_trace
from .bodies import (
    JobAnswer,
    JvpAnswer,
    JvpRequest,
    Meta,
    Options,
    Portable,
    SolveAnswer,
    SolveRequest,
    VjpAnswer,
    VjpRequest,
)
from .preferences import respond_async
from .reader import Reader, known_names

__all__ = ["Directly", "router"]

_PARENT = "/v1/problems"

router = APIRouter(prefix=f"{_PARENT}/{{problem_id}}", tags=["compute"])


_T = TypeVar("_T")

_numbers = itertools.count()

_RESPONSES: dict[int | str, dict[str, Any]] = {
    **BINARY_ANSWER,
    202: {"model": JobAnswer, "description": "It is a job now"},
}
_AT_ONCE_ARRAYS = 128
"""So many arrays are read in less time than other requests notice."""

_PARTS = ("parameters", "variables", "duals")
_MEASURES = ("linear_residual", "margin", "condition")

_PARAMETERS: list[dict[str, Any]] = [
    {"name": "problem_id", "in": "path", "required": True, "schema": {"type": "string"}},
    {
        "name": "Prefer",
        "in": "header",
        "required": False,
        "description": "respond-async makes it a job (RFC 7240)",
        "schema": {"type": "string", "default": ""},
    },
]

_solve_bodies, _vjp_bodies, _jvp_bodies = TypeAdapter(SolveRequest), TypeAdapter(VjpRequest), TypeAdapter(JvpRequest)
_read_solve = reader(_solve_bodies)
_read_vjp = reader(_vjp_bodies)
_read_jvp = reader(_jvp_bodies)


def _described(bodies: TypeAdapter[Any]) -> dict[str, Any]:
    return {"parameters": _PARAMETERS, **described(bodies, also_binary=True)}


@router.post("/solve", response_model=SolveAnswer, responses=_RESPONSES, openapi_extra=_described(_solve_bodies))
async def solve(http: Request) -> Response:
    """Solve for a batch of parameters. An element without a solution is a status, not an error.

    So is a row of a batch whose values cannot be used (``invalid``); where there is no batch that is an error.
    """
    service, owner, body, problem = await _asked(http, _read_solve)
    parts = [part for part in body.parts if part in ("variables", "duals")]
    request = await _read(
        http,
        service,
        problem,
        body,
        "solve",
        outputs=_outputs(problem, parts),
        owner=owner,
        keep="state" in body.parts,
        portable="portable" in body.parts,
    )

    keep = request.keep  # not the request, whose arrays need not live as long as the result of a job

    def told(result: ComputeResult) -> dict[str, Any]:
        tree: dict[str, Any] = {part: _outputs_of(result, problem.summary[part]) for part in parts}
        if keep:
            tree["state"] = result.state
        if result.portable is not None:
            tree["portable"] = result.portable.described()
        return tree | {
            **_elements(result),
            "objective": result.objective,
            "iterations": list(result.iterations),
            "residuals": dict(result.residuals),
            "meta": _meta(problem, result),
        }

    return await _served(http, service, problem, request, told, body.encoding)


@router.post("/vjp", response_model=VjpAnswer, responses=_RESPONSES, openapi_extra=_described(_vjp_bodies))
async def vjp(http: Request) -> Response:
    """Gradients of a loss with respect to parameters, from its cotangents with respect to outputs."""
    service, owner, body, problem = await _asked(http, _read_vjp)
    known = problem.summary["parameters"]
    for position, name in enumerate(body.wrt or ()):
        if name not in known:
            raise InvalidError.at(pointer("wrt", position), f"unknown parameter {name[:80]!r}{known_names(known)}")
    wrt = tuple(known) if body.wrt is None else tuple(body.wrt)
    request = await _read(http, service, problem, body, "vjp", body.cotangents, state=body.state, owner=owner, wrt=wrt)

    def told(result: ComputeResult) -> dict[str, Any]:
        return {"gradients": dict(result.arrays), **_elements(result), **_trust(problem, result)}

    return await _served(http, service, problem, request, told, body.encoding)


@router.post("/jvp", response_model=JvpAnswer, responses=_RESPONSES, openapi_extra=_described(_jvp_bodies))
async def jvp(http: Request) -> Response:
    """Tangents of outputs, from tangents of parameters."""
    service, owner, body, problem = await _asked(http, _read_jvp)
    outputs = _outputs(problem, body.parts)
    request = await _read(
        http, service, problem, body, "jvp", body.tangents, state=body.state, owner=owner, outputs=outputs
    )

    def told(result: ComputeResult) -> dict[str, Any]:
        tangents = _outputs_of(result, outputs)
        return {"tangents": tangents, "objective": result.objective, **_elements(result), **_trust(problem, result)}

    return await _served(http, service, problem, request, told, body.encoding)


@final
class Directly:
    """Serves these endpoints before FastAPI is asked, whose own way takes as long as half of a small solve takes here.

    They look at the request themselves; FastAPI describes them.

    Args:
        app: what serves all other requests (ASGI).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._directly = ExceptionMiddleware(self._serve, handlers=problems.handlers())
        self._routes = {route.path: route for route in router.routes if isinstance(route, APIRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request (ASGI)."""
        if scope["type"] == "http" and scope["method"] == "POST":
            before, _, operation = path_of(scope).rpartition("/")
            parent, _, problem_id = before.rpartition("/")
            route = self._routes.get(f"{router.prefix}/{operation}") if parent == _PARENT and problem_id else None
            if route is not None:
                scope["path_params"] = {"problem_id": problem_id}
                scope["route"] = route  # as FastAPI does, for the log and the metrics
                await self._directly(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await scope["route"].endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


async def _asked(http: Request, read: Reads[_T]) -> tuple[Service, str, _T, StoredProblem]:
    """The service, whose request it is, its body, and the problem that it names."""
    service, owner = service_of(http), owner_of(http)
    body = await read(http, service, owner)
    return service, owner, body, await service.registry.get(owner, http.path_params["problem_id"])


async def _read(
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
    """The request, its arrays read and checked, and room for what it will be answered.

    Raises:
        TooManyError: too much is held already.
    """
    options = _options(body.options, service.settings)
    handle = isinstance(state, str)
    if handle and body.parameters:
        raise InvalidError.at("/parameters", "a handle in state stands for its parameters; leave one of the two out")

    arrays = Reader(problem.summary, service.settings)

    def read() -> ComputeRequest:
        return ComputeRequest(
            request_id=str(next(_numbers)),  # the caller's own may come twice
            problem_id=problem.id,
            operation=operation,
            parameters={} if handle else arrays.parameters(body.parameters),
            directions=arrays.directions(operation, directions or {}),
            options=options,
            state=arrays.state(state) if isinstance(state, Portable) else state,
            **others,
        )

    many = len(body.parameters) + len(directions or ()) > _AT_ONCE_ARRAYS
    large = many or (current_trace().body_bytes or 0) > AT_ONCE_BYTES
    # A change of threads takes longer than a small body.
    request = await run_in_threadpool(read) if large else read()
    held = held_for(http)
    held.reserve("arrays", arrays.copied_bytes)
    held.reserve("result", _expected_bytes(problem, request, arrays.batch))
    return request


async def _served(
    http: Request,
    service: Service,
    problem: StoredProblem,
    request: ComputeRequest,
    told: Callable[[ComputeResult], dict[str, Any]],
    encoding: Encoding,
) -> Response:
    """The answer; or, where the caller prefers that, a job that will have it."""

    async def respond(result: ComputeResult) -> Response:
        return Answer(told(result), encoding)

    def work(progress: Progress | None = None) -> Awaitable[ComputeResult]:
        return service.engine.run(request, problem.document, progress)

    held = held_for(http)
    if not respond_async(http.headers.get("prefer", "")):
        result = await work()
        for part in ("body", "arrays"):
            held.note(part, 0)
        held.note("result", result.size_bytes)
        return await respond(result)
    job = service.jobs.start(request, work, respond)
    assert job.task is not None
    held.until(job.task)
    headers = {"Location": f"/v1/jobs/{job.id}", "Preference-Applied": "respond-async"}
    body = JobAnswer(**job.described()).model_dump_json()
    return Response(body, 202, headers=headers, media_type="application/json")


def _expected_bytes(problem: StoredProblem, request: ComputeRequest, batch: int) -> int:
    """About what the arrays of the answer will take; of a handle's batch nothing is known here."""
    summary, sizes = problem.summary, problem.summary["sizes"]
    shapes = {name: entry["shape"] for part in _PARTS for name, entry in summary[part].items()}
    each = sum(math.prod(shapes[name]) for name in (request.wrt or request.outputs or ()))
    each += sizes["n"] + 2 * sizes["m"] if request.portable else 0
    return 8 * batch * each


def _outputs(problem: StoredProblem, parts: Sequence[str]) -> tuple[str, ...]:
    """Names of the outputs in these parts of the answer."""
    return tuple(name for part in dict.fromkeys(parts) for name in problem.summary[part])


def _options(options: Options, settings: Settings) -> ComputeOptions:
    limits = {"max_iter": settings.max_iter, "time_limit_s": settings.max_time_limit_s}
    for name, limit in limits.items():
        if (getattr(options, name) or 0) > limit:
            raise InvalidError.at(pointer("options", name), f"this server allows at most {limit}")
    if not settings.allows(options.solver):
        allowed = f"this server allows auto, {settings.solvers}; got {options.solver}"
        raise SolverChoiceError.at("/options/solver", allowed)
    return ComputeOptions(**options.model_dump())


def _outputs_of(result: ComputeResult, names: Iterable[str]) -> dict[str, Array]:
    """Outputs by name, without the batch axis where no input had one."""
    return {name: result.arrays[name] if result.batched else result.arrays[name][0, ...] for name in names}


def _elements(result: ComputeResult) -> dict[str, Any]:
    """What became of elements, and what there is to say of them by position; JSON has no other keys than text."""
    details = {str(i): said for i, said in sorted(result.details.items())}
    return {"status": list(result.status), "details": details}


def _trust(problem: StoredProblem, result: ComputeResult) -> dict[str, Any]:
    """How far a derivative can be trusted, its numbers as arrays, and what computed it."""
    report = dict(result.report or {})
    measures = {name: np.array(report[name], dtype=np.float64) for name in _MEASURES if name in report}
    return {"report": report | measures, "meta": _meta(problem, result)}


def _meta(problem: StoredProblem, result: ComputeResult) -> dict[str, Any]:
    meta = Meta(
        problem_id=problem.id,
        solver=result.solver,
        reason=result.reason,
        batch=len(result.status),
        batched=result.batched,
        seconds={**result.seconds, "queue": current_trace().queue_s or 0.0},
        versions=dict(versions()),
    )
    return dict(meta)
