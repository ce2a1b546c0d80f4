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

__all__ = ["Crowd", "CrowdStatistics", "maintain"]

_POLL_S = 0.05
_REOPEN_S = 0.005
"""Interval in seconds at which connections that the server closed are reopened."""


@dataclass(frozen=True)
class Crowd:
    """A group of such connections.

    Attributes:
        address: address of the server.
        connections: number of connections.
        first: data that each sends first.
        then: data that each sends repeatedly.
        every_s: interval of repetition in seconds.
        sources: source addresses, used in turn.
        most_bytes: bytes that all may send together.
        deaf: whether they never read, with the smallest receive buffer.
    """

    address: tuple[str, int]
    connections: int
    first: bytes = b""
    then: bytes = b""
    every_s: float = float("inf")
    sources: Sequence[str] = ("127.0.0.2",)
    most_bytes: int = 2**30
    deaf: bool = False


@final
@dataclass
class CrowdStatistics:
    """Statistics of a crowd.

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


def maintain(crowd: Crowd, over: Callable[[], bool]) -> CrowdStatistics:
    """Maintain a crowd until ``over`` returns true."""
    statistics, numbers = CrowdStatistics(), count()
    sources = deque(crowd.sources[number % len(crowd.sources)] for number in range(crowd.connections))
    alive: dict[Connection, str] = {}
    due: list[tuple[float, int, Connection]] = []  # next transmission
    with selectors.DefaultSelector() as selector:

        def open_one() -> None:
            source = sources.popleft()
            connection = Connection(
                selector, crowd.address, source=source, buffer_bytes=1 if crowd.deaf else None, reads=not crowd.deaf
            )
            alive[connection] = source
            statistics.opened += 1
            transmit(connection, crowd.first)

        def transmit(connection: Connection, what: bytes) -> None:
            try:
                if not connection.sending and statistics.sent_bytes + len(what) <= crowd.most_bytes:
                    statistics.sent_bytes += len(what)
                    connection.send(what)
            except OSError:
                on_closed(connection)
            else:
                heapq.heappush(due, (time.monotonic() + crowd.every_s, next(numbers), connection))

        def on_closed(connection: Connection) -> None:
            statistics.closed += 1
            sources.append(alive.pop(connection))
            connection.close()

        for _ in range(crowd.connections):
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
                    transmit(connection, crowd.then)
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
