"""Responses with arrays, as JSON or safetensors as the Accept header prefers, written in parts.

Large responses are serialised and sent part by part, so that none blocks the event loop or lies in memory twice. They
are sent here rather than by Starlette's ``StreamingResponse``: after a disconnect, anyio would keep their arrays alive
until the next garbage collection.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
from fastapi import Response
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from ..encodings import safetensors
from ..encodings.arrays import Array, Encoding

__all__ = ["SAFETENSORS_RESPONSE", "ArrayResponse", "json_response"]

SAFETENSORS_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            safetensors.MEDIA_TYPE: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "the JSON response as safetensors, if Accept prefers it: arrays under their names "
                    "(variables/x), the rest as JSON text under 'body' in the metadata; NaN stays NaN",
                }
            }
        }
    }
}
"""Description of binary responses for the OpenAPI document."""

_PLAIN_PARTS = ("objective", "residuals", "report")
"""Parts whose arrays are always lists in JSON: they have one number an element."""

_PART_ENTRIES = 2**14
"""Array entries serialised at a time; writing them as JSON blocks the event loop for 3 ms (measured)."""

_PART_BYTES = 2**18
"""Bytes sent at a time."""


@final
class ArrayResponse(Response):
    """A response with arrays.

    Args:
        tree: plain values, and arrays as values or one level deeper. In JSON, NaN becomes null in lists, and stays NaN
            in base64.
        encoding: encoding of arrays in JSON.
    """

    def __init__(self, tree: Mapping[str, Any], encoding: Encoding) -> None:
        super().__init__()
        self._tree = tree
        self._encoding = encoding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response (ASGI)."""
        accept = ",".join(Headers(scope=scope).getlist("accept"))
        if _prefers_safetensors(accept):
            await self._send_safetensors(send)
            return
        parts = _join_small(_json(self._tree, self._encoding))
        first = next(parts, b"")
        if len(first) < _PART_BYTES:  # the whole response
            await Response(first, media_type="application/json")(scope, receive, send)
        else:
            await _send_json(first, parts, send)

    async def _send_safetensors(self, send: Send) -> None:
        parts = safetensors.write(self._tree)
        length = sum(part.nbytes for part in parts)
        await _send_start(send, safetensors.MEDIA_TYPE, (b"content-length", str(length).encode()))
        for part in parts:
            for start in range(0, len(part), _PART_BYTES):
                await _send_part(send, part[start : start + _PART_BYTES])
        await _send_end(send)


async def _send_json(first: bytes, others: Iterator[bytes], send: Send) -> None:
    """Send parts; all but the first are serialised in a thread, and each is freed before the next."""
    await _send_start(send, "application/json")
    await _send_part(send, first)
    del first
    while part := await run_in_threadpool(next, others, b""):
        await _send_part(send, part)
    await _send_end(send)


async def _send_start(send: Send, media_type: str, *headers: tuple[bytes, bytes]) -> None:
    content_type = (b"content-type", media_type.encode())
    await send({"type": "http.response.start", "status": 200, "headers": [content_type, *headers]})


async def _send_part(send: Send, part: bytes | memoryview) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


async def _send_end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_response(parts: Sequence[bytes], status: int = 200) -> Response:
    """Return the response of a JSON text in parts."""
    return Response(b"".join(parts), status, media_type="application/json")


def _prefers_safetensors(accept: str) -> bool:
    """Whether an Accept header names safetensors, and does not prefer JSON to it."""
    qualities = {"application/json": 0.0, safetensors.MEDIA_TYPE: 0.0}
    for part in accept.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        if name in qualities:
            given = next((word[2:] for word in parameters if word.startswith("q=")), "1")
            qualities[name] = float(given) if given.replace(".", "", 1).isdecimal() else 0.0
    return qualities[safetensors.MEDIA_TYPE] > 0 and qualities[safetensors.MEDIA_TYPE] >= qualities["application/json"]


def _join_small(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join parts to ``_PART_BYTES`` or more each, but for the last."""
    joined = bytearray()
    for part in parts:
        joined += part
        if len(joined) >= _PART_BYTES:
            yield bytes(joined)
            joined.clear()
    if joined:
        yield bytes(joined)


def _json(value: Any, encoding: Encoding) -> Iterator[bytes]:
    if isinstance(value, dict) and encoding == "list" and _count_entries(value) <= _PART_ENTRIES:
        yield to_json(value, inf_nan_mode="null", fallback=np.ndarray.tolist)  # in one call, which is faster
    elif isinstance(value, np.ndarray):
        yield from _list(value) if encoding == "list" else _base64(value)
    elif isinstance(value, dict):
        yield b"{"
        for position, (name, entry) in enumerate(value.items()):
            yield (b"," if position else b"") + to_json(name) + b":"
            yield from _json(entry, "list" if name in _PLAIN_PARTS else encoding)
        yield b"}"
    else:
        yield to_json(value, inf_nan_mode="null")


def _count_entries(tree: Mapping[str, Any]) -> int:
    """Return the number of entries of all arrays."""
    entries = 0
    for value in tree.values():
        if isinstance(value, np.ndarray):
            entries += value.size
        elif isinstance(value, dict):
            entries += _count_entries(value)
    return entries


def _list(array: Array) -> Iterator[bytes]:
    if array.size <= _PART_ENTRIES or array.ndim == 0:
        yield to_json(array.tolist(), inf_nan_mode="null")
        return
    row = array.size // len(array)
    rows = max(1, _PART_ENTRIES // row)
    for start in range(0, len(array), rows):
        yield b"," if start else b"["
        if row > _PART_ENTRIES:
            yield from _list(array[start])
        else:
            yield to_json(array[start : start + rows].tolist(), inf_nan_mode="null")[1:-1]
    yield b"]"


def _base64(array: Array) -> Iterator[bytes]:
    yield b'{"dtype":"<f8","shape":' + to_json(list(array.shape)) + b',"b64":"'
    data = np.ascontiguousarray(array, dtype="<f8").reshape(-1).view(np.uint8).data
    size = 3 * _PART_ENTRIES  # bytes; a multiple of three, so that only the last part is padded
    for start in range(0, len(data), size):
        yield base64.b64encode(data[start : start + size])
    yield b'"}'
