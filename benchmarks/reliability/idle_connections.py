"""Connections that never complete a request: silent, slow or endless."""

from __future__ import annotations

import heapq
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import final

from benchmarks.reliability.connection import Connection

__all__ = ["ConnectionGroup", "ConnectionStatistics", "maintain"]

_POLL_S = 0.05
"""Longest wait in seconds for an event, after which the end of the attack is checked."""

_REOPEN_S = 0.005
"""Interval in seconds at which connections that the server closed are reopened."""


@dataclass(frozen=True)
class ConnectionGroup:
    """A group of such connections.

    Attributes:
        address: address of the server.
        connections: number of connections.
        first: data that each sends first.
        then: data that each sends repeatedly.
        every_s: interval of repetition in seconds.
        sources: source addresses, used in turn.
        max_bytes: bytes that all may send together.
        never_reads: whether they never read, with the smallest receive buffer.
    """

    address: tuple[str, int]
    connections: int
    first: bytes = b""
    then: bytes = b""
    every_s: float = float("inf")
    sources: Sequence[str] = ("127.0.0.2",)
    max_bytes: int = 2**30
    never_reads: bool = False


@final
@dataclass
class ConnectionStatistics:
    """Statistics of a group.

    Attributes:
        opened: opened connections.
        closed: connections that the server closed.
        sent_bytes: bytes sent.
    """

    opened: int = 0
    closed: int = 0
    sent_bytes: int = 0

    def __str__(self) -> str:
        """Return the statistics as text."""
        return f"{self.opened} opened, {self.closed} closed by the server, {self.sent_bytes / 1e6:.0f} MB sent"


def maintain(group: ConnectionGroup, over: Callable[[], bool]) -> ConnectionStatistics:
    """Maintain a group until ``over`` returns true."""
    statistics, numbers = ConnectionStatistics(), count()
    sources = deque(group.sources[number % len(group.sources)] for number in range(group.connections))
    alive: dict[Connection, str] = {}
    due: list[tuple[float, int, Connection]] = []  # next transmission
    with selectors.DefaultSelector() as selector:

        def open_one() -> None:
            source = sources.popleft()
            connection = Connection(
                selector,
                group.address,
                source=source,
                buffer_bytes=1 if group.never_reads else None,
                reads=not group.never_reads,
            )
            alive[connection] = source
            statistics.opened += 1
            transmit(connection, group.first)

        def transmit(connection: Connection, what: bytes) -> None:
            try:
                if not connection.sending and statistics.sent_bytes + len(what) <= group.max_bytes:
                    statistics.sent_bytes += len(what)
                    connection.send(what)
            except OSError:
                on_closed(connection)
            else:
                heapq.heappush(due, (time.monotonic() + group.every_s, next(numbers), connection))

        def on_closed(connection: Connection) -> None:
            statistics.closed += 1
            sources.append(alive.pop(connection))
            connection.close()

        for _ in range(group.connections):
            open_one()
        again = 0.0
        while not over():
            now = time.monotonic()
            if sources and again <= now:
                again = now + _REOPEN_S
                open_one()
            while due and due[0][0] <= now:
                _, _, connection = heapq.heappop(due)
                if connection in alive:
                    transmit(connection, group.then)
            next_s = min(due[0][0] if due else now + _POLL_S, again if sources else now + _POLL_S) - now
            for key, events in selector.select(min(_POLL_S, max(0.0, next_s))):
                try:
                    if events & selectors.EVENT_WRITE:
                        key.data.flush()
                    if events & selectors.EVENT_READ and key.data.receive() == b"":
                        on_closed(key.data)
                except OSError:
                    on_closed(key.data)
        for connection in alive:
            connection.close()
    return statistics
