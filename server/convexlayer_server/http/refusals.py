"""Responses to connections and requests that are refused before the application sees them, as problem details."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import final

from ..errors import RETRY_S
from ..settings import Settings
from . import problem_details

__all__ = ["Refusal", "Refusals"]


@final
class Refusal:
    """One reason for a refusal.

    Args:
        status: HTTP status.
        slug: end of the problem type, and label of the metric.
        title: title of the problem.
        detail: detail of the problem.

    Attributes:
        slug: end of the problem type, and label of the metric.
        response: bytes of the response, after which the connection is closed.
    """

    def __init__(self, status: HTTPStatus, slug: str, title: str, detail: str) -> None:
        self.slug = slug
        body = problem_details.serialise(status, slug, title, detail)
        lines = [
            f"HTTP/1.1 {status} {status.phrase}",
            f"Content-Type: {problem_details.MEDIA_TYPE}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        lines += [f"Retry-After: {math.ceil(RETRY_S)}"] if status is HTTPStatus.SERVICE_UNAVAILABLE else []
        self.response = "\r\n".join([*lines, "", ""]).encode("ascii") + body


@final
class Refusals:
    """All reasons for refusals, with the limits of the settings in their details.

    Attributes:
        malformed: the data is not HTTP.
        head_too_large: the head of a request, its trailers or chunk extensions are too large.
        head_timeout: the head, or the rest of a request that was answered early, did not arrive in time.
        idle: the connection was idle while others needed its place.
        too_many: there are too many connections.
        too_many_per_address: there are too many connections from one address.
        too_many_pipelined: there are too many pipelined requests.
    """

    def __init__(self, settings: Settings) -> None:
        self.malformed = Refusal(
            HTTPStatus.BAD_REQUEST, "malformed", "Malformed request", "the request is not HTTP/1.1 or HTTP/1.0"
        )
        self.head_too_large = Refusal(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            "head-too-large",
            "The head of the request is too large",
            f"a request has at most {settings.max_head_bytes} bytes and {settings.max_headers} fields in its head",
        )
        self.head_timeout = Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            "head-timeout",
            "Request timeout",
            f"no complete request head arrived within {settings.head_s:g} s",
        )
        self.idle = Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            "idle-connection",
            "Idle connection closed",
            "the connection was idle while the server had no room for others; send the request on a new connection",
        )
        self.too_many = Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "too-many-connections",
            "Too many connections",
            "the server has reached its limit of connections; try again",
        )
        self.too_many_per_address = Refusal(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "too-many-connections-per-address",
            "Too many connections",
            f"one address may open {settings.max_connections_per_address} connections; close some, or reuse them",
        )
        self.too_many_pipelined = Refusal(
            HTTPStatus.BAD_REQUEST,
            "too-many-pipelined",
            "Too many pipelined requests",
            "too many requests were sent on one connection before earlier ones were answered",
        )
