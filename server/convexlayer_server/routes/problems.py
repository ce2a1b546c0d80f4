"""Registration: what is posted is compiled at once, so that a document that cannot be solved is never stored.

Summaries and documents are written to answers as they were compiled and stored, unread.
"""

from __future__ import annotations

import base64
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic_core import to_json

from ..answers import written
from ..documents import Identified, problem_documents
from ..errors import FieldError, InvalidError
from ..reading import described, read_document
from ..service import Owner, ServiceDependency
from .bodies import ProblemDetail, ProblemList, ProblemSummary

__all__ = ["router"]

router = APIRouter(prefix="/v1/problems", tags=["problems"])

_CURSOR = "problem "

DocumentBody = Annotated[Identified, Depends(read_document)]


@router.post(
    "",
    status_code=201,
    response_model=ProblemSummary,
    responses={200: {"model": ProblemSummary}},
    openapi_extra=described(problem_documents),
)
async def register(
    document: DocumentBody,
    service: ServiceDependency,
    owner: Owner,
    validate_only: Annotated[bool, Query(description="compile, but do not store")] = False,
) -> Response:
    """Compile and store a problem; 201 if it is new to the caller, 200 if it is known or only validated."""
    if validate_only:
        problem, new = await service.registry.compiled(owner, document), False
    else:
        problem, new = await service.registry.add(owner, document)
    response = written([to_json(problem.summary)], 201 if new else 200)
    response.headers["Location"] = f"/v1/problems/{document.id}"
    return response


@router.get("", response_model=ProblemList)
async def list_problems(
    service: ServiceDependency,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=1000, description="problems of a page, which may have fewer")] = 100,
    after: Annotated[str, Query(max_length=64, description="the ``next`` of the page before")] = "",
) -> Response:
    """What the caller registered, oldest first, page by page."""
    summaries, last = await service.registry.page(owner, _number(after) if after else 0, limit)
    following = to_json(None if last is None else _cursor(last))
    return written([b'{"problems":[', ",".join(summaries).encode(), b'],"next":', following, b"}"])


@router.get("/{problem_id}", response_model=ProblemDetail)
async def get_problem(problem_id: str, service: ServiceDependency, owner: Owner) -> Response:
    """One problem, with its document."""
    problem = await service.registry.get(owner, problem_id)
    return written([to_json(problem.summary)[:-1], b',"document":', problem.document, b"}"])


@router.delete("/{problem_id}", status_code=204)
async def delete_problem(problem_id: str, service: ServiceDependency, owner: Owner) -> Response:
    """Forget a problem, for the caller alone."""
    await service.registry.delete(owner, problem_id)
    return Response(status_code=204)


def _cursor(number: int) -> str:
    return base64.urlsafe_b64encode(f"{_CURSOR}{number}".encode()).decode("ascii")


def _number(cursor: str) -> int:
    """The number of a cursor.

    Raises:
        InvalidError: it is none.
    """
    try:
        number = int(base64.urlsafe_b64decode(cursor).removeprefix(_CURSOR.encode()))
    except ValueError:
        number = -1
    if not 0 <= number < 2**63 or _cursor(number) != cursor:
        detail = "query parameter after: expected what an answer to this request has as its next"
        raise InvalidError(detail, [FieldError("", detail)])
    return number
