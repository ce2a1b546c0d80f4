"""Limits on connections that uvicorn lacks: their number, the size of request heads, and timeouts.

uvicorn serves HTTP and httptools parses it. Neither limits the size of heads, their duration, the number of connections
per address, or how long a response may stay unread. The protocol here adds these limits to uvicorn's. It overrides
callbacks of asyncio and httptools; of uvicorn's own names it uses ``connections``, ``cycle``, ``pipeline``,
``shutdown`` and ``send_400_response``.
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
from collections.abc import Awaitable, Callable
from typing import Any, Literal, cast, final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..observability.metrics import Metrics
from ..settings import Settings
from .address_limits import AddressCounter
from .refusals import Refusal, Refusals

__all__ = ["ConnectionManager", "Server", "configuration"]

_LOG = logging.getLogger(__name__)

_State = Literal["head", "work", "rest", "end"]
"""State of a connection.

    head    it waits for the head of a request
    work    a request is being served
    rest    a request was answered before all of its body arrived
    end     it is being closed
"""

_MAX_PIPELINED = 16
"""Requests that a client may send before it receives responses.

Each takes memory, and few clients send more than one.
"""

_MAX_DISCARDED_BYTES = 2**18
"""Bytes to read and discard from a refused client, so that it can read the refusal before the connection resets."""

_LINGER_S = 2.0
"""Seconds for which to do so."""

_MAX_LINGERING = 64
"""Connections that may linger; others are closed at once."""

_EVICTED_AT_ONCE = 16
"""Idle connections closed at a time to make room: finding them scans all connections, so that must not happen often."""

_REPORT_S = 5.0
"""Interval in seconds at which refusals are logged."""


@final
class Server(uvicorn.Server):
    """uvicorn's server; its shutdown lets running requests finish for ``drain_s``, and then fails them.

    Args:
        config: made by ``configuration``.
        close: closes the compute backend.
    """

    def __init__(self, config: uvicorn.Config, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._close = close

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down (uvicorn)."""
        closing = asyncio.ensure_future(self._close())
        await super().shutdown(sockets)
        await closing


def configuration(app: FastAPI, settings: Settings, metrics: Metrics, limit: int | None = None) -> uvicorn.Config:
    """Return the configuration with which uvicorn serves an application.

    Args:
        app: made by ``create_app``.
        settings: settings of the application.
        metrics: metrics of the application.
        limit: number of connections; ``max_connections`` by default.
    """
    connections = ConnectionManager(settings, metrics, settings.max_connections if limit is None else limit)
    return uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", connections.create_protocol),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        callback_notify=connections.enforce_timeouts,
        timeout_notify=0,  # every second
        timeout_graceful_shutdown=math.ceil(settings.drain_s) + 1,
    )


@final
class ConnectionManager:
    """All connections of a server; for use on its event loop.

    Args:
        settings: the limits.
        metrics: counts connections and refusals.
        limit: number of connections.
    """

    def __init__(self, settings: Settings, metrics: Metrics, limit: int) -> None:
        self.settings = settings
        self.refusals = Refusals(settings)
        self._metrics = metrics
        self._limit = limit
        self._addresses = AddressCounter(settings.trusted_proxies, settings.max_connections_per_address)
        self._open: set[Connection] = set()
        self._ending: set[Connection] = set()
        self._all_busy = False
        self._unreported: Counter[str] = Counter()
        self._last_address = ""
        self._reported_s = time.monotonic()
        metrics.connections.set_function(lambda: len(self._open) + len(self._ending))

    def create_protocol(self, **uvicorn_arguments: Any) -> Connection:
        """Return the protocol of a new connection (uvicorn)."""
        return Connection(self, **uvicorn_arguments)

    def admit(self, connection: Connection) -> Refusal | None:
        """Add a connection; return why it must be refused, if it must."""
        self._open.add(connection)
        if not self._addresses.add(connection.address):
            return self.refusals.too_many_per_address
        if len(self._open) > self._limit and not self._make_room(connection):
            return self.refusals.too_many
        return None

    def on_refused(self, connection: Connection, slug: str) -> bool:
        """Handle that a connection is being closed; return whether it may linger."""
        self._open.discard(connection)
        self._ending.add(connection)
        self._metrics.refused.labels(slug).inc()
        self._unreported[slug] += 1
        self._last_address = connection.address
        return len(self._ending) <= _MAX_LINGERING

    def on_closed(self, connection: Connection) -> None:
        """Handle that a connection is closed."""
        self._open.discard(connection)
        self._ending.discard(connection)
        self._addresses.remove(connection.address)

    async def enforce_timeouts(self) -> None:
        """Close connections that exceed a timeout, and log refusals; uvicorn calls this every second."""
        try:
            now = time.monotonic()
            self._all_busy = False
            for connection in [*self._open, *self._ending]:
                connection.enforce_timeout(now)
            if now - self._reported_s >= _REPORT_S:
                self._report(now)
        except Exception:  # an exception would end uvicorn's main loop
            _LOG.exception("timeouts of connections could not be enforced")

    def _make_room(self, newest: Connection) -> bool:
        """Close the connections that have been idle longest; return whether there were any."""
        if self._all_busy:
            return False
        now = time.monotonic()
        idle = [
            (connection.since(now), id(connection), connection)
            for connection in self._open
            if connection is not newest and connection.state != "work"
        ]
        self._all_busy = not idle
        for _, _, connection in heapq.nsmallest(_EVICTED_AT_ONCE, idle):
            connection.refuse(self.refusals.idle)
        return bool(idle)

    def _report(self, now: float) -> None:
        """Log refusals, and whether file descriptors have run out: the kernel then resets connections silently."""
        self._reported_s = now
        for slug, count in self._unreported.items():
            _LOG.warning("refused %d connections or requests: %s; the last from %s", count, slug, self._last_address)
        self._unreported.clear()
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            _LOG.warning("no file descriptor is free, so new connections are reset: %s", error)


@final
class Connection(HttpToolsProtocol):
    """One connection.

    Args:
        connections: all connections.
        uvicorn_arguments: arguments of uvicorn's protocol.

    Attributes:
        address: address of the client.
    """

    def __init__(self, connections: ConnectionManager, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        self.address = ""
        self._manager = connections
        self._settings = connections.settings
        self._refused = False
        self._discarded_bytes = 0
        self._in_head = False
        self._head_bytes = self._fields = 0
        self._other_bytes = 0  # received since the last end of a head, or piece of a body: heads, trailers, extensions
        self._incomplete = False
        self._heads = 0
        self._fault: Refusal | None = None
        self._stalled_s: float | None = None
        self._seen: tuple[_State, int] = ("head", 0)
        self._seen_s = time.monotonic()

    # Lifetime (asyncio and uvicorn).

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin (asyncio)."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        refusal = self._manager.admit(self)
        if refusal is not None:
            self.refuse(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """End (asyncio)."""
        super().connection_lost(exc)
        self._manager.on_closed(self)

    def pause_writing(self) -> None:
        """Note that the client reads more slowly than the server writes (asyncio)."""
        self._stalled_s = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the client has caught up (asyncio)."""
        self._stalled_s = None
        super().resume_writing()

    @property
    def state(self) -> _State:
        """The present state."""
        cycle, closing = self.cycle, self.transport.is_closing()
        if cycle is not None and not cycle.response_complete and not cycle.disconnected and not closing:
            return "work"
        if self._refused or closing:
            return "end"
        return "rest" if self._incomplete else "head"

    def since(self, now: float) -> float:
        """Return the time at which the present state was first seen."""
        current = (self.state, self._heads)
        if current != self._seen:
            self._seen, self._seen_s = current, now
        return self._seen_s

    def enforce_timeout(self, now: float) -> None:
        """Close the connection if its state lasts too long."""
        duration_s = now - self.since(now)
        if self._stalled_s is not None and now - self._stalled_s > self._settings.send_s:
            self._abort("unread")
        elif self.state == "end":
            if duration_s > (_LINGER_S if self._refused else self._settings.send_s):
                self.transport.abort()
        elif self.state != "work" and duration_s > self._settings.head_s:
            self.refuse(self._manager.refusals.head_timeout)

    def refuse(self, refusal: Refusal) -> None:
        """Stop reading, and close the connection: after the current response, or at once if there is none."""
        if self._refused:
            return
        self._refused = True
        may_linger = self._manager.on_refused(self, refusal.slug)
        if self.state == "work":
            if self.cycle.response_started or not self.cycle.more_body or self.pipeline:
                self.shutdown()
                return
            super().connection_lost(ConnectionAbortedError(refusal.slug))  # the application sees a disconnect
            self.connections.add(self)
        elif self._incomplete:  # the request was answered already
            self.transport.close()
            return
        self.transport.write(refusal.response)
        if may_linger:
            self.transport.write_eof()
        else:
            self.transport.close()

    def shutdown(self) -> None:
        """Accept no more requests, and close after the current one (uvicorn)."""
        if self.state == "end":
            self.transport.close()
        else:
            super().shutdown()

    def _abort(self, slug: str) -> None:
        self._refused = True
        self._manager.on_refused(self, slug)
        self.transport.abort()

    # Parsing (asyncio and httptools).

    def data_received(self, data: bytes) -> None:
        """Parse received data (asyncio)."""
        if self._refused:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > _MAX_DISCARDED_BYTES:
                self.transport.pause_reading()
            return
        self._other_bytes += len(data)
        super().data_received(data)
        if self._other_bytes > self._settings.max_head_bytes:
            self.refuse(self._manager.refusals.head_too_large)

    def send_400_response(self, msg: str) -> None:
        """Refuse data that cannot be parsed (uvicorn)."""
        self.refuse(self._fault or self._manager.refusals.malformed)

    def on_message_begin(self) -> None:
        """Begin a request (httptools)."""
        self._in_head = True
        self._head_bytes = self._fields = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count a piece of the request target (httptools)."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header field, or a trailer field, which is ignored (httptools)."""
        self._fields += 1
        self._count(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End the head (httptools)."""
        self._in_head, self._incomplete = False, True
        self._heads += 1
        self._other_bytes = 0
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._fail(self._manager.refusals.too_many_pipelined)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Receive a piece of the body (httptools)."""
        self._other_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request (httptools)."""
        self._incomplete = False
        self._other_bytes = 0
        super().on_message_complete()

    def _count(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > self._settings.max_head_bytes or self._fields > self._settings.max_headers:
            self._fail(self._manager.refusals.head_too_large)

    def _fail(self, refusal: Refusal) -> None:
        """Stop the parser; it reports any exception to uvicorn, which calls ``send_400_response``."""
        self._fault = refusal
        raise ValueError(refusal.slug)
