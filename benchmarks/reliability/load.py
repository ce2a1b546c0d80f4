"""Loads: callers that each wait for their answer, or requests at a rate whatever becomes of them.

A load runs in a process of its own, so that it and what is measured beside it do not wait for each other; one thread
does it all, with requests that were put together before, for load and server share the cores.
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

from benchmarks.reliability.caller import Answer
from benchmarks.reliability.connection import Connection

__all__ = ["Load", "Tally", "request", "run", "started"]

_POLL_S = 0.1
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}).*?\r\n\r\n", re.DOTALL)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *([^\r]*)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """A load.

    Attributes:
        address: of the server.
        path: where the bodies are posted.
        bodies: one after another, then from the beginning.
        callers: how many wait at a time.
        seconds: how long; then only those that are under way are waited for.
        rate: requests a second that all callers send together, each in its turn, and late where its last answer was
            late; None is as many as are answered.
        headers: of every request, beside the type of its body.
        timeout_s: from when on an answer is not waited for any more, and the connection is closed.
    """

    address: tuple[str, int]
    path: str
    bodies: Sequence[bytes]
    callers: int
    seconds: float
    rate: float | None = None
    headers: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 120.0


@final
@dataclass
class Tally:
    """What became of a load.

    Attributes:
        seconds: how long it took.
        took: seconds of each request, by status; 0 is a connection that was lost, or given up.
        untold: requests refused without Retry-After, by status.
        cpu_s: what the load took itself of the processor.
    """

    seconds: float = 0.0
    took: dict[int, list[float]] = field(default_factory=dict)
    untold: Counter[int] = field(default_factory=Counter)
    cpu_s: float = 0.0

    @property
    def good(self) -> list[float]:
        """Seconds of those that were answered."""
        return self.took.get(200, [])

    @property
    def every(self) -> list[float]:
        """Seconds of all of them."""
        return [seconds for took in self.took.values() for seconds in took]

    @property
    def failed(self) -> int:
        """How many had another answer, or none."""
        return len(self.every) - len(self.good)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.good) / self.seconds

    def counts(self) -> dict[int, int]:
        """How many had each status."""
        return {status: len(took) for status, took in sorted(self.took.items())}

    def __str__(self) -> str:
        """How many had each status, in words."""
        return ", ".join(f"{status}: {count}" for status, count in self.counts().items()) or "none was answered"

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self.took.setdefault(answer.status, []).append(answer.seconds)
        if answer.status in (429, 503) and answer.retry_after is None:
            self.untold[answer.status] += 1


@final
class _Caller:
    """One of a load's callers, with one connection that is opened when it is needed."""

    def __init__(self, selector: selectors.BaseSelector, address: tuple[str, int], number: int) -> None:
        self._selector = selector
        self._address = address
        self.number = number
        self.connection: Connection | None = None
        self.since = 0.0
        self._received = bytearray()
        self._head: re.Match[bytes] | None = None
        self._whole = 0

    def ask(self, asked: bytes) -> Connection:
        """Send a request; OSError where the connection is lost."""
        self.since = time.perf_counter()
        self._received, self._head = bytearray(), None
        if self.connection is None:
            self.connection = Connection(self._selector, self._address)
        self.connection.send(asked)
        return self.connection

    def hear(self) -> Answer | None:
        """Take what has come; the answer when it is whole. OSError where the connection is lost."""
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
        if _CLOSE.search(self._head[0]) or self.connection.sending:  # refused before all of it was read
            self.hang_up()
        retry = _RETRY_AFTER.search(self._head[0])
        seconds = time.perf_counter() - self.since
        return Answer(int(self._head[1]), seconds, b"", None if retry is None else retry[1].decode())

    def hang_up(self) -> Answer:
        """Close the connection; what there is to say of a request that was under way."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        return Answer(0, time.perf_counter() - self.since, b"", None)


def run(load: Load, over: Callable[[], bool] = lambda: False) -> Tally:
    """Do it, in this process.

    Args:
        load: what to do.
        over: whether to end at once, whatever is under way; asked now and then.
    """
    tally, cpu_s, start = Tally(), time.process_time(), time.perf_counter()
    end, look = start + load.seconds, start
    requests = [request(load.address, load.path, body, load.headers) for body in load.bodies]
    busy: dict[Connection, _Caller] = {}
    with selectors.DefaultSelector() as selector:
        callers = [_Caller(selector, load.address, number) for number in range(load.callers)]
        idle = [(_due(load, start, caller), caller.number, caller) for caller in callers]
        heapq.heapify(idle)

        def answered(caller: _Caller, answer: Answer) -> None:
            tally.add(answer)
            caller.number += load.callers
            heapq.heappush(idle, (_due(load, start, caller), caller.number, caller))

        while (idle or busy) and not over():
            while idle and (idle[0][0] <= (now := time.perf_counter()) or now >= end):
                due, _, caller = heapq.heappop(idle)
                if max(due, now) >= end:
                    continue
                try:
                    busy[caller.ask(requests[caller.number % len(requests)])] = caller
                except OSError:
                    answered(caller, caller.hang_up())
            now = time.perf_counter()
            wait_s = min(_POLL_S, max(0.0, idle[0][0] - now)) if idle else _POLL_S
            for key, _ in selector.select(wait_s):
                if (told := busy.get(key.data)) is None:  # an idle connection that the server closes
                    next(caller for caller in callers if caller.connection is key.data).hang_up()
                    continue
                try:
                    answer = told.hear()
                except OSError:
                    answer = told.hang_up()
                if answer is not None:
                    del busy[key.data]
                    answered(told, answer)
            if now >= look:
                look = now + _POLL_S
                for connection, caller in [item for item in busy.items() if item[1].since < now - load.timeout_s]:
                    del busy[connection]
                    answered(caller, caller.hang_up())
        for caller in callers:
            caller.hang_up()
    tally.seconds = time.perf_counter() - start
    tally.cpu_s = time.process_time() - cpu_s
    return tally


def _due(load: Load, start: float, caller: _Caller) -> float:
    """When its next request is to be sent."""
    return start if load.rate is None else start + caller.number / load.rate


def request(address: tuple[str, int], path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """A request as it is sent: POST, of JSON."""
    given = {"Host": f"{address[0]}:{address[1]}", "Content-Type": "application/json", **headers}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


@final
class _Pool:
    """One process for each load that runs, kept from one load to the next."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, load: Load) -> Future[Tally]:
        """Begin a load."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn"))
        return self._pool.submit(run, load)


_POOL = _Pool()


def started(load: Load) -> Future[Tally]:
    """Begin a load in another process."""
    return _POOL.submit(load)
