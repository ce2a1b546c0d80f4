"""Request bodies: received within time and size limits, parsed by Content-Type, and validated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import HTTPException, Request
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool

from ..documents import IdentifiedDocument, identify
from ..encodings import safetensors
from ..encodings.json_arrays import parse_json, parse_json_arrays
from ..encodings.validation import validate
from ..errors import MAX_QUOTED, ClientDisconnectedError
from ..observability.tracing import current_context
from ..settings import Settings
from .parser_pool import ParserPool

__all__ = ["JSON", "MAX_INLINE_BYTES", "BodyReader", "openapi_body"]

JSON = "application/json"

_REFERENCE = "#/components/schemas/{model}"
_SAFETENSORS_SCHEMA = {
    "type": "string",
    "format": "binary",
    "description": "safetensors: arrays under their names in the JSON body (parameters/A), F64 or F32, the rest of it "
    "as JSON text under 'body' in the metadata",
}

_MAX_DURATION_S = 600.0
"""Deadline in seconds for a whole body, which occupies memory and a place among the concurrent requests."""

MAX_INLINE_BYTES = 2**17
"""Bytes of a JSON body that the event loop parses itself: this blocks it for at most 3 ms (measured)."""

_MAX_INLINE_HEADER_BYTES = 2**14
"""The same for the header of a safetensors body, whose entries cost more a byte."""

_MAX_INLINE_DOCUMENT_BYTES = 2**13
"""The same for a problem document, whose validation costs more a byte."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class BodyReader:
    """Reads the body of one request.

    ``read`` and ``read_document`` raise HTTPException (408 if the body does not arrive, 415 for another media type),
    ClientDisconnectedError, TooManyError if the memory budget is exceeded, MalformedError, InvalidError, and the errors
    of ``ParserPool.parse``.

    Attributes:
        request: the request.
        settings: limits on bodies.
        parsers: parse large bodies.
        owner: ID of the key.
        reserve: reserves memory for a number of bytes of the body, or raises TooManyError.
    """

    request: Request
    settings: Settings
    parsers: ParserPool
    owner: str
    reserve: Callable[[int], None]

    async def read(self, kind: TypeAdapter[_T]) -> _T:
        """Read a body with arrays, JSON or safetensors, as a type."""
        media_type = _check_media_type(self.request, (JSON, safetensors.MEDIA_TYPE))
        body = await self._receive()
        if media_type == JSON:
            inline = len(body) <= MAX_INLINE_BYTES
            tree = parse_json(body) if inline else await self.parsers.parse(self.owner, parse_json_arrays, body)
            self.reserve(max(_arrays_bytes(tree), len(body)))
        else:
            text, size = safetensors.split_header(body)
            if len(text) <= _MAX_INLINE_HEADER_BYTES:
                tree = safetensors.read(body)
            else:
                parse = partial(safetensors.parse_header, size=size)
                header = await self.parsers.parse(self.owner, parse, text)
                tree = await run_in_threadpool(safetensors.assemble, body, header)
        return validate(kind, tree)

    async def read_document(self) -> IdentifiedDocument:
        """Read a problem document."""
        _check_media_type(self.request, (JSON,))
        body = await self._receive()
        parse = partial(identify, settings=self.settings)
        if len(body) <= _MAX_INLINE_DOCUMENT_BYTES:
            return parse(body)
        return await self.parsers.parse(self.owner, parse, body)

    async def _receive(self) -> bytearray:
        """Receive the body; memory is allocated for what arrives, not for what is announced.

        Each byte extends the time limit for the next ones, to at most ``body_pause_s`` from now.

        Raises:
            HTTPException: 408, the body does not arrive, or too slowly.
            ClientDisconnectedError: the client disconnected.
            TooManyError: the memory budget is exceeded.
        """
        settings = self.settings
        body, more = bytearray(), True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + settings.body_pause_s
        end = loop.time() + _MAX_DURATION_S
        try:
            async with asyncio.timeout_at(deadline) as timeout:
                while more:
                    message = await self.request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnectedError("the client disconnected before the body was complete")
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    self.reserve(len(body) + len(chunk))
                    body += chunk
                    if more:  # a small body arrives at once, and rescheduling costs more than reading it
                        extended = deadline + len(chunk) / settings.body_bytes_per_s
                        deadline = min(extended, loop.time() + settings.body_pause_s, end)
                        timeout.reschedule(deadline)
        except TimeoutError as error:
            raise HTTPException(408, f"the body did not arrive in time; {len(body)} bytes were received") from error
        current_context().body_bytes = len(body)
        return body


def openapi_body(kind: TypeAdapter[Any], *, safetensors_too: bool = False) -> dict[str, Any]:
    """Return the OpenAPI description of a body; the application moves its ``$defs`` to the components."""
    schema = kind.json_schema(ref_template=_REFERENCE)
    if "title" in schema:
        name, parts = schema["title"], schema.pop("$defs", {})
        schema = {"$ref": _REFERENCE.format(model=name), "$defs": {name: schema, **parts}}
    content = {JSON: {"schema": schema}}
    if safetensors_too:
        content[safetensors.MEDIA_TYPE] = {"schema": _SAFETENSORS_SCHEMA}
    return {"requestBody": {"required": True, "content": content}}


def _check_media_type(request: Request, expected: Sequence[str]) -> str:
    """Return the media type of the body.

    Raises:
        HTTPException: 415, it is not an expected one.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in expected:
        raise HTTPException(415, f"expected {' or '.join(expected)}, got {media_type[:MAX_QUOTED]!r}")
    return media_type


def _arrays_bytes(tree: Any) -> int:
    """Return the bytes of the arrays of a request, which are values of the body or one level deeper."""
    fields = list(tree.values()) if isinstance(tree, dict) else []
    deeper = [value for field in fields if isinstance(field, dict) for value in field.values()]
    return sum(value.nbytes for value in fields + deeper if isinstance(value, np.ndarray))
