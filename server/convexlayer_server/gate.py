"""Who may come in: before anything of a body is read, so that refusing costs next to nothing.

What is held for those who are in is counted from here on, and is held no longer than they stay.
"""

from __future__ import annotations

from contextlib import nullcontext

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import problems
from .errors import CallerLeftError, RequestError
from .memory import HeldBytes
from .presence import Presence
from .service import Service, path_of
from .trace import current_trace

__all__ = ["Gate"]

_GUARDED = ("/v1/", "/metrics")
_COMPUTING = "/v1/problems"

_PIECE_BYTES = 2**18
"""What is handed to the server at a time: it takes the next piece once the caller has read most of the last."""


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
        try:
            if scope["type"] == "http" and path_of(scope).startswith(_GUARDED):
                await self._enter(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        except CallerLeftError:
            raise
        except RequestError as error:  # of this gate and what is between: the application answers its own
            self._service.metrics.refused.labels(error.slug).inc()
            await problems.answer(Request(scope), error)(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        computing = scope["method"] == "POST" and path_of(scope).startswith(_COMPUTING)
        caller = service.keyring.caller(Headers(scope=scope).get("authorization", ""))
        scope["state"]["owner"] = current_trace().key_id = caller.id
        arriving = service.engine.arriving(caller.id) if computing else nullcontext()
        with arriving, service.limits.entered(caller, computing=computing), service.memory.opened(caller.id) as held:
            service.ledger.count(caller.id, requests=1)
            scope["state"]["held"] = held
            async with Presence(receive, send) as presence:
                await self._app(scope, presence.receive, _in_pieces(presence.send, held))


def _in_pieces(send: Send, held: HeldBytes) -> Send:
    """Send no more at a time than a piece, the rest being held until it is sent."""

    async def send_in_pieces(message: Message) -> None:
        body = message.get("body", b"")
        if len(body) <= _PIECE_BYTES:
            await send(message)
            return
        held.note("answer", len(body))
        view = memoryview(body)
        for start in range(0, len(view), _PIECE_BYTES):
            more = start + _PIECE_BYTES < len(view) or message.get("more_body", False)
            await send({**message, "body": view[start : start + _PIECE_BYTES], "more_body": more})
        held.note("answer", 0)

    return send_in_pieces
