"""The gate: authentication, limits and memory accounting before a body is read, so that a refusal costs little."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ClientDisconnectedError, RequestError
from ..http import problem_details
from ..http.disconnect import CancelOnDisconnect
from ..http.request_info import path_of
from ..observability.metrics import Metrics
from ..observability.tracing import current_context
from .admission_queue import AdmissionQueue
from .keys import Keyring
from .limits import Limits
from .memory import MemoryBudget, Reservation
from .usage import UsageLedger

__all__ = ["AdmissionControl", "Gate"]

_GUARDED = ("/v1/", "/metrics")
"""Beginnings of the paths that need a key, if the server has any."""

_COMPUTING = "/v1/problems"
"""Beginning of the paths whose POST requests use the compute backend."""

_SEND_BYTES = 2**18
"""Bytes sent at a time; uvicorn accepts more once the client has read most of them.

Smaller messages cost more calls; larger ones occupy uvicorn's buffer, which is not part of the reservation.
"""


@dataclass(frozen=True)
class AdmissionControl:
    """What decides on the admission of a request.

    Attributes:
        keyring: API keys.
        limits: rate and concurrency limits.
        queue: queue of the compute backend.
        memory: memory budget.
        ledger: usage.
        metrics: counts refused requests.
    """

    keyring: Keyring
    limits: Limits
    queue: AdmissionQueue
    memory: MemoryBudget
    ledger: UsageLedger
    metrics: Metrics


class Gate:
    """ASGI middleware: requires keys and enforces limits, but for probes, the index page and the OpenAPI document.

    It also cancels a request whose client disconnects.

    Args:
        app: the application.
        control: what decides on admission.
    """

    def __init__(self, app: ASGIApp, control: AdmissionControl) -> None:
        self._app = app
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request (ASGI)."""
        try:
            if scope["type"] == "http" and path_of(scope).startswith(_GUARDED):
                await self._serve(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        except ClientDisconnectedError:
            raise
        except RequestError as error:  # of the gate and the middleware inside it; the application handles its own
            self._control.metrics.refused.labels(error.slug).inc()
            await problem_details.error_response(Request(scope), error)(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        control = self._control
        computing = scope["method"] == "POST" and path_of(scope).startswith(_COMPUTING)
        principal = control.keyring.authenticate(Headers(scope=scope).get("authorization", ""))
        scope["state"]["owner"] = current_context().key_id = principal.id
        place = control.queue.admit(principal.id) if computing else nullcontext()
        with (
            place,
            control.limits.admit(principal, computing=computing),
            control.memory.open_reservation(principal.id) as reservation,
        ):
            control.ledger.count(principal.id, requests=1)
            scope["state"]["reservation"] = reservation
            async with CancelOnDisconnect(receive, send) as connection:
                await self._app(scope, connection.receive, _send_gradually(connection.send, reservation))


def _send_gradually(send: Send, reservation: Reservation) -> Send:
    """Send large messages in parts; their memory stays reserved until all parts are sent."""

    async def send_gradually(message: Message) -> None:
        body = message.get("body", b"")
        if len(body) <= _SEND_BYTES:
            await send(message)
            return
        reservation.set("response", len(body))
        view = memoryview(body)
        for start in range(0, len(view), _SEND_BYTES):
            more = start + _SEND_BYTES < len(view) or message.get("more_body", False)
            await send({**message, "body": view[start : start + _SEND_BYTES], "more_body": more})
        reservation.set("response", 0)

    return send_gradually
