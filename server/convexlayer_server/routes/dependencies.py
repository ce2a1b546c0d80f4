"""FastAPI dependencies of the endpoints.

Each is a coroutine, although none awaits: Starlette would run a plain function in a thread.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import Depends, Request

from ..admission.memory import Reservation
from ..http.request_body import BodyReader
from ..service import Service

__all__ = ["Owner", "ServiceDependency", "body_reader", "owner_of", "reservation_of", "service_of"]


async def _service(request: Request) -> Service:
    return service_of(request)


async def _owner(request: Request) -> str:
    return owner_of(request)


def service_of(request: Request) -> Service:
    """Return the service that received a request."""
    service: Service = request.app.state.service
    return service


def owner_of(request: Request) -> str:
    """Return the ID of the request's key; empty if the service has no keys."""
    return str(request.scope["state"].get("owner", ""))


def reservation_of(request: Request) -> Reservation:
    """Return the memory reservation that the gate opened for a request."""
    reservation: Reservation = request.state.reservation
    return reservation


def body_reader(request: Request) -> BodyReader:
    """Return the reader of a request's body, which accounts for its memory."""
    service, reservation = service_of(request), reservation_of(request)
    reserve = partial(reservation.reserve, "body")
    return BodyReader(request, service.settings, service.parsers, owner_of(request), reserve)


ServiceDependency = Annotated[Service, Depends(_service)]
Owner = Annotated[str, Depends(_owner)]
"""ID of the key that owns the request, and the problems, states and jobs that it may use."""
