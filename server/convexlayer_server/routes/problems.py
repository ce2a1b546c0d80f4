"""Registration: what is posted is compiled at once, so that a document that cannot be solved is never stored."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from starlette.concurrency import run_in_threadpool

from ..documents import ConeProgramDocument, ExpressionDocument, ProblemDocument, normalise, problem_id
from ..service import JsonBody, ServiceDependency
from ..settings import Settings
from ..store import StoredProblem
from .bodies import ProblemDetail, ProblemList, ProblemSummary

__all__ = ["router"]

router = APIRouter(prefix="/v1/problems", tags=["problems"])


@router.post("", dependencies=[JsonBody], status_code=201, responses={200: {"model": ProblemSummary}})
async def register(
    document: ProblemDocument,
    service: ServiceDependency,
    response: Response,
    validate_only: Annotated[bool, Query(description="compile, but do not store")] = False,
) -> ProblemSummary:
    """Compile and store a problem; 201 if it is new, 200 if it is known or only validated."""
    identity, normalised = await run_in_threadpool(_identify, document, service.settings)
    summary = await service.engine.register(identity, normalised)
    new = not validate_only and service.store.put(StoredProblem(normalised, summary))
    response.status_code = 201 if new else 200
    response.headers["Location"] = f"/v1/problems/{identity}"
    return ProblemSummary(**summary)


@router.get("")
def list_problems(service: ServiceDependency) -> ProblemList:
    """What is registered, oldest first."""
    return ProblemList(problems=[ProblemSummary(**problem.summary) for problem in service.store.all()])


@router.get("/{problem_id}")
def get_problem(problem_id: str, service: ServiceDependency) -> ProblemDetail:
    """One problem, with its document."""
    problem = service.problem(problem_id)
    return ProblemDetail(**problem.summary, document=dict(problem.document))


@router.delete("/{problem_id}", status_code=204)
def delete_problem(problem_id: str, service: ServiceDependency) -> Response:
    """Forget a problem."""
    service.problem(problem_id)
    service.store.delete(problem_id)
    return Response(status_code=204)


def _identify(document: ExpressionDocument | ConeProgramDocument, settings: Settings) -> tuple[str, dict[str, Any]]:
    normalised = normalise(document, settings)
    return problem_id(normalised), normalised
