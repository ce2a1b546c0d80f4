"""Bodies of requests: received, read by their Content-Type, and validated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import HTTPException, Request
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from .body import validated
from .documents import Identified, identified
from .encoding import binary, load, packed
from .errors import CallerLeftError
from .service import Owner, ServiceDependency, held_for
from .settings import Settings
from .trace import current_trace

__all__ = ["AT_ONCE_BYTES", "JSON", "Reads", "described", "read_document", "reader"]

JSON = "application/json"

_REFERENCE = "#/components/schemas/{model}"
_BINARY_SCHEMA = {
    "type": "string",
    "format": "binary",
    "description": "safetensors: arrays under their names in the JSON body (parameters/A), F64 or F32, the rest of it "
    "as JSON text under 'body' in the metadata",
}

_LONGEST_S = 600.0
"""How long all of a body may take to come: it holds a place meanwhile."""

AT_ONCE_BYTES = 2**17
"""Up to here a body is read in less time than other requests notice: 3 ms at the most."""

_HEADER_AT_ONCE_BYTES, _DOCUMENT_AT_ONCE_BYTES = 2**14, 2**13
"""The same for the header of a safetensors body, and for a document, whose every name costs more."""

_T = TypeVar("_T")
Reads = Callable[[Request, ServiceDependency, Owner], Awaitable[_T]]


def reader(kind: TypeAdapter[_T]) -> Reads[_T]:
    """The dependency of a route that reads a body with arrays, JSON or safetensors.

    Args:
        kind: what the body is.

    Returns:
        A dependency; it raises HTTPException (408 for what does not come, 415 for another media type), TooManyError
        where too much is held already, what ``Readers.read`` raises, MalformedError and InvalidError.
    """

    async def read(request: Request, service: ServiceDependency, owner: Owner) -> _T:
        media_type = _checked_type(request, (JSON, binary.MEDIA_TYPE))
        body = await _received(request, service.settings)
        if media_type == JSON:
            tree = load(body) if len(body) <= AT_ONCE_BYTES else await service.readers.read(owner, packed, body)
            held_for(request).reserve("body", max(_arrays_bytes(tree), len(body)))
        else:
            text, size = binary.split(body)
            if len(text) <= _HEADER_AT_ONCE_BYTES:
                tree = binary.read(body)
            else:
                header = await service.readers.read(owner, partial(binary.header, size=size), text)
                tree = await run_in_threadpool(binary.placed, body, header)
        return validated(kind, tree)

    return read


async def read_document(request: Request, service: ServiceDependency, owner: Owner) -> Identified:
    """The dependency of a route that reads a problem document; it raises as those of ``reader`` do."""
    _checked_type(request, (JSON,))
    body = await _received(request, service.settings)
    read = partial(identified, settings=service.settings)
    if len(body) <= _DOCUMENT_AT_ONCE_BYTES:
        return read(body)
    return await service.readers.read(owner, read, body)


def described(kind: TypeAdapter[Any], *, also_binary: bool = False) -> dict[str, Any]:
    """What the OpenAPI document says of such a body; ``$defs`` in it are still to be moved to the components."""
    schema = kind.json_schema(ref_template=_REFERENCE)
    if "title" in schema:
        name, parts = schema["title"], schema.pop("$defs", {})
        schema = {"$ref": _REFERENCE.format(model=name), "$defs": {name: schema, **parts}}
    content = {JSON: {"schema": schema}} | ({binary.MEDIA_TYPE: {"schema": _BINARY_SCHEMA}} if also_binary else {})
    return {"requestBody": {"required": True, "content": content}}


def _checked_type(request: Request, expected: Sequence[str]) -> str:
    """The media type of the body.

    Raises:
        HTTPException: 415, it is none of those that are expected.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in expected:
        raise HTTPException(415, f"expected {' or '.join(expected)}, got {media_type[:80]!r}")
    return media_type


def _arrays_bytes(tree: Any) -> int:
    """Of the arrays of a request: they are values of the body, or one level deeper."""
    fields = list(tree.values()) if isinstance(tree, dict) else []
    deeper = [value for field in fields if isinstance(field, dict) for value in field.values()]
    return sum(value.nbytes for value in fields + deeper if isinstance(value, np.ndarray))


async def _received(request: Request, settings: Settings) -> bytearray:
    """The whole body, as it comes: nothing is set aside for what is only announced.

    Every byte that comes buys time for the next ones, but never for more than a pause.

    Raises:
        HTTPException: 408, it does not come, or too slowly.
        CallerLeftError: its end will not come.
        TooManyError: there is no room for it.
    """
    body, more = bytearray(), True
    held = held_for(request)
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.body_pause_s
    end = loop.time() + _LONGEST_S
    try:
        async with asyncio.timeout_at(until) as limit:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise CallerLeftError("the connection was closed before the body was there")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                held.reserve("body", len(body) + len(chunk))
                body += chunk
                if more:  # a small body comes at once, and to change a limit costs more than to read that
                    bought = until + len(chunk) / settings.body_bytes_per_s
                    until = min(bought, loop.time() + settings.body_pause_s, end)
                    limit.reschedule(until)
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not come: {len(body)} bytes until now") from error
    current_trace().body_bytes = len(body)
    return body
