"""Large bodies read by other processes, so that neither the event loop nor another thread waits for that.

Each key has its line, and the one of whose bodies fewest bytes were read is next. One process reads nothing but bodies
of moderate size: so those wait for none of the largest, and the largest for one of them at most, whatever others send.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, final

from ..channel import receive, send
from ..errors import TooManyError, UnavailableError
from ..fair_queue import FairQueue
from ..settings import Settings
from . import process as process_module

__all__ = ["Readers"]

_LOG = logging.getLogger(__name__)

_MODERATE_BYTES = 2**20
"""Bodies up to here, which are read in 0.1 s, have a process of their own."""

_MAX_MEMORY_BYTES = 2 * 2**30
_TIME_LIMIT_S = 30.0
_RETRY_S = 1.0

_T = TypeVar("_T")


@final
class _Process:
    """A process that reads, started when it is needed; for use by one thread at a time, but for ``close``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, function: Callable[..., Any], body: bytes | bytearray | memoryview) -> Any:
        """What a function makes of a body, or raises.

        Raises:
            UnavailableError: the process ended, or took too long; it is replaced.
        """
        try:
            connection = self._started()
            send(connection, (function, pickle.PickleBuffer(body)))
            outcome, error = receive(connection)
        except (OSError, EOFError) as failure:  # TimeoutError is an OSError
            self._stop()
            _LOG.warning("a body of %d bytes could not be read: %r", len(body), failure)
            detail = "the process that read this body ended or took too long, and is replaced; try again"
            raise UnavailableError(detail, retry_after_s=_RETRY_S) from failure
        if error is not None:
            raise error
        return outcome

    def close(self) -> None:
        """End the process, whatever it does, for good."""
        with self._lock:
            self._closed = True
        self._stop()

    def _started(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        with self._lock:
            if self._closed:
                raise EOFError("the server is shutting down")
            if self._connection is None:
                self._connection, self._process = _start()
            return self._connection

    def _stop(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()


def _start() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    # One thread for linear algebra, which it has no use for: more would each reserve memory. And where memory ends, no
    # backtrace, for which there is none.
    environment: Mapping[str, str] = os.environ | {"OPENBLAS_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", process_module.__file__, str(_MAX_MEMORY_BYTES)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # an interrupt from the keyboard is for the server, which closes it
        )
    ours.settimeout(_TIME_LIMIT_S)
    return ours, process


def _closing() -> UnavailableError:
    return UnavailableError("the server is shutting down", retry_after_s=_RETRY_S)


@dataclass(eq=False)
class _Waiting:
    """A body that waits, or is being read."""

    owner: str
    function: Callable[..., Any]
    body: bytes | bytearray | memoryview
    outcome: asyncio.Future[Any]


@final
class Readers:
    """Processes that read bodies, started when they are needed; every call comes from the event loop.

    Args:
        settings: ``readers``, ``max_waiting`` and ``max_wait_s``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._moderate: FairQueue[_Waiting] = FairQueue()
        self._large: FairQueue[_Waiting] = FairQueue()
        self._processes = tuple(_Process() for _ in range(settings.readers))
        self._threads = ThreadPoolExecutor(settings.readers, thread_name_prefix="reader")
        self._reading: dict[_Process, asyncio.Future[Any]] = {}
        self._closed = False

    @property
    def waiting(self) -> int:
        """Bodies that wait for their turn."""
        return len(self._moderate) + len(self._large)

    async def read(self, owner: str, function: Callable[..., _T], body: bytes | bytearray | memoryview) -> _T:
        """What a function makes of a body, in its owner's turn; a body that nobody waits for any more leaves the line.

        Args:
            owner: whose line it waits in.
            function: one that can be pickled, of a module that imports little.
            body: what it is called with.

        Raises:
            TooManyError: too many bodies wait, or this one did for too long.
            UnavailableError: the process that read it ended.
            Exception: what the function raises.
        """
        if self._closed:
            raise _closing()
        loop = asyncio.get_running_loop()
        line = self._moderate if len(body) <= _MODERATE_BYTES else self._large
        self._make_room(line, owner)
        waiting = _Waiting(owner, function, body, loop.create_future())
        line.push(owner, waiting)
        self._dispatch()
        timer = loop.call_later(self._settings.max_wait_s, self._give_up, line, waiting)
        try:
            outcome: _T = await waiting.outcome
            return outcome
        finally:
            timer.cancel()
            line.remove(owner, waiting)

    async def close(self) -> None:
        """End the processes, whatever they read, and fail what waits."""
        self._closed = True
        for line in (self._moderate, self._large):
            while len(line):
                waiting = line.pop(0.0)
                if not waiting.outcome.done():
                    waiting.outcome.set_exception(_closing())
        for process in self._processes:
            process.close()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)
        self._threads.shutdown()

    def _make_room(self, line: FairQueue[_Waiting], owner: str) -> None:
        """Where too many wait, the last of the key with most of them gives up its place."""
        if len(line) < self._settings.max_waiting:
            return
        last = line.pop_last_for(owner)
        if last is None:
            raise self._too_many(line)
        if not last.outcome.done():
            last.outcome.set_exception(self._too_many(line))

    def _give_up(self, line: FairQueue[_Waiting], waiting: _Waiting) -> None:
        if line.remove(waiting.owner, waiting) and not waiting.outcome.done():
            waiting.outcome.set_exception(self._too_many(line))

    def _too_many(self, line: FairQueue[_Waiting]) -> TooManyError:
        return TooManyError(f"{len(line)} bodies wait to be read; try again later", retry_after_s=_RETRY_S)

    def _dispatch(self) -> None:
        """Let the free processes read: the first of all bodies of moderate size alone, the others rather large ones."""
        for process in self._processes:
            lines = (self._moderate,) if process is self._processes[0] else (self._large, self._moderate)
            line = next((line for line in lines if len(line)), None)
            if line is not None and process not in self._reading and not self._closed:
                waiting = line.pop(0.0)
                line.charge(waiting.owner, len(waiting.body))
                self._start(process, waiting)

    def _start(self, process: _Process, waiting: _Waiting) -> None:
        """Let a process read a body, to the end: to start another process would take longer."""
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(self._threads, process.call, waiting.function, waiting.body)
        self._reading[process] = reading
        reading.add_done_callback(lambda done: self._ended(process, waiting, done))

    def _ended(self, process: _Process, waiting: _Waiting, done: asyncio.Future[Any]) -> None:
        del self._reading[process]
        error = done.exception()
        if waiting.outcome.done():
            pass  # nobody waits for it any more
        elif error is not None:
            waiting.outcome.set_exception(error)
        else:
            waiting.outcome.set_result(done.result())
        self._dispatch()
