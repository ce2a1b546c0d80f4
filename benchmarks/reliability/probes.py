"""Background measurements during a load: probes, and memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import final

import psutil

from benchmarks.reliability.http_client import HttpClient, Response
from benchmarks.reliability.load import Tally
from benchmarks.reliability.server import Server

__all__ = ["Memory", "probed"]

_TIMEOUT_S = 10.0
"""Seconds after which a probe counts as failed."""

_EVERY_S = 0.02
"""Seconds between probes, and between samples of the memory."""


@contextmanager
def probed(
    server: Server, ask: Callable[[HttpClient], Response], *, key: str | None = None, every_s: float = _EVERY_S
) -> Iterator[Tally]:
    """Send requests repeatedly, each on a new connection.

    Args:
        server: the server.
        ask: sends a request.
        key: name of the key.
        every_s: pause in seconds after each response.

    Yields:
        The tally.
    """
    tally = Tally()

    def send() -> None:
        with server.client(key, timeout_s=_TIMEOUT_S) as client:
            tally.add(ask(client))

    with _repeated(send, every_s):
        yield tally


@final
class Memory:
    """Resident memory of the server process and the parsers.

    Args:
        server: the server.

    Attributes:
        before_bytes: memory at the start.
        peak_bytes: largest memory while it was watched.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._processes: list[psutil.Process] = []
        self._listed = 0.0
        self.before_bytes = self.peak_bytes = self.now_bytes()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Sample the memory within this context."""

        def sample() -> None:
            self.peak_bytes = max(self.peak_bytes, self.now_bytes())

        with _repeated(sample, _EVERY_S):
            yield

    def now_bytes(self) -> int:
        """Return the memory now; the list of processes is refreshed once a second."""
        if time.monotonic() > self._listed + 1.0:
            self._processes, self._listed = self._server.front(), time.monotonic()
        total = 0
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def seconds_until(self, max_bytes: float, limit_s: float) -> float | None:
        """Wait until the memory falls to a limit; return the seconds, or None after ``limit_s``."""
        start = time.monotonic()
        while self.now_bytes() > max_bytes:
            if time.monotonic() > start + limit_s:
                return None
            time.sleep(_EVERY_S)
        return time.monotonic() - start


@contextmanager
def _repeated(step: Callable[[], None], every_s: float) -> Iterator[None]:
    """Repeat a step in a thread."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            step()
            over.wait(every_s)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
