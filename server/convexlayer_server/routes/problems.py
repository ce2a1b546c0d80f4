"""Registration of problems. A document is canonicalised at once, so an invalid one is never stored.

Summaries and stored documents are sent as JSON texts, without parsing them.
"""

from __future__ import annotations

import base64
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic_core import to_json

from ..documents import IdentifiedDocument, problem_documents
from ..errors import FieldError, InvalidError
from ..http.request_body import openapi_body
from ..http.response_schemas import ProblemList, ProblemSummary, ProblemWithDocument
from ..http.responses import json_response
from .dependencies import Owner, ServiceDependency, body_reader

__all__ = ["router"]

router = APIRouter(prefix="/v1/problems", tags=["problems"])

_CURSOR_PREFIX = "problem "
"""Beginning of a decoded cursor. The encoding keeps clients from relying on the number after it."""

_MAX_PAGE = 1000
"""Problems of a page at most."""


async def _document(request: Request) -> IdentifiedDocument:
    return await body_reader(request).read_document()


DocumentBody = Annotated[IdentifiedDocument, Depends(_document)]


@router.post(
    "",
    status_code=201,
    response_model=ProblemSummary,
    responses={200: {"model": ProblemSummary}},
    openapi_extra=openapi_body(problem_documents),
)
async def register(
    document: DocumentBody,
    service: ServiceDependency,
    owner: Owner,
    validate_only: Annotated[bool, Query(description="canonicalise, but do not store")] = False,
) -> Response:
    """Canonicalise and store a problem; 201 if it is new to the key, 200 if it is known or only validated."""
    if validate_only:
        problem, new = await service.registry.canonicalise(owner, document), False
    else:
        problem, new = await service.registry.add(owner, document)
    response = json_response([to_json(problem.summary)], 201 if new else 200)
    response.headers["Location"] = f"/v1/problems/{document.id}"
    return response


@router.get("", response_model=ProblemList)
async def list_problems(
    service: ServiceDependency,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=_MAX_PAGE, description="problems of a page, which may have fewer")] = 100,
    after: Annotated[str, Query(max_length=64, description="the ``next`` of the previous page")] = "",
) -> Response:
    """The problems of the key, oldest first, page by page."""
    summaries, last = await service.registry.page(owner, _parse_cursor(after) if after else 0, limit)
    following = to_json(None if last is None else _cursor(last))
    return json_response([b'{"problems":[', ",".join(summaries).encode(), b'],"next":', following, b"}"])


@router.get("/{problem_id}", response_model=ProblemWithDocument)
async def get_problem(problem_id: str, service: ServiceDependency, owner: Owner) -> Response:
    """One problem, with its document."""
    problem = await service.registry.get(owner, problem_id)
    return json_response([to_json(problem.summary)[:-1], b',"document":', problem.document, b"}"])


@router.delete("/{problem_id}", status_code=204)
async def delete_problem(problem_id: str, service: ServiceDependency, owner: Owner) -> Response:
    """Delete a problem of the key; the same problem of other keys stays."""
    await service.registry.delete(owner, problem_id)
    return Response(status_code=204)


def _cursor(number: int) -> str:
    return base64.urlsafe_b64encode(f"{_CURSOR_PREFIX}{number}".encode()).decode("ascii")


def _parse_cursor(cursor: str) -> int:
    """Return the number of a cursor.

    Raises:
        InvalidError: the cursor is invalid.
    """
    try:
        number = int(base64.urlsafe_b64decode(cursor).removeprefix(_CURSOR_PREFIX.encode()))
    except ValueError:
        number = -1
    if not 0 <= number < 2**63 or _cursor(number) != cursor:
        detail = "query parameter after: expected the next of an earlier response to this request"
        raise InvalidError(detail, [FieldError("", detail)])
    return number
