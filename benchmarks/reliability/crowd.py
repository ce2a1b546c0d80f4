"""Connections that say little, much or nothing, and never what would end a request."""

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

__all__ = ["Crowd", "Crowded", "keep"]

_POLL_S = 0.05
_AGAIN_S = 0.005
"""At such intervals connections that the server closed are opened again."""


@dataclass(frozen=True)
class Crowd:
    """Connections to keep.

    Attributes:
        address: of the server.
        connections: how many.
        first: what each says first.
        then: what each says again and again.
        every_s: how often.
        sources: addresses that they come from, in turn.
        most_bytes: what all of them say together, at most.
        deaf: whether they never read, and keep as little of what comes as the system allows.
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
class Crowded:
    """What became of a crowd.

    Attributes:
        opened: connections that were begun.
        closed: those of them that the server closed.
        said_bytes: what they had to say.
    """

    opened: int = 0
    closed: int = 0
    said_bytes: int = 0

    def __str__(self) -> str:
        """In words."""
        return f"{self.opened} opened, {self.closed} closed by the server, {self.said_bytes / 1e6:.0f} MB sent"


def keep(crowd: Crowd, over: Callable[[], bool]) -> Crowded:
    """Keep a crowd until it is over."""
    told, numbers = Crowded(), count()
    sources = deque(crowd.sources[number % len(crowd.sources)] for number in range(crowd.connections))
    alive: dict[Connection, str] = {}
    due: list[tuple[float, int, Connection]] = []  # when it speaks again
    with selectors.DefaultSelector() as selector:

        def come() -> None:
            source = sources.popleft()
            connection = Connection(
                selector, crowd.address, source=source, buffer_bytes=1 if crowd.deaf else None, reads=not crowd.deaf
            )
            alive[connection] = source
            told.opened += 1
            say(connection, crowd.first)

        def say(connection: Connection, what: bytes) -> None:
            try:
                if not connection.sending and told.said_bytes + len(what) <= crowd.most_bytes:
                    told.said_bytes += len(what)
                    connection.send(what)
            except OSError:
                lose(connection)
            else:
                heapq.heappush(due, (time.monotonic() + crowd.every_s, next(numbers), connection))

        def lose(connection: Connection) -> None:
            told.closed += 1
            sources.append(alive.pop(connection))
            connection.close()

        for _ in range(crowd.connections):
            come()
        again = 0.0
        while not over():
            now = time.monotonic()
            if sources and again <= now:
                again = now + _AGAIN_S
                come()
            while due and due[0][0] <= now:
                _, _, speaker = heapq.heappop(due)
                if speaker in alive:
                    say(speaker, crowd.then)
            next_s = min(due[0][0] if due else now + _POLL_S, again if sources else now + _POLL_S) - now
            for key, events in selector.select(min(_POLL_S, max(0.0, next_s))):
                try:
                    if events & selectors.EVENT_WRITE:
                        key.data.flush()
                    if events & selectors.EVENT_READ and key.data.receive() == b"":
                        lose(key.data)
                except OSError:
                    lose(key.data)
        for connection in alive:
            connection.close()
    return told
