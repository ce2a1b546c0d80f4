"""What a client is told whose request is refused before it is one: problem documents, as everywhere."""

from __future__ import annotations

from http import HTTPStatus
from typing import final

from . import problems
from .settings import Settings

__all__ = ["Refusal", "Refusals"]

_RETRY_S = 1


@final
class Refusal:
    """One reason.

    Args:
        status: of HTTP.
        slug: for the type of the problem, and for metrics.
        title: of the problem.
        detail: one sentence for the reader.

    Attributes:
        answer: bytes of the response, after which the connection is closed.
    """

    def __init__(self, status: HTTPStatus, slug: str, title: str, detail: str) -> None:
        self.slug = slug
        body = problems.document(status, slug, title, detail)
        lines = [
            f"HTTP/1.1 {status} {status.phrase}",
            f"Content-Type: {problems.MEDIA_TYPE}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        lines += [f"Retry-After: {_RETRY_S}"] if status is HTTPStatus.SERVICE_UNAVAILABLE else []
        self.answer = "\r\n".join([*lines, "", ""]).encode("ascii") + body


@final
class Refusals:
    """All reasons, told with the limits of the settings.

    Attributes:
        malformed: it is not HTTP.
        head_too_large: of a request, or trailers, or extensions of chunks.
        head_timeout: the head did not come, or the rest of a request that was answered before.
        gives_way: it waited for a request while others had no room.
        too_many: there is no room for one more.
        too_many_of_address: its address has as many as it may.
        too_many_pipelined: requests were sent before those before were answered.
    """

    def __init__(self, settings: Settings) -> None:
        self.malformed = Refusal(
            HTTPStatus.BAD_REQUEST, "malformed", "The request cannot be read", "it is not HTTP/1.1 or HTTP/1.0"
        )
        self.head_too_large = Refusal(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            "head-too-large",
            "The head of the request is too large",
            f"at most {settings.max_head_bytes} bytes and {settings.max_headers} fields are read beside the body",
        )
        self.head_timeout = Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            "head-timeout",
            "The request did not come",
            f"no whole head of a request came within {settings.head_s:g} s",
        )
        self.gives_way = Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            "gives-way",
            "The request did not come",
            "no request came on this connection while others had no room; send it on a new one",
        )
        self.too_many = Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "too-many-connections",
            "Too many connections",
            "as many connections are at work as this server may have; try again",
        )
        self.too_many_of_address = Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "too-many-of-address",
            "Too many connections",
            f"one address may have {settings.max_connections_per_address} connections; close some, or keep them",
        )
        self.too_many_pipelined = Refusal(
            HTTPStatus.BAD_REQUEST,
            "too-many-pipelined",
            "Too many requests at once",
            "requests were sent on one connection before those before them were answered",
        )
