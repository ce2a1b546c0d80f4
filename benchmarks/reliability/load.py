"""Closed and open loads: clients that wait for their responses, or requests at a fixed rate.

A load runs in another process, so that it and a concurrent measurement do not block each other. One thread sends
prepared requests, since load and server share the cores.
"""

from __future__ import annotations

import heapq
import multiprocessing
import re
import selectors
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import final

from benchmarks.reliability.connection import Connection
from benchmarks.reliability.http_client import Response

__all__ = ["Load", "Tally", "request", "run", "start"]

_POLL_S = 0.1
"""Longest wait in seconds for an event, after which timeouts and the end of the load are checked."""

_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}).*?\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *([^\r]*)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """A load.

    Attributes:
        address: address of the server.
        path: path of the requests.
        bodies: bodies, used in turn.
        clients: number of concurrent clients.
        seconds: duration; then the load waits for outstanding responses.
        rate: requests per second of all clients together, delayed if a response is late; None for a closed load.
        headers: headers of every request, in addition to Content-Type.
        timeout_s: seconds after which a client closes its connection without a response.
    """

    address: tuple[str, int]
    path: str
    bodies: Sequence[bytes]
    clients: int
    seconds: float
    rate: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 120.0


@final
@dataclass
class Tally:
    """Statistics of a load.

    Attributes:
        seconds: duration.
        took: seconds of each request by status; 0 is a lost connection or a timeout.
        without_retry_after: requests refused without Retry-After, by status.
        cpu_s: CPU seconds of the load itself.
    """

    seconds: float = 0.0
    took: dict[int, list[float]] = field(default_factory=dict)
    without_retry_after: Counter[int] = field(default_factory=Counter)
    cpu_s: float = 0.0

    @property
    def good(self) -> list[float]:
        """Seconds of the successful requests."""
        return self.took.get(200, [])

    @property
    def every(self) -> list[float]:
        """Seconds of all requests."""
        return [seconds for took in self.took.values() for seconds in took]

    @property
    def failed(self) -> int:
        """Number of failed requests."""
        return len(self.every) - len(self.good)

    @property
    def rate(self) -> float:
        """Successful requests per second."""
        return len(self.good) / self.seconds

    def counts(self) -> dict[int, int]:
        """Return the number of requests by status."""
        return {status: len(took) for status, took in sorted(self.took.items())}

    def __str__(self) -> str:
        """Return the number of requests by status as text."""
        return ", ".join(f"{status}: {count}" for status, count in self.counts().items()) or "no requests"

    def add(self, answer: Response) -> None:
        """Count a response."""
        self.took.setdefault(answer.status, []).append(answer.seconds)
        if answer.status in (429, 503) and answer.retry_after is None:
            self.without_retry_after[answer.status] += 1


@final
class _Client:
    """One client of a load; its connection is opened when needed."""

    def __init__(self, selector: selectors.BaseSelector, address: tuple[str, int], number: int) -> None:
        self._selector = selector
        self._address = address
        self.number = number
        self.connection: Connection | None = None
        self.since = 0.0
        self._received = bytearray()
        self._head: re.Match[bytes] | None = None
        self._whole = 0

    def send(self, data: bytes) -> Connection:
        """Send a request; raises OSError if the connection is lost."""
        self.since = time.perf_counter()
        self._received, self._head = bytearray(), None
        if self.connection is None:
            self.connection = Connection(self._selector, self._address)
        self.connection.send(data)
        return self.connection

    def receive(self) -> Response | None:
        """Receive data; return the response once it is complete. Raises OSError if the connection is lost."""
        assert self.connection is not None
        self.connection.flush()
        chunk = self.connection.receive()
        if chunk == b"":
            raise ConnectionResetError("the server closed the connection")
        self._received += chunk or b""
        if self._head is None:
            self._head = _HEAD.match(bytes(self._received))
            if self._head is None:
                return None
            length = _LENGTH.search(self._head[0])
            self._whole = self._head.end() + int(length[1] if length else 0)
        if len(self._received) < self._whole:
            return None
        if _CLOSE.search(self._head[0]) or self.connection.sending:  # refused before the request was read
            self.close()
        retry = _RETRY_AFTER.search(self._head[0])
        seconds = time.perf_counter() - self.since
        return Response(int(self._head[1]), seconds, b"", None if retry is None else retry[1].decode())

    def close(self) -> Response:
        """Close the connection; return the lost response of the outstanding request."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        return Response(0, time.perf_counter() - self.since, b"", None)


def run(load: Load, over: Callable[[], bool] = lambda: False) -> Tally:
    """Run a load in this process.

    Args:
        load: the load.
        over: called regularly; whether to stop at once.
    """
    tally, cpu_s, start = Tally(), time.process_time(), time.perf_counter()
    end, next_check_s = start + load.seconds, start
    requests = [request(load.address, load.path, body, load.headers) for body in load.bodies]
    busy: dict[Connection, _Client] = {}
    with selectors.DefaultSelector() as selector:
        clients = [_Client(selector, load.address, number) for number in range(load.clients)]
        idle = [(_due(load, start, client), client.number, client) for client in clients]
        heapq.heapify(idle)

        def finish(client: _Client, answer: Response) -> None:
            tally.add(answer)
            client.number += load.clients
            heapq.heappush(idle, (_due(load, start, client), client.number, client))

        while (idle or busy) and not over():
            while idle and (idle[0][0] <= (now := time.perf_counter()) or now >= end):
                due, _, client = heapq.heappop(idle)
                if max(due, now) >= end:
                    continue
                try:
                    busy[client.send(requests[client.number % len(requests)])] = client
                except OSError:
                    finish(client, client.close())
            now = time.perf_counter()
            wait_s = min(_POLL_S, max(0.0, idle[0][0] - now)) if idle else _POLL_S
            for key, _ in selector.select(wait_s):
                if (waiting := busy.get(key.data)) is None:  # the server closes an idle connection
                    next(client for client in clients if client.connection is key.data).close()
                    continue
                try:
                    answer = waiting.receive()
                except OSError:
                    answer = waiting.close()
                if answer is not None:
                    del busy[key.data]
                    finish(waiting, answer)
            if now >= next_check_s:
                next_check_s = now + _POLL_S
                for connection, client in [item for item in busy.items() if item[1].since < now - load.timeout_s]:
                    del busy[connection]
                    finish(client, client.close())
        for client in clients:
            client.close()
    tally.seconds = time.perf_counter() - start
    tally.cpu_s = time.process_time() - cpu_s
    return tally


def _due(load: Load, start: float, client: _Client) -> float:
    """Return the time of a client's next request."""
    return start if load.rate is None else start + client.number / load.rate


def request(address: tuple[str, int], path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the bytes of a POST request with JSON."""
    given = {"Host": f"{address[0]}:{address[1]}", "Content-Type": "application/json", **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@final
class _Pool:
    """A pool of processes that run loads."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, load: Load) -> Future[Tally]:
        """Start a load."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn"))
        return self._pool.submit(run, load)


_POOL = _Pool()


def start(load: Load) -> Future[Tally]:
    """Start a load in another process."""
    return _POOL.submit(load)
