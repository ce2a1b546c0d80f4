"""A request and the reader of its reply, without any HTTP.

A client sends ``Call.request(form)`` by whatever library it likes, and hands the reply to ``Call.result``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar, final

import numpy as np

from convexlayer_client import binary
from convexlayer_client.arrays import encode
from convexlayer_client.errors import API_ERRORS, ApiError, EncodingError, FieldError, ProtocolError
from convexlayer_client.operations import Operation
from convexlayer_client.results import Answer

__all__ = ["Call", "Form", "Reply", "Request", "Rows"]

T = TypeVar("T")

Form = Literal["binary", "json"]
"""How arrays travel: as safetensors, or in base64 in JSON."""

_JSON = "application/json"


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
        """What the server's log calls the request."""
        return self.headers.get("x-request-id")


@final
@dataclass(frozen=True)
class Rows:
    """Elements of a batch, from ``start`` up to but not including ``stop`` of ``batch``."""

    start: int
    stop: int
    batch: int

    def __len__(self) -> int:
        return self.stop - self.start


@final
@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and how its reply is read.

    Attributes:
        method: HTTP method.
        path: Path below the server's URL.
        read: From the decoded body of a successful reply to the result.
        body: What is sent: plain JSON, with arrays as values or one level deeper; None for no body.
        arrays: Whether body and reply hold arrays, and so may take the binary form.
        idempotent: Whether it may be sent again where it is not known if it arrived.
        headers: Headers of its own.
        request_id: What the server's log is to call it, where that is not left to the server.
        problem_id: The problem that it is about, and
        operation: what it computes, where it does; then a batch that is too large is sent in parts.
        rows: The elements that it computes, of all that were asked for, where that is known.
        otherwise: What to send where the server no longer has the state that the body names (410).
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
    rows: Rows | None = None
    otherwise: Call[T] | None = None

    @property
    def levels(self) -> Iterator[Call[T]]:
        """The call, and what is sent otherwise, in the order of preference."""
        level: Call[T] | None = self
        while level is not None:
            yield level
            level = level.otherwise

    def request(self, form: Form = "binary") -> Request:
        """The request, its arrays in a form; authentication is the client's.

        Raises:
            EncodingError: The body is not plain JSON.
        """
        packed = self.arrays and form == "binary"
        headers = {"Accept": f"{binary.MEDIA_TYPE}, {_JSON};q=0.5" if packed else _JSON, **self.headers}
        if self.body is None:
            return Request(self.method, self.path, headers, None)
        headers["Content-Type"] = binary.MEDIA_TYPE if packed else _JSON
        with self._plain_json():
            content = binary.write(self.body) if packed else _json(self._plain())
        return Request(self.method, self.path, headers, content)

    def size_bytes(self, form: Form) -> int:
        """Bytes of the body in a form: in JSON at most so many, for base64 has four for every three.

        Raises:
            EncodingError: The body is not plain JSON.
        """
        with self._plain_json():
            size = binary.size_bytes(self.body or {})
        return size if form == "binary" else -(-4 * size // 3)

    def result(self, reply: Reply) -> T:
        """What a reply says.

        Raises:
            ApiError: The server refused or failed; the class says which status.
            ProtocolError: The reply is not one of this API.
        """
        if reply.status >= 400:
            raise _api_error(reply, self.rows)
        payload = _decoded(reply) if reply.content else None
        try:
            result = self.read(payload)
            return replace(result, request_id=reply.request_id) if isinstance(result, Answer) else result
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"{self.method} {self.path}: the answer lacks what this client expects ({error!r}); "
                "is the server a Convexlayer server of the same version?"
            ) from error

    @contextmanager
    def _plain_json(self) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodingError(
                f"{self.method} {self.path}: expected plain JSON with finite numbers, got something else: {error}"
            ) from error

    def _plain(self) -> Any:
        """The body with its arrays in base64, asked for in base64, too."""
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
    if reply.headers.get("content-type", "").startswith(binary.MEDIA_TYPE):
        return binary.read(reply.content)
    try:
        return json.loads(reply.content)
    except ValueError as error:
        raise ProtocolError(f"status {reply.status}, but the body is not JSON: {error}") from error


def _api_error(reply: Reply, rows: Rows | None) -> ApiError:
    """The error of a refused request, from its problem document where it has one (a proxy's answer has none)."""
    try:
        document = json.loads(reply.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": reply.content.decode("utf-8", "replace")[:200]}
    where = ""
    if rows is not None and len(rows) < rows.batch:
        where = f"in the part of elements {rows.start} to {rows.stop - 1} of {rows.batch}: "
    return API_ERRORS.get(reply.status, ApiError)(
        status=reply.status,
        type=document.get("type", "about:blank"),
        title=document.get("title", "The server answered with an error"),
        detail=where + document.get("detail", ""),
        errors=[
            FieldError(error.get("pointer", ""), error.get("detail", ""))
            for error in document.get("errors") or ()
            if isinstance(error, dict)
        ],
        request_id=document.get("request_id") or reply.request_id,
        retry_after_s=_seconds(reply.headers.get("retry-after")),
    )


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not used by this API."""
    return float(text) if text is not None and text.strip().isdigit() else None
