"""Middleware around every request: request IDs, access log, metrics, and the limit on body sizes."""

from __future__ import annotations

import logging
import random
import re
import time

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ClientDisconnectedError, TooLargeError
from ..observability.metrics import Metrics
from ..observability.tracing import RequestContext, set_context

__all__ = ["BodyLimit", "RequestObserver"]

_LOG = logging.getLogger("convexlayer_server.access")

_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
"""Methods that are labels of metrics; all others are OTHER, so that clients cannot create labels."""

_WITHOUT_BODY = {"DELETE", "GET", "HEAD"}
"""Methods whose requests have no body here."""

_PROBES = {"/healthz", "/readyz", "/metrics"}
"""Routes that monitoring requests every few seconds, which are logged at the level DEBUG."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""IDs of clients that are safe to write to logs and headers."""


class RequestObserver:
    """ASGI middleware: gives each request an ID, and reports it to the access log and the metrics.

    A well-formed ``X-Request-Id`` of the client is used as the ID, and every response has the header. ``Location``
    headers get the root path under which a reverse proxy shows the service, whether or not the proxy strips it.

    If the client disconnects before the end of the response, the reported status is 499, as in nginx.

    Args:
        app: the application.
        metrics: receives durations by method, route and status.
        root_path: path under which a reverse proxy shows the service.
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
        request_id = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        context = set_context(RequestContext(request_id))
        scope.setdefault("state", {})["request_id"] = request_id
        scope["root_path"] = self._root_path
        started = time.perf_counter()
        status = 500  # of a response to an unexpected exception, which is sent outside this middleware
        ended = False

        async def send_observed(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                id_header = (b"x-request-id", request_id.encode())
                message["headers"] = [id_header, *map(self._with_root_path, message.get("headers", ()))]
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
            if not ended:
                status = ClientDisconnectedError.status  # a stream ends early only if the client disconnects
        except (ClientDisconnectedError, ClientDisconnect):
            status = ClientDisconnectedError.status
        finally:
            self._report(scope, status, time.perf_counter() - started, context)

    def _with_root_path(self, header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        """Add the root path to a ``Location``."""
        name, value = header
        return (name, self._root_path.encode() + value) if name == b"location" and value.startswith(b"/") else header

    def _report(self, scope: Scope, status: int, seconds: float, context: RequestContext) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(method, route, status).observe(seconds)
        fields = {name: value for name, value in vars(context).items() if value not in (None, "")}
        fields |= {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
        fields["client"] = (scope.get("client") or ("",))[0]  # as a trusted proxy reports it, if there is one
        level = logging.DEBUG if route in _PROBES else logging.INFO
        _LOG.log(level, "%s %s %d %.1f ms", method, route, status, 1000 * seconds, extra=fields)


class BodyLimit:
    """ASGI middleware: refuses a body above the limit, by its declared length or as its bytes arrive.

    It also refuses bodies of methods that have none: unread, they could arrive for as long as a response, such as
    events, lasts.

    Args:
        app: the application.
        limit_bytes: bytes of a body.
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
            raise TooLargeError(f"a {scope['method']} request has no body")
        received_bytes = 0

        async def receive_limited() -> Message:
            nonlocal received_bytes
            if declared_bytes <= self._limit_bytes:
                message = await receive()
                received_bytes += len(message.get("body", b""))
                if received_bytes <= self._limit_bytes:
                    return message
            raise TooLargeError(f"the body exceeds {self._limit_bytes} bytes")

        await self._app(scope, receive_limited, send)
