"""Registration: what is posted is compiled at once, so that a document that cannot be solved is never stored."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from starlette.concurrency import run_in_threadpool

from ..documents import ConeProgramDocument, ExpressionDocument, normalise, problem_documents, problem_id
from ..reading import described, reader
from ..service import Owner, ServiceDependency
from ..settings import Settings
from .bodies import ProblemDetail, ProblemList, ProblemSummary

__all__ = ["router"]

router = APIRouter(prefix="/v1/problems", tags=["problems"])


DocumentBody = Annotated[ExpressionDocument | ConeProgramDocument, Depends(reader(problem_documents, mode="exact"))]


@router.post(
    "", status_code=201, responses={200: {"model": ProblemSummary}}, openapi_extra=described(problem_documents)
)
async def register(
    document: DocumentBody,
    service: ServiceDependency,
    owner: Owner,
    response: Response,
    validate_only: Annotated[bool, Query(description="compile, but do not store")] = False,
) -> ProblemSummary:
    """Compile and store a problem; 201 if it is new to the caller, 200 if it is known or only validated."""
    identity, normalised = await run_in_threadpool(_identify, document, service.settings)
    if validate_only:
        problem, new = await service.registry.compiled(owner, identity, normalised), False
    else:
        problem, new = await service.registry.add(owner, identity, normalised)
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/problems/{identity}"
    return ProblemSummary(**problem.summary)


@router.get("")
async def list_problems(service: ServiceDependency, owner: Owner) -> ProblemList:
    """What the caller registered, oldest first."""
    return ProblemList(problems=[ProblemSummary(**summary) for summary in await service.registry.all(owner)])


@router.get("/{problem_id}")
async def get_problem(problem_id: str, service: ServiceDependency, owner: Owner) -> ProblemDetail:
    """One problem, with its document."""
    problem = await service.registry.get(owner, problem_id)
    return ProblemDetail(**problem.summary, document=dict(problem.document))


@router.delete("/{problem_id}", status_code=204)
async def delete_problem(problem_id: str, service: ServiceDependency, owner: Owner) -> Response:
    """Forget a problem, for the caller alone."""
    await service.registry.delete(owner, problem_id)
    return Response(status_code=204)


def _identify(document: ExpressionDocument | ConeProgramDocument, settings: Settings) -> tuple[str, dict[str, Any]]:
    normalised = normalise(document, settings)
    return problem_id(normalised), normalised
