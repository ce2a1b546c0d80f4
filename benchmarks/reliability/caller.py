"""One caller with one connection, as light as can be, so that little of what is measured is its own."""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

__all__ = ["Answer", "Caller"]

_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: of HTTP; 0 where the connection was lost.
        seconds: from the first byte sent to the last one received.
        body: the body.
        retry_after: the header of this name.
    """

    status: int
    seconds: float
    body: bytes
    retry_after: str | None


@final
class Caller:
    """A connection that is kept; a context manager.

    Args:
        address: of the server.
        headers: of every request, beside the type of its body.
        timeout_s: for how long the next byte is waited for.
    """

    def __init__(
        self, address: tuple[str, int], headers: Mapping[str, str] | None = None, timeout_s: float = 120.0
    ) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=timeout_s)
        self._headers = dict(headers or {})

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(self, path: str) -> Answer:
        """GET."""
        return self._request("GET", path, None, {})

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """POST, of JSON unless the headers say otherwise."""
        return self._request("POST", path, body, {**_JSON, **(headers or {})})

    def _request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        start = time.perf_counter()
        try:
            self._connection.request(method, path, body, {**self._headers, **headers})
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return Answer(0, time.perf_counter() - start, b"", None)
        return Answer(response.status, time.perf_counter() - start, content, response.headers.get("Retry-After"))
