"""solve, vjp and jvp: arrays are read, computed and written off the event loop."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import cvxpy as cp
from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

import convexlayer

from ..arrays import Array, Encoding, encode
from ..engine import ComputeOptions, ComputeRequest, ComputeResult, Operation
from ..errors import InvalidError, pointer
from ..service import JsonBody, Service, ServiceDependency
from ..settings import Settings
from ..store import StoredProblem
from .bodies import (
    DerivativeReport,
    JvpAnswer,
    JvpRequest,
    Meta,
    Options,
    Residuals,
    SolveAnswer,
    SolveRequest,
    VjpAnswer,
    VjpRequest,
)
from .reader import Reader, known_names

__all__ = ["router"]

router = APIRouter(prefix="/v1/problems/{problem_id}", tags=["compute"], dependencies=[JsonBody])


@router.post("/solve", response_model=SolveAnswer)
async def solve(problem_id: str, body: SolveRequest, service: ServiceDependency) -> Response:
    """Solve for a batch of parameters. An element without a solution is a status, not an error."""
    problem = service.problem(problem_id)
    result = await _compute(service, problem, body, "solve", outputs=_outputs(problem, body.parts))

    def answer() -> SolveAnswer:
        parts = {part: _encoded(result, problem.summary[part], body.encoding) for part in body.parts}
        return SolveAnswer(
            **parts,
            status=list(result.status),
            objective=_numbers(result.objective),
            iterations=list(result.iterations),
            residuals=Residuals(**{name: value.tolist() for name, value in result.residuals.items()}),
            meta=_meta(problem, result),
        )

    return await _respond(answer)


@router.post("/vjp", response_model=VjpAnswer)
async def vjp(problem_id: str, body: VjpRequest, service: ServiceDependency) -> Response:
    """Gradients of a loss with respect to parameters, from its cotangents with respect to outputs."""
    problem = service.problem(problem_id)
    known = problem.summary["parameters"]
    for position, name in enumerate(body.wrt or ()):
        if name not in known:
            raise InvalidError.at(pointer("wrt", position), f"unknown parameter {name[:80]!r}{known_names(known)}")
    wrt = tuple(known) if body.wrt is None else tuple(body.wrt)
    result = await _compute(service, problem, body, "vjp", body.cotangents, wrt=wrt)

    def answer() -> VjpAnswer:
        gradients = {name: encode(value, body.encoding) for name, value in result.arrays.items()}
        return VjpAnswer(
            gradients=gradients,
            status=list(result.status),
            report=DerivativeReport(**(result.report or {})),
            meta=_meta(problem, result),
        )

    return await _respond(answer)


@router.post("/jvp", response_model=JvpAnswer)
async def jvp(problem_id: str, body: JvpRequest, service: ServiceDependency) -> Response:
    """Tangents of outputs, from tangents of parameters."""
    problem = service.problem(problem_id)
    outputs = _outputs(problem, body.parts)
    result = await _compute(service, problem, body, "jvp", body.tangents, outputs=outputs)

    def answer() -> JvpAnswer:
        return JvpAnswer(
            tangents=_encoded(result, outputs, body.encoding),
            objective=_numbers(result.objective),
            status=list(result.status),
            report=DerivativeReport(**(result.report or {})),
            meta=_meta(problem, result),
        )

    return await _respond(answer)


async def _compute(
    service: Service,
    problem: StoredProblem,
    body: SolveRequest | VjpRequest | JvpRequest,
    operation: Operation,
    directions: Mapping[str, Any] | None = None,
    *,
    wrt: tuple[str, ...] = (),
    outputs: tuple[str, ...] | None = None,
) -> ComputeResult:
    options = _options(body.options, service.settings)

    def read() -> ComputeRequest:
        arrays = Reader(problem.summary, service.settings)
        parameters = arrays.parameters(body.parameters)
        return ComputeRequest(
            request_id=uuid.uuid4().hex,  # the caller's own may come twice
            problem_id=problem.id,
            operation=operation,
            parameters=parameters,
            directions=arrays.directions(operation, directions or {}),
            wrt=wrt,
            outputs=outputs,
            options=options,
        )

    return await service.engine.run(await run_in_threadpool(read), problem.document)


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


async def _respond(answer: Any) -> Response:
    def write() -> str:
        model: BaseModel = answer()
        return model.model_dump_json(exclude_unset=True)

    return Response(await run_in_threadpool(write), media_type="application/json")
