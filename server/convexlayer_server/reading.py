"""Bodies of requests: received, read by their Content-Type, and validated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from .encoding import MalformedError, Mode, binary
from .service import ServiceDependency
from .trace import current_trace

__all__ = ["JSON", "described", "reader"]

JSON = "application/json"

_REFERENCE = "#/components/schemas/{model}"
_BINARY_SCHEMA = {
    "type": "string",
    "format": "binary",
    "description": "safetensors: arrays under their names in the JSON body (parameters/A), F64 or F32, the rest of it "
    "as JSON text under 'body' in the metadata",
}

_PAUSE_S, _LONGEST_S = 30.0, 600.0
"""For how long nothing of a body may come, and how long all of it may take: it holds a place meanwhile."""

_T = TypeVar("_T")
Reader = Callable[[Request, ServiceDependency], Awaitable[_T]]


def reader(kind: TypeAdapter[_T], *, mode: Mode, also_binary: bool = False) -> Reader[_T]:
    """The dependency of a route that reads a body.

    Args:
        kind: what the body is.
        mode: what becomes of lists of numbers in large JSON bodies.
        also_binary: whether it may be safetensors.

    Returns:
        A dependency; it raises HTTPException (400 for what cannot be read, 408 for what does not come, 415 for another
        media type, 503) and RequestValidationError.
    """
    media_types = _media_types(also_binary)

    async def read(request: Request, service: ServiceDependency) -> _T:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type not in media_types:
            raise HTTPException(415, f"expected {' or '.join(media_types)}, got {media_type[:80]!r}")
        received = await _received(request)
        try:
            tree = await service.json.parse(received, mode) if media_type == JSON else binary.read(received)
        except MalformedError as error:
            raise HTTPException(400, str(error)) from error
        try:
            return kind.validate_python(tree)
        except ValidationError as error:
            found = error.errors(include_url=False)
            raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in found]) from error

    return read


def described(kind: TypeAdapter[Any], *, also_binary: bool = False) -> dict[str, Any]:
    """What the OpenAPI document says of such a body; ``$defs`` in it are still to be moved to the components."""
    schema = kind.json_schema(ref_template=_REFERENCE)
    if "title" in schema:
        name, parts = schema["title"], schema.pop("$defs", {})
        schema = {"$ref": _REFERENCE.format(model=name), "$defs": {name: schema, **parts}}
    content = {JSON: {"schema": schema}, binary.MEDIA_TYPE: {"schema": _BINARY_SCHEMA}}
    described = {media_type: content[media_type] for media_type in _media_types(also_binary)}
    return {"requestBody": {"required": True, "content": described}}


def _media_types(also_binary: bool) -> tuple[str, ...]:
    return (JSON, binary.MEDIA_TYPE) if also_binary else (JSON,)


async def _received(request: Request) -> bytearray:
    """The whole body, as it comes: nothing is set aside for what is only announced.

    Raises:
        HTTPException: 408, it does not come.
    """
    body = bytearray()
    loop = asyncio.get_running_loop()
    end = loop.time() + _LONGEST_S
    try:
        async with asyncio.timeout(_PAUSE_S) as limit:
            async for chunk in request.stream():
                body += chunk
                limit.reschedule(min(loop.time() + _PAUSE_S, end))
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not come: {len(body)} bytes until now") from error
    current_trace().body_bytes = len(body)
    return body
