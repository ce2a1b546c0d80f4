"""Errors as problem details: application/problem+json (RFC 9457)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ..errors import FieldError, InvalidError, RequestError, StoreError, UnavailableError

__all__ = ["MEDIA_TYPE", "error_response", "exception_handlers", "install", "serialise"]

MEDIA_TYPE = "application/problem+json"

_LOG = logging.getLogger(__name__)

_MAX_MESSAGE = 300
"""Characters of a message about a parameter, which may quote what the client sent."""

_STORE_RETRY_S = 10.0
"""Retry-After in seconds of a failure of the store: a full disk or a lock lasts longer than a busy worker."""

_HTTP_PROBLEMS = {
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "Method not allowed"),
    408: ("timeout", "Request timeout"),
    415: ("media-type", "Unsupported media type"),
}
"""Slug and title of errors that Starlette raises, by status."""


def install(app: FastAPI) -> None:
    """Respond to every error of an application with problem details."""
    for kind, handler in exception_handlers().items():
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(Exception, _on_unexpected_error)


def exception_handlers() -> dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]:
    """Return the handlers of expected errors, by class."""
    return {
        RequestError: _on_request_error,
        StoreError: _on_store_error,
        RequestValidationError: _on_validation_error,
        HTTPException: _on_http_error,
    }


def error_response(request: Request, error: RequestError) -> Response:
    """Return the response to an error."""
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    headers |= {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    return _response(request, error.status, error.slug, error.title, error.detail, error.errors, headers)


def serialise(
    status: int, slug: str, title: str, detail: str, errors: Sequence[FieldError] = (), request_id: str = ""
) -> bytes:
    """Return problem details as JSON in ASCII: a message may quote text that is not valid Unicode."""
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
    return error_response(request, error)


async def _on_store_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    _LOG.error("the store failed", exc_info=error)
    unavailable = UnavailableError("the store cannot be read or written at the moment", retry_after_s=_STORE_RETRY_S)
    return error_response(request, unavailable)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [FieldError("", _sentence(item)) for item in error.errors()]
    return error_response(request, InvalidError("; ".join(each.detail for each in errors), errors))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    slug, title = _HTTP_PROBLEMS.get(error.status_code, ("http", str(error.detail)))
    detail = str(error.detail)
    return _response(request, error.status_code, slug, title, detail, headers=error.headers)


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    _LOG.error("request %s failed", request.state.request_id, exc_info=error)
    detail = "the server failed unexpectedly; its log has the details under this request_id"
    headers = {"X-Request-Id": request.state.request_id}  # this response is sent outside the middleware that adds it
    return _response(request, 500, "internal", "Internal server error", detail, headers=headers)


def _response(
    request: Request,
    status: int,
    slug: str,
    title: str,
    detail: str,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = serialise(status, slug, title, detail, errors, request.state.request_id)
    return Response(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def _sentence(item: Mapping[str, Any]) -> str:
    """Describe an invalid parameter of the query, the path or a header; bodies are validated elsewhere."""
    where, name = item["loc"][0], item["loc"][-1]
    return f"{where} parameter {name}: {str(item['msg'])[:_MAX_MESSAGE]}"
