"""What is watched while something else goes on: whether probes are answered, and how much memory there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import final

import psutil

from benchmarks.reliability.caller import Answer, Caller
from benchmarks.reliability.load import Tally
from benchmarks.reliability.server import Server

__all__ = ["Memory", "probed"]

_TIMEOUT_S = 10.0
_EVERY_S = 0.02


@contextmanager
def probed(
    server: Server, ask: Callable[[Caller], Answer], *, key: str | None = None, every_s: float = _EVERY_S
) -> Iterator[Tally]:
    """Send requests, each with a connection of its own, as a probe or a new client does.

    Args:
        server: what is probed.
        ask: sends one.
        key: name of the key that it shows.
        every_s: how long after the last answer.

    Yields:
        what becomes of them.
    """
    tally = Tally()

    def send() -> None:
        with server.caller(key, timeout_s=_TIMEOUT_S) as caller:
            tally.add(ask(caller))

    with _repeated(send, every_s):
        yield tally


@final
class Memory:
    """Resident memory of the processes of a server that take requests and read bodies.

    Args:
        server: whose.

    Attributes:
        before_bytes: at the beginning.
        peak_bytes: at most, while it was watched.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._processes: list[psutil.Process] = []
        self._listed = 0.0
        self.before_bytes = self.peak_bytes = self.now_bytes()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at it again and again within."""

        def look() -> None:
            self.peak_bytes = max(self.peak_bytes, self.now_bytes())

        with _repeated(look, _EVERY_S):
            yield

    def now_bytes(self) -> int:
        """What it is; which processes there are is looked up once a second."""
        if time.monotonic() > self._listed + 1.0:
            self._processes, self._listed = self._server.front(), time.monotonic()
        total = 0
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def seconds_until(self, most_bytes: float, limit_s: float) -> float | None:
        """How long it takes to come down to so much; None where it takes longer than the limit."""
        start = time.monotonic()
        while self.now_bytes() > most_bytes:
            if time.monotonic() > start + limit_s:
                return None
            time.sleep(_EVERY_S)
        return time.monotonic() - start


@contextmanager
def _repeated(step: Callable[[], None], every_s: float) -> Iterator[None]:
    """Do a step again and again in a thread of its own."""
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            step()
            over.wait(every_s)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
