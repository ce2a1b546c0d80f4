"""Answers: JSON or safetensors, as the request's Accept prefers; written in pieces, so that nobody waits for them.

An answer is a dictionary of plain values, with NumPy arrays as values or one level deeper. It is sent here, not as a
``StreamingResponse``: of one that is given up, anyio keeps the arrays until garbage is next collected.
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

from .arrays import Array, Encoding
from .encoding import binary

__all__ = ["BINARY_ANSWER", "Answer", "written"]

BINARY_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            binary.MEDIA_TYPE: {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "the JSON answer as safetensors, where Accept prefers it: arrays under their names "
                    "(variables/x), the rest as JSON text under 'body' in the metadata; NaN stays NaN",
                }
            }
        }
    }
}
"""What the OpenAPI document adds to routes that answer with arrays."""

_NUMBERS = ("objective", "residuals", "report")
"""Parts whose arrays are lists in JSON whatever the encoding: they have a number an element."""

_PIECE_ENTRIES = 2**14  # 3 ms of writing: a piece is written without a pause
_PIECE_BYTES = 2**18


@final
class Answer(Response):
    """The response that says what a dictionary holds, in the form that the request's Accept prefers.

    Args:
        tree: what to say; in JSON, NaN becomes null in lists and stays NaN in base64.
        encoding: form of arrays in JSON.
    """

    def __init__(self, tree: Mapping[str, Any], encoding: Encoding) -> None:
        super().__init__()
        self._tree = tree
        self._encoding = encoding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        accepted = ",".join(Headers(scope=scope).getlist("accept"))
        if _prefers_binary(accepted):
            await self._send_binary(send)
            return
        written = _gathered(_json(self._tree, self._encoding))
        first = next(written, b"")
        if len(first) < _PIECE_BYTES:  # all of it
            await Response(first, media_type="application/json")(scope, receive, send)
        else:
            await _send_json(first, written, send)

    async def _send_binary(self, send: Send) -> None:
        pieces = binary.write(self._tree)
        length = sum(piece.nbytes for piece in pieces)
        await _start(send, binary.MEDIA_TYPE, (b"content-length", str(length).encode()))
        for piece in pieces:
            for start in range(0, len(piece), _PIECE_BYTES):
                await _go_on(send, piece[start : start + _PIECE_BYTES])
        await _end(send)


async def _send_json(first: bytes, others: Iterator[bytes], send: Send) -> None:
    """All but the first piece are written in a thread; each is gone before the next one."""
    await _start(send, "application/json")
    await _go_on(send, first)
    del first
    while piece := await run_in_threadpool(next, others, b""):
        await _go_on(send, piece)
    await _end(send)


async def _start(send: Send, media_type: str, *headers: tuple[bytes, bytes]) -> None:
    content_type = (b"content-type", media_type.encode())
    await send({"type": "http.response.start", "status": 200, "headers": [content_type, *headers]})


async def _go_on(send: Send, piece: bytes | memoryview) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})


async def _end(send: Send) -> None:
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def written(pieces: Sequence[bytes], status: int = 200) -> Response:
    """The response that says what is JSON already, in pieces."""
    return Response(b"".join(pieces), status, media_type="application/json")


def _prefers_binary(accept: str) -> bool:
    """Whether safetensors is named, and JSON is not preferred to it."""
    qualities = {"application/json": 0.0, binary.MEDIA_TYPE: 0.0}
    for part in accept.lower().split(","):
        name, *parameters = (word.strip() for word in part.split(";"))
        if name in qualities:
            given = next((word[2:] for word in parameters if word.startswith("q=")), "1")
            qualities[name] = float(given) if given.replace(".", "", 1).isdecimal() else 0.0
    return qualities[binary.MEDIA_TYPE] > 0 and qualities[binary.MEDIA_TYPE] >= qualities["application/json"]


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of ``_PIECE_BYTES`` or more, but for the last."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        if len(gathered) >= _PIECE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _json(value: Any, encoding: Encoding) -> Iterator[bytes]:
    if isinstance(value, dict) and encoding == "list" and _entries(value) <= _PIECE_ENTRIES:
        yield to_json(value, inf_nan_mode="null", fallback=np.ndarray.tolist)  # at once: less to do
    elif isinstance(value, np.ndarray):
        yield from _list(value) if encoding == "list" else _base64(value)
    elif isinstance(value, dict):
        yield b"{"
        for position, (name, entry) in enumerate(value.items()):
            yield (b"," if position else b"") + to_json(name) + b":"
            yield from _json(entry, "list" if name in _NUMBERS else encoding)
        yield b"}"
    else:
        yield to_json(value, inf_nan_mode="null")


def _entries(tree: Mapping[str, Any]) -> int:
    """Of all arrays within."""
    entries = 0
    for value in tree.values():
        if isinstance(value, np.ndarray):
            entries += value.size
        elif isinstance(value, dict):
            entries += _entries(value)
    return entries


def _list(array: Array) -> Iterator[bytes]:
    if array.size <= _PIECE_ENTRIES or array.ndim == 0:
        yield to_json(array.tolist(), inf_nan_mode="null")
        return
    row = array.size // len(array)
    rows = max(1, _PIECE_ENTRIES // row)
    for start in range(0, len(array), rows):
        yield b"," if start else b"["
        if row > _PIECE_ENTRIES:
            yield from _list(array[start])
        else:
            yield to_json(array[start : start + rows].tolist(), inf_nan_mode="null")[1:-1]
    yield b"]"


def _base64(array: Array) -> Iterator[bytes]:
    yield b'{"dtype":"<f8","shape":' + to_json(list(array.shape)) + b',"b64":"'
    data = np.ascontiguousarray(array, dtype="<f8").reshape(-1).view(np.uint8).data
    size = 3 * _PIECE_ENTRIES  # bytes; a multiple of three, so that only the end is padded
    for start in range(0, len(data), size):
        yield base64.b64encode(data[start : start + size])
    yield b'"}'
