"""Every error as application/problem+json (RFC 9457)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .errors import FieldError, InvalidError, RequestError, StoreError, UnavailableError

__all__ = ["MEDIA_TYPE", "answer", "document", "handlers", "install"]

MEDIA_TYPE = "application/problem+json"

_LOG = logging.getLogger(__name__)
_MAX_MESSAGE = 300
_STORE_RETRY_S = 10
_HTTP = {
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "The method is not allowed here"),
    408: ("timeout", "The body did not come"),
    415: ("media-type", "The media type is not supported"),
}


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem document."""
    for kind, handler in handlers().items():
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(Exception, _on_bug)


def handlers() -> dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]:
    """What answers errors that are no bugs, by their classes."""
    return {
        RequestError: _on_request_error,
        StoreError: _on_store_error,
        RequestValidationError: _on_validation_error,
        HTTPException: _on_http_error,
    }


def answer(request: Request, error: RequestError) -> Response:
    """The problem document of an error."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    headers |= {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    return _answer(request, error.status, error.slug, error.title, error.detail, error.errors, headers)


def document(
    status: int, slug: str, title: str, detail: str, errors: Sequence[FieldError] = (), request_id: str = ""
) -> bytes:
    """The text of a problem document; ASCII, since a message may quote text that is not valid Unicode."""
    body: dict[str, Any] = {
        "type": f"urn:convexlayer:problem:{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "errors": [{"pointer": error.pointer, "detail": error.detail} for error in errors],
        "request_id": request_id,
    }
    return json.dumps(body).encode("ascii")


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return answer(request, error)


async def _on_store_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    _LOG.error("the store failed", exc_info=error)
    return answer(request, UnavailableError("the store cannot be read or written now", retry_after_s=_STORE_RETRY_S))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [FieldError("", _sentence(item)) for item in error.errors()]
    return answer(request, InvalidError("; ".join(each.detail for each in errors), errors))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    slug, title = _HTTP.get(error.status_code, ("http", str(error.detail)))
    detail = str(error.detail)
    return _answer(request, error.status_code, slug, title, detail, headers=error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    _LOG.error("request %s failed", request.state.request_id, exc_info=error)
    detail = "The server met an error of its own; its log has the details under this request_id"
    headers = {"X-Request-Id": request.state.request_id}  # this answer is written outside the middleware that adds it
    return _answer(request, 500, "internal", "Internal error", detail, headers=headers)


def _answer(
    request: Request,
    status: int,
    slug: str,
    title: str,
    detail: str,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = document(status, slug, title, detail, errors, request.state.request_id)
    return Response(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def _sentence(item: Mapping[str, Any]) -> str:
    """What is wrong with a parameter of the query, the path or the header; bodies are read elsewhere."""
    where, name = item["loc"][0], item["loc"][-1]
    return f"{where} parameter {name}: {str(item['msg'])[:_MAX_MESSAGE]}"  # it may quote what was sent
