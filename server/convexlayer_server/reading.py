"""Bodies of requests: received, read by their Content-Type, and validated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import HTTPException, Request
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from .body import validated
from .documents import Identified, identified
from .encoding import binary, load, packed
from .presence import while_waited_for
from .service import Owner, Service, ServiceDependency
from .trace import current_trace

__all__ = ["AT_ONCE_BYTES", "JSON", "described", "read_document", "reader"]

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

AT_ONCE_BYTES = 2**17
"""Up to here a body is read in less time than other requests notice: 3 ms at the most."""

_HEADER_AT_ONCE_BYTES, _DOCUMENT_AT_ONCE_BYTES = 2**14, 2**13
"""The same for the header of a safetensors body, and for a document, whose every name costs more."""

_T = TypeVar("_T")
Reader = Callable[[Request, ServiceDependency, Owner], Awaitable[_T]]


def reader(kind: TypeAdapter[_T]) -> Reader[_T]:
    """The dependency of a route that reads a body with arrays, JSON or safetensors.

    Args:
        kind: what the body is.

    Returns:
        A dependency; it raises HTTPException (408 for what does not come, 415 for another media type), what
        ``Readers.read`` raises, MalformedError and InvalidError.
    """

    async def read(request: Request, service: ServiceDependency, owner: Owner) -> _T:
        media_type = _checked_type(request, (JSON, binary.MEDIA_TYPE))
        body = await _received(request)
        if media_type == JSON:
            tree = load(body) if len(body) <= AT_ONCE_BYTES else await _apart(request, service, owner, packed, body)
        else:
            text, size = binary.split(body)
            if len(text) <= _HEADER_AT_ONCE_BYTES:
                tree = binary.read(body)
            else:
                header = await _apart(request, service, owner, partial(binary.header, size=size), text)
                tree = await run_in_threadpool(binary.placed, body, header)
        return validated(kind, tree)

    return read


async def read_document(request: Request, service: ServiceDependency, owner: Owner) -> Identified:
    """The dependency of a route that reads a problem document; it raises as those of ``reader`` do."""
    _checked_type(request, (JSON,))
    body = await _received(request)
    read = partial(identified, settings=service.settings)
    if len(body) <= _DOCUMENT_AT_ONCE_BYTES:
        return read(body)
    return await _apart(request, service, owner, read, body)


def described(kind: TypeAdapter[Any], *, also_binary: bool = False) -> dict[str, Any]:
    """What the OpenAPI document says of such a body; ``$defs`` in it are still to be moved to the components."""
    schema = kind.json_schema(ref_template=_REFERENCE)
    if "title" in schema:
        name, parts = schema["title"], schema.pop("$defs", {})
        schema = {"$ref": _REFERENCE.format(model=name), "$defs": {name: schema, **parts}}
    content = {JSON: {"schema": schema}} | ({binary.MEDIA_TYPE: {"schema": _BINARY_SCHEMA}} if also_binary else {})
    return {"requestBody": {"required": True, "content": content}}


async def _apart(
    request: Request,
    service: Service,
    owner: str,
    function: Callable[..., _T],
    body: bytes | bytearray | memoryview,
) -> _T:
    """What a function makes of a body in another process, for as long as the caller waits."""
    return await while_waited_for(request, service.readers.read(owner, function, body))


def _checked_type(request: Request, expected: Sequence[str]) -> str:
    """The media type of the body.

    Raises:
        HTTPException: 415, it is none of those that are expected.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in expected:
        raise HTTPException(415, f"expected {' or '.join(expected)}, got {media_type[:80]!r}")
    return media_type


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
