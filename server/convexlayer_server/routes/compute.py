"""solve, vjp and jvp: arrays are read, computed and written off the event loop.

With ``Prefer: respond-async`` (RFC 7240) any of them is a job: once its arrays are read it is answered with 202 and the
job's place in ``Location``, and lives on whatever becomes of the connection.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import cvxpy as cp
from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

import convexlayer

from ..arrays import Array, Encoding, encode
from ..engine import ComputeOptions, ComputeRequest, ComputeResult, Operation, Progress
from ..errors import InvalidError, pointer
from ..service import JsonBody, Owner, Service, ServiceDependency
from ..settings import Settings
from ..store import StoredProblem
from .bodies import (
    DerivativeReport,
    JobAnswer,
    JvpAnswer,
    JvpRequest,
    Meta,
    Options,
    Portable,
    Residuals,
    SolveAnswer,
    SolveRequest,
    VjpAnswer,
    VjpRequest,
)
from .preferences import Preferences, respond_async
from .reader import Reader, known_names, written

__all__ = ["router"]

router = APIRouter(prefix="/v1/problems/{problem_id}", tags=["compute"], dependencies=[JsonBody])


_ACCEPTED: dict[int | str, dict[str, Any]] = {202: {"model": JobAnswer, "description": "It is a job now"}}


@router.post("/solve", response_model=SolveAnswer, responses=_ACCEPTED)
async def solve(
    problem_id: str, body: SolveRequest, service: ServiceDependency, owner: Owner, prefer: Preferences = ""
) -> Response:
    """Solve for a batch of parameters. An element without a solution is a status, not an error."""
    problem = service.problem(problem_id)
    parts = [part for part in body.parts if part in ("variables", "duals")]
    request = await _read(
        service,
        problem,
        body,
        "solve",
        outputs=_outputs(problem, parts),
        owner=owner,
        keep="state" in body.parts,
        portable="portable" in body.parts,
    )

    def answer(result: ComputeResult) -> SolveAnswer:
        found: dict[str, Any] = {part: _encoded(result, problem.summary[part], body.encoding) for part in parts}
        if request.keep:
            found["state"] = result.state
        if result.portable is not None:
            found["portable"] = written(result.portable, body.encoding)
        return SolveAnswer(
            **found,
            status=list(result.status),
            objective=_numbers(result.objective),
            iterations=list(result.iterations),
            residuals=Residuals(**{name: value.tolist() for name, value in result.residuals.items()}),
            meta=_meta(problem, result),
        )

    return await _served(service, problem, request, answer, prefer)


@router.post("/vjp", response_model=VjpAnswer, responses=_ACCEPTED)
async def vjp(
    problem_id: str, body: VjpRequest, service: ServiceDependency, owner: Owner, prefer: Preferences = ""
) -> Response:
    """Gradients of a loss with respect to parameters, from its cotangents with respect to outputs."""
    problem = service.problem(problem_id)
    known = problem.summary["parameters"]
    for position, name in enumerate(body.wrt or ()):
        if name not in known:
            raise InvalidError.at(pointer("wrt", position), f"unknown parameter {name[:80]!r}{known_names(known)}")
    wrt = tuple(known) if body.wrt is None else tuple(body.wrt)
    request = await _read(service, problem, body, "vjp", body.cotangents, state=body.state, owner=owner, wrt=wrt)

    def answer(result: ComputeResult) -> VjpAnswer:
        gradients = {name: encode(value, body.encoding) for name, value in result.arrays.items()}
        return VjpAnswer(
            gradients=gradients,
            status=list(result.status),
            report=DerivativeReport(**(result.report or {})),
            meta=_meta(problem, result),
        )

    return await _served(service, problem, request, answer, prefer)


@router.post("/jvp", response_model=JvpAnswer, responses=_ACCEPTED)
async def jvp(
    problem_id: str, body: JvpRequest, service: ServiceDependency, owner: Owner, prefer: Preferences = ""
) -> Response:
    """Tangents of outputs, from tangents of parameters."""
    problem = service.problem(problem_id)
    outputs = _outputs(problem, body.parts)
    request = await _read(service, problem, body, "jvp", body.tangents, state=body.state, owner=owner, outputs=outputs)

    def answer(result: ComputeResult) -> JvpAnswer:
        return JvpAnswer(
            tangents=_encoded(result, outputs, body.encoding),
            objective=_numbers(result.objective),
            status=list(result.status),
            report=DerivativeReport(**(result.report or {})),
            meta=_meta(problem, result),
        )

    return await _served(service, problem, request, answer, prefer)


async def _read(
    service: Service,
    problem: StoredProblem,
    body: SolveRequest | VjpRequest | JvpRequest,
    operation: Operation,
    directions: Mapping[str, Any] | None = None,
    *,
    state: str | Portable | None = None,
    **others: Any,
) -> ComputeRequest:
    """The request, its arrays read and checked."""
    options = _options(body.options, service.settings)
    handle = isinstance(state, str)
    if handle and body.parameters:
        raise InvalidError.at("/parameters", "a handle in state stands for its parameters; leave one of the two out")

    def read() -> ComputeRequest:
        arrays = Reader(problem.summary, service.settings)
        return ComputeRequest(
            request_id=uuid.uuid4().hex,  # the caller's own may come twice
            problem_id=problem.id,
            operation=operation,
            parameters={} if handle else arrays.parameters(body.parameters),
            directions=arrays.directions(operation, directions or {}),
            options=options,
            state=arrays.state(state) if isinstance(state, Portable) else state,
            **others,
        )

    return await run_in_threadpool(read)


async def _served(
    service: Service,
    problem: StoredProblem,
    request: ComputeRequest,
    answer: Callable[[ComputeResult], BaseModel],
    prefer: str,
) -> Response:
    """The answer; or, where the caller prefers that, a job that will have it."""

    async def respond(result: ComputeResult) -> Response:
        return await run_in_threadpool(lambda: _written(answer(result)))

    def work(progress: Progress | None = None) -> Awaitable[ComputeResult]:
        return service.engine.run(request, problem.document, progress)

    if not respond_async(prefer):
        return await respond(await work())
    job = service.jobs.start(request, work, respond)
    headers = {"Location": f"/v1/jobs/{job.id}", "Preference-Applied": "respond-async"}
    body = JobAnswer(**job.described()).model_dump_json()
    return Response(body, 202, headers=headers, media_type="application/json")


def _outputs(problem: StoredProblem, parts: Sequence[str]) -> tuple[str, ...]:
    """Names of the outputs in these parts of the answer."""
    return tuple(name for part in dict.fromkeys(parts) for name in problem.summary[part])


def _options(options: Options, settings: Settings) -> ComputeOptions:
    limits = {"max_iter": settings.max_iter, "time_limit_s": settings.max_time_limit_s}
    for name, limit in limits.items():
        if (getattr(options, name) or 0) > limit:
            raise InvalidError.at(pointer("options", name), f"this server allows at most {limit}")
    return ComputeOptions(**options.model_dump())


def _encoded(result: ComputeResult, names: Sequence[str] | Mapping[str, Any], encoding: Encoding) -> dict[str, Any]:
    """Outputs by name, without the batch axis where no input had one."""
    return {name: encode(result.arrays[name] if result.batched else result.arrays[name][0], encoding) for name in names}


def _numbers(values: Array | None) -> list[float | None]:
    return [] if values is None else values.tolist()


def _meta(problem: StoredProblem, result: ComputeResult) -> Meta:
    return Meta(
        problem_id=problem.id,
        solver=result.solver,
        reason=result.reason,
        batch=len(result.status),
        batched=result.batched,
        seconds=dict(result.seconds),
        versions={"convexlayer": convexlayer.__version__, "cvxpy": cp.__version__},
    )


def _written(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_unset=True), media_type="application/json")
