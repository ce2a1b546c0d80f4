"""A request and the reader of its reply, without any HTTP.

A client sends ``Call.request(form)`` by whatever library it likes, and hands the reply to ``Call.result``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, final

import numpy as np

from convexlayer_client import binary
from convexlayer_client.arrays import encode
from convexlayer_client.errors import API_ERRORS, ApiError, EncodingError, FieldError, ProtocolError

__all__ = ["Call", "Form", "Reply", "Request", "api_error"]

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
        otherwise: What to send where the server no longer has the state that the body names (410).
    """

    method: str
    path: str
    read: Callable[[Any], T]
    body: Mapping[str, Any] | None = None
    arrays: bool = False
    idempotent: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    otherwise: Call[T] | None = None

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
        try:
            content = binary.write(self.body) if packed else _json(self._plain())
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodingError(
                f"{self.method} {self.path}: expected plain JSON with finite numbers, got something else: {error}"
            ) from error
        return Request(self.method, self.path, headers, content)

    def result(self, reply: Reply) -> T:
        """What a reply says.

        Raises:
            ApiError: The server refused or failed; the class says which status.
            ProtocolError: The reply is not one of this API.
        """
        if reply.status >= 400:
            raise api_error(reply)
        payload = _decoded(reply) if reply.content else None
        try:
            return self.read(payload)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"{self.method} {self.path}: the answer lacks what this client expects ({error!r}); "
                "is the server a Convexlayer server of the same version?"
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


def api_error(reply: Reply) -> ApiError:
    """The error of a refused request, from its problem document where it has one (a proxy's answer has none)."""
    try:
        document = json.loads(reply.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": reply.content.decode("utf-8", "replace")[:200]}
    return API_ERRORS.get(reply.status, ApiError)(
        status=reply.status,
        type=document.get("type", "about:blank"),
        title=document.get("title", "The server answered with an error"),
        detail=document.get("detail", ""),
        errors=[
            FieldError(error.get("pointer", ""), error.get("detail", ""))
            for error in document.get("errors") or ()
            if isinstance(error, dict)
        ],
        request_id=document.get("request_id") or reply.headers.get("x-request-id"),
        retry_after_s=_seconds(reply.headers.get("retry-after")),
    )


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not used by this API."""
    return float(text) if text is not None and text.strip().isdigit() else None
