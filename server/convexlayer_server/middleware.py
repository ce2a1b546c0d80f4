"""What surrounds every request: an id, its line in the log, its metrics, and a cap on the body."""

from __future__ import annotations

import logging
import random
import re
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import CallerLeftError, TooLargeError
from .metrics import Metrics
from .trace import Trace, current_trace

__all__ = ["BodyLimit", "Observation"]

_LOG = logging.getLogger("convexlayer_server.access")
_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_WITHOUT_BODY = {"DELETE", "GET", "HEAD"}
_PROBES = {"/healthz", "/readyz", "/metrics"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Observation:
    """Gives each request an id, the caller's own where it is well-formed, and tells log and metrics what became of it.

    The id comes back in ``X-Request-Id``. A ``Location`` on this server begins with the path under which a proxy shows
    it; a proxy may strip that path from what it passes on, or not.

    A caller who leaves before the end of the answer, wherever that is noticed, is no error of the server's: it is told
    as status 499, as others do.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, root_path: str) -> None:
        self._app = app
        self._metrics = metrics
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        trace = current_trace(begin=Trace(given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"))
        scope.setdefault("state", {})["request_id"] = trace.request_id
        scope["root_path"] = self._root_path
        started = time.perf_counter()
        status = 500  # of an answer that is written outside, because of a bug
        ended = False

        async def send_observed(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                told = (b"x-request-id", trace.request_id.encode())
                message["headers"] = [told, *map(self._placed, message.get("headers", ()))]
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
            if not ended:
                status = CallerLeftError.status  # a stream ends before its end where nobody reads on
        except (CallerLeftError, ClientDisconnect):
            status = CallerLeftError.status
        finally:
            self._tell(scope, status, time.perf_counter() - started, trace)

    def _placed(self, header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        """A header of an answer as it is to be sent."""
        name, value = header
        return (name, self._root_path.encode() + value) if name == b"location" and value.startswith(b"/") else header

    def _tell(self, scope: Scope, status: int, seconds: float, trace: Trace) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(method, route, status).observe(seconds)
        facts = {name: fact for name, fact in vars(trace).items() if fact not in (None, "")}
        facts |= {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
        facts["client"] = (scope.get("client") or ("",))[0]  # a proxy's word for it, where its headers are believed
        level = logging.DEBUG if route in _PROBES else logging.INFO
        _LOG.log(level, "%s %s %d %.1f ms", method, route, status, 1000 * seconds, extra=facts)


class BodyLimit:
    """Stops reading a body at the limit: with its declared length where there is one, else as the bytes come.

    Where no body is read there may be none: what nobody reads would come as long as an answer, such as events, lasts.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        declared_bytes = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else 0
        if scope["method"] in _WITHOUT_BODY and (declared_bytes or "transfer-encoding" in headers):
            raise TooLargeError(f"a {scope['method']} request has no body here")
        received_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal received_bytes
            if declared_bytes <= self._limit_bytes:
                message = await receive()
                received_bytes += len(message.get("body", b""))
                if received_bytes <= self._limit_bytes:
                    return message
            raise TooLargeError(f"the body exceeds {self._limit_bytes} bytes")

        await self._app(scope, receive_within_limit, send)
