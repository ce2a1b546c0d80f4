"""A minimal HTTP client with one connection, so that its own overhead is small."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

__all__ = ["HttpClient", "Response"]

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Response:
    """A response.

    Attributes:
        status: HTTP status; 0 if the connection was lost.
        seconds: time from the first byte sent to the last byte received.
        body: the body.
        retry_after: the Retry-After header.
    """

    status: int
    seconds: float
    body: bytes
    retry_after: str | None


@final
class HttpClient:
    """A client with a persistent connection; a context manager.

    Args:
        address: address of the server.
        headers: headers of every request, in addition to Content-Type.
        timeout_s: seconds to wait for the next byte.
    """

    def __init__(
        self, address: tuple[str, int], headers: Mapping[str, str] | None = None, timeout_s: float = 120.0
    ) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=timeout_s)
        self._headers = dict(headers or {})

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> Response:
        """Send a GET request."""
        return self._request("GET", path, None, {})

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
        """Send a POST request, by default with JSON."""
        return self._request("POST", path, body, {**_JSON, **(headers or {})})

    def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Response:
        start = time.perf_counter()
        try:
            self._connection.request(method, path, body, {**self._headers, **headers})
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return Response(0, time.perf_counter() - start, b"", None)
        return Response(response.status, time.perf_counter() - start, content, response.headers.get("Retry-After"))
