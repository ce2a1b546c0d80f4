"""Who may come in: before anything of a body is read, so that refusing costs next to nothing."""

from __future__ import annotations

from contextlib import nullcontext

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from . import problems
from .errors import RequestError
from .service import Service
from .trace import current_trace

__all__ = ["Gate"]

_GUARDED = ("/v1/", "/metrics")
_COMPUTING = "/v1/problems"


class Gate:
    """Asks for keys and keeps limits, on all paths but those of probes, of the page and of the document.

    Args:
        app: what is served within.
        service: its keyring, limits and engine.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request (ASGI)."""
        if scope["type"] != "http" or not _path(scope).startswith(_GUARDED):
            await self._app(scope, receive, send)
            return
        service = self._service
        computing = scope["method"] == "POST" and _path(scope).startswith(_COMPUTING)
        try:
            caller = service.keyring.caller(Headers(scope=scope).get("authorization", ""))
            scope["state"]["owner"] = current_trace().key_id = caller.id
            arriving = service.engine.arriving(caller.id) if computing else nullcontext()
            with arriving, service.limits.entered(caller, computing=computing):
                service.ledger.count(caller.id, requests=1)
                await self._app(scope, receive, send)
        except RequestError as error:  # of this gate: the application answers its own
            service.metrics.refused.labels(error.slug).inc()
            await problems.answer(Request(scope), error)(scope, receive, send)


def _path(scope: Scope) -> str:
    """The path below the root path, which a proxy may have stripped or not."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path
