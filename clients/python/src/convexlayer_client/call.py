"""Calls: a request and the parser of its response, independent of an HTTP library.

A client sends ``Call.request(form)`` with any library, and passes the response to ``Call.result``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar, final

import numpy as np

from convexlayer_client import safetensors
from convexlayer_client.arrays import encode
from convexlayer_client.errors import API_ERRORS, ApiError, EncodingError, FieldError, ProtocolError
from convexlayer_client.operations import Operation
from convexlayer_client.results import ApiResult

__all__ = ["BatchSlice", "Call", "Form", "Reply", "Request"]

T = TypeVar("T")

Form = Literal["binary", "json"]
"""Encoding of arrays: safetensors, or base64 in JSON."""

_JSON = "application/json"

_MAX_QUOTED = 200
"""Characters of a body without problem details that an error quotes."""


@final
@dataclass(frozen=True)
class Request:
    """An HTTP request: method, path below the server's URL, headers, and body if it has one."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes | None


@final
@dataclass(frozen=True)
class Reply:
    """An HTTP response: status, headers by lower-case name, and body."""

    status: int
    headers: Mapping[str, str]
    content: bytearray

    @property
    def request_id(self) -> str | None:
        """ID of the request in the server's log."""
        return self.headers.get("x-request-id")


@final
@dataclass(frozen=True)
class BatchSlice:
    """Elements ``start`` to ``stop - 1`` of a batch of ``batch`` elements."""

    start: int
    stop: int
    batch: int

    def __len__(self) -> int:
        return self.stop - self.start


@final
@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and the parser of its response.

    Attributes:
        method: HTTP method.
        path: Path below the server's URL.
        read: Converts the decoded body of a successful response to the result.
        body: Plain JSON, with arrays as values or one level deeper; None for no body.
        arrays: Whether request and response may contain arrays, and so be encoded as safetensors.
        idempotent: Whether it may be retried when it is unknown whether it arrived.
        headers: Additional headers.
        request_id: ID in the server's log; None lets the server choose one.
        problem_id: ID of the problem, if it computes.
        operation: Operation that it computes; a batch that is too large is then sent in parts.
        batch_slice: The elements of the batch that it computes, if known.
        fallback: Call to send instead if the state that the body names has expired (410).
    """

    method: str
    path: str
    read: Callable[[Any], T]
    body: Mapping[str, Any] | None = None
    arrays: bool = False
    idempotent: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None
    problem_id: str = ""
    operation: Operation[T] | None = None
    batch_slice: BatchSlice | None = None
    fallback: Call[T] | None = None

    @property
    def alternatives(self) -> Iterator[Call[T]]:
        """The call and its fallbacks, in order of preference."""
        level: Call[T] | None = self
        while level is not None:
            yield level
            level = level.fallback

    def request(self, form: Form = "binary") -> Request:
        """Return the request with arrays in a form; the client adds authentication.

        Raises:
            EncodingError: The body is not plain JSON.
        """
        packed = self.arrays and form == "binary"
        headers = {"Accept": f"{safetensors.MEDIA_TYPE}, {_JSON};q=0.5" if packed else _JSON, **self.headers}
        if self.body is None:
            return Request(self.method, self.path, headers, None)
        headers["Content-Type"] = safetensors.MEDIA_TYPE if packed else _JSON
        with self._plain_json():
            content = safetensors.write(self.body) if packed else _json(self._plain())
        return Request(self.method, self.path, headers, content)

    def size_bytes(self, form: Form) -> int:
        """Return the bytes of the body; for JSON an upper bound, since base64 has four characters for three bytes.

        Raises:
            EncodingError: The body is not plain JSON.
        """
        with self._plain_json():
            size = safetensors.size_bytes(self.body or {})
        return size if form == "binary" else -(-4 * size // 3)

    def result(self, reply: Reply) -> T:
        """Parse a response.

        Raises:
            ApiError: The server responded with an error; the class depends on the status.
            ProtocolError: The response is not one of this API.
        """
        if reply.status >= 400:
            raise _api_error(reply, self.batch_slice)
        payload = _decoded(reply) if reply.content else None
        try:
            result = self.read(payload)
            return replace(result, request_id=reply.request_id) if isinstance(result, ApiResult) else result
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"{self.method} {self.path}: the response is not what this client expects ({error!r}); "
                "is the server a Convexlayer server of the same version?"
            ) from error

    @contextmanager
    def _plain_json(self) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodingError(
                f"{self.method} {self.path}: the body is not plain JSON with finite numbers: {error}"
            ) from error

    def _plain(self) -> Any:
        """Return the body with arrays in base64, and request base64 in the response."""
        if not self.arrays or self.body is None:
            return self.body
        plain = {
            part: {name: _plain(entry) for name, entry in value.items()} if isinstance(value, Mapping) else value
            for part, value in self.body.items()
        }
        return plain | {"encoding": "base64"}


def _plain(value: Any) -> Any:
    return encode(value) if isinstance(value, np.ndarray) else value


def _json(body: Any) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("utf-8")


def _decoded(reply: Reply) -> Any:
    if reply.headers.get("content-type", "").startswith(safetensors.MEDIA_TYPE):
        return safetensors.read(reply.content)
    try:
        return json.loads(reply.content)
    except ValueError as error:
        raise ProtocolError(f"status {reply.status}, but the body is not JSON: {error}") from error


def _api_error(reply: Reply, batch_slice: BatchSlice | None) -> ApiError:
    """Return the error of a response, from its problem details; a proxy may send none, or members of other types."""
    try:
        document = json.loads(reply.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": reply.content.decode("utf-8", "replace")[:_MAX_QUOTED]}
    errors = document.get("errors")
    where = ""
    if batch_slice is not None and len(batch_slice) < batch_slice.batch:
        where = f"in the part of elements {batch_slice.start} to {batch_slice.stop - 1} of {batch_slice.batch}: "
    return API_ERRORS.get(reply.status, ApiError)(
        status=reply.status,
        type=str(document.get("type", "about:blank")),
        title=str(document.get("title", "The server responded with an error")),
        detail=f"{where}{document.get('detail', '')}",
        errors=[
            FieldError(str(error.get("pointer", "")), str(error.get("detail", "")))
            for error in (errors if isinstance(errors, list) else ())
            if isinstance(error, dict)
        ],
        request_id=document.get("request_id") or reply.request_id,
        retry_after_s=_seconds(reply.headers.get("retry-after")),
    )


def _seconds(text: str | None) -> float | None:
    """Parse Retry-After in seconds; this API does not use its other form, a date."""
    return float(text) if text is not None and text.strip().isdecimal() else None
