"""Connections before and beside their requests: how many there may be, how large a head, and how slow.

uvicorn serves HTTP and httptools reads it; neither limits heads, nor the time that they take, nor how many connections
one address has, nor for how long an answer lies unread. So the protocol here is uvicorn's with these limits around it.
What it overrides are the callbacks of asyncio and httptools; of uvicorn's own names it uses ``connections``, ``cycle``,
``pipeline``, ``shutdown`` and ``send_400_response``.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
import os
import socket
import time
from collections import Counter
from typing import Any, Literal, cast, final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .addresses import Addresses
from .metrics import Metrics
from .refusals import Refusal, Refusals
from .service import Service
from .settings import Settings

__all__ = ["Connections", "Server", "configuration"]

_LOG = logging.getLogger(__name__)

_State = Literal["head", "work", "rest", "end"]
"""Waiting for a request's head; at work for a request; answered, though the request is not all there; to be closed."""

_MOST_PIPELINED = 16
"""Requests that a client may send before it is answered: each takes memory, and hardly any sends more than one."""

_MOST_DISCARDED = 2**18
_LINGER_S = 2.0
"""How much, and for how long, is still taken from a client that was refused, so that it can read why."""

_MOST_ENDING = 64
"""Connections that may linger so; beyond, they are closed at once."""

_GIVING_WAY = 16
"""Connections closed at a time to make room: to look for them takes a while."""

_TOLD_S = 5.0
"""How often the log tells of refusals."""


@final
class Server(uvicorn.Server):
    """uvicorn's server; told to stop it gives what is in work its last seconds, then fails it, and does not wait first.

    Args:
        config: made by ``configuration``.
        service: of the application that it serves.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop (uvicorn)."""
        closing = asyncio.create_task(self._service.engine.close())
        await super().shutdown(sockets)
        await closing


def configuration(app: FastAPI, settings: Settings, most: int | None = None) -> uvicorn.Config:
    """What uvicorn serves an application with.

    Args:
        app: made by ``create_app``.
        settings: of the application.
        most: connections at a time; those of the settings unless given.
    """
    connections = Connections(settings, app.state.service.metrics, settings.max_connections if most is None else most)
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", connections.opened),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        callback_notify=connections.sweep,
        timeout_notify=0,  # every second
        timeout_graceful_shutdown=math.ceil(settings.drain_s) + 1,
    )


@final
class Connections:
    """All connections of a server; every call comes from its event loop.

    Args:
        settings: the limits.
        metrics: what is told of refusals.
        most: connections at a time.
    """

    def __init__(self, settings: Settings, metrics: Metrics, most: int) -> None:
        self.settings = settings
        self.refusals = Refusals(settings)
        self._metrics = metrics
        self._most = most
        self._addresses = Addresses(settings.trusted_proxies, settings.max_connections_per_address)
        self._open: set[Connection] = set()
        self._ending: set[Connection] = set()
        self._all_work = False
        self._untold: Counter[str] = Counter()
        self._last_address = ""
        self._told = time.monotonic()
        metrics.connections.set_function(lambda: len(self._open) + len(self._ending))

    def opened(self, **given: Any) -> Connection:
        """The protocol of a new connection, made as uvicorn makes its own."""
        return Connection(self, **given)

    def admit(self, connection: Connection) -> Refusal | None:
        """Take in a connection; the reason where there is no room for it."""
        self._open.add(connection)
        if not self._addresses.add(connection.address):
            return self.refusals.too_many_of_address
        if len(self._open) > self._most and not self._make_room(connection):
            return self.refusals.too_many
        return None

    def ends(self, connection: Connection, slug: str) -> bool:
        """A connection is given up; whether it may linger."""
        self._open.discard(connection)
        self._ending.add(connection)
        self._metrics.refused.labels(slug).inc()
        self._untold[slug] += 1
        self._last_address = connection.address
        return len(self._ending) <= _MOST_ENDING

    def lost(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)
        self._ending.discard(connection)
        self._addresses.remove(connection.address)

    async def sweep(self) -> None:
        """End what takes too long, and tell the log of it; called every second."""
        try:
            now = time.monotonic()
            self._all_work = False
            for connection in [*self._open, *self._ending]:
                connection.tend(now)
            if now - self._told >= _TOLD_S:
                self._tell(now)
        except Exception:  # it is called from the server's main loop, which this must not end
            _LOG.exception("connections cannot be looked through")

    def _make_room(self, newest: Connection) -> bool:
        """Close those that have waited longest for a request; whether there were any."""
        if self._all_work:
            return False
        now = time.monotonic()
        waiting = [
            (connection.since(now), id(connection), connection)
            for connection in self._open
            if connection is not newest and connection.state != "work"
        ]
        self._all_work = not waiting
        for _, _, connection in heapq.nsmallest(_GIVING_WAY, waiting):
            connection.refuse(self.refusals.gives_way)
        return bool(waiting)

    def _tell(self, now: float) -> None:
        """Warn of what was refused, and of descriptors that have run out: then the system refuses, and tells nobody."""
        self._told = now
        for slug, count in self._untold.items():
            _LOG.warning("%d connections or requests were refused: %s; the last of %s", count, slug, self._last_address)
        self._untold.clear()
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            _LOG.warning("no descriptor can be had, so new connections are reset: %s", error)


@final
class Connection(HttpToolsProtocol):
    """One connection.

    Args:
        connections: all of them.
        given: what uvicorn gives its protocols.

    Attributes:
        address: of the client.
    """

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self.address = ""
        self._connections = connections
        self._settings = connections.settings
        self._over = False
        self._discarded_bytes = 0
        self._in_head = False
        self._head_bytes = self._fields = 0
        self._without_progress_bytes = 0  # that came since the read in which a head ended, or a piece of body came
        self._incomplete = False
        self._heads = 0
        self._fault: Refusal | None = None
        self._stalled_s: float | None = None
        self._noticed: tuple[_State, int] = ("head", 0)
        self._noticed_s = time.monotonic()

    # What becomes of the connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin (asyncio)."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        refusal = self._connections.admit(self)
        if refusal is not None:
            self.refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """End (asyncio)."""
        super().connection_lost(exc)
        self._connections.lost(self)

    def pause_writing(self) -> None:
        """The client reads more slowly than is written (asyncio)."""
        self._stalled_s = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has read most of it (asyncio)."""
        self._stalled_s = None
        super().resume_writing()

    @property
    def state(self) -> _State:
        """What it is at."""
        cycle, closing = self.cycle, self.transport.is_closing()
        if cycle is not None and not cycle.response_complete and not cycle.disconnected and not closing:
            return "work"
        if self._over or closing:
            return "end"
        return "rest" if self._incomplete else "head"

    def since(self, now: float) -> float:
        """When it was first seen at what it is at."""
        at = (self.state, self._heads)
        if at != self._noticed:
            self._noticed, self._noticed_s = at, now
        return self._noticed_s

    def tend(self, now: float) -> None:
        """End it where it takes too long."""
        took_s = now - self.since(now)
        if self._stalled_s is not None and now - self._stalled_s > self._settings.send_s:
            self._abort("unread")
        elif self.state == "end":
            if took_s > (_LINGER_S if self._over else self._settings.send_s):
                self.transport.abort()
        elif self.state != "work" and took_s > self._settings.head_s:
            self.refuse(self._connections.refusals.head_timeout)

    def refuse(self, refusal: Refusal) -> None:
        """Read no more, and close it: at once where no answer is due, else after that."""
        if self._over:
            return
        self._over = True
        lingers = self._connections.ends(self, refusal.slug)
        if self.state == "work":
            if self.cycle.response_started or not self.cycle.more_body or self.pipeline:
                self.shutdown()
                return
            super().connection_lost(ConnectionAbortedError(refusal.slug))  # for whoever reads the body, it is
            self.connections.add(self)
        elif self._incomplete:  # it was answered
            self.transport.close()
            return
        self.transport.write(refusal.answer)
        if lingers:
            self.transport.write_eof()
        else:
            self.transport.close()

    def shutdown(self) -> None:
        """Take no more requests, and close it after the one at work (uvicorn)."""
        if self.state == "end":
            self.transport.close()
        else:
            super().shutdown()

    def _abort(self, slug: str) -> None:
        self._over = True
        self._connections.ends(self, slug)
        self.transport.abort()

    # What is read of requests (httptools).

    def data_received(self, data: bytes) -> None:
        """Read what came (asyncio)."""
        if self._over:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > _MOST_DISCARDED:
                self.transport.pause_reading()
            return
        self._without_progress_bytes += len(data)
        super().data_received(data)
        if self._without_progress_bytes > self._settings.max_head_bytes:
            self.refuse(self._connections.refusals.head_too_large)

    def send_400_response(self, msg: str) -> None:
        """What was read is not understood (uvicorn)."""
        self.refuse(self._fault or self._connections.refusals.malformed)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = True
        self._head_bytes = self._fields = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the target of a request."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; or of the trailers, which nothing here has any use for."""
        self._fields += 1
        self._count(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head, self._incomplete = False, True
        self._heads += 1
        self._without_progress_bytes = 0
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._fail(self._connections.refusals.too_many_pipelined)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._without_progress_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is all there."""
        self._incomplete = False
        self._without_progress_bytes = 0
        super().on_message_complete()

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > self._settings.max_head_bytes or self._fields > self._settings.max_headers:
            self._fail(self._connections.refusals.head_too_large)

    def _fail(self, refusal: Refusal) -> None:
        """Let the parser stop here: it tells uvicorn of any exception, which answers by ``send_400_response``."""
        self._fault = refusal
        raise ValueError(refusal.slug)
