"""A pool of processes that parse large bodies, so that parsing blocks neither the event loop nor other threads.

Bodies are parsed in the order of a fair queue, by the bytes that each key had parsed. One process parses bodies of
moderate size alone, so these never wait for the largest; the largest wait for at most one of them at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, final

from ..errors import RETRY_S, MalformedError, TooManyError, UnavailableError, shutting_down
from ..settings import Settings
from ..shared.channel import receive, send
from ..shared.fair_queue import FairQueue
from . import parser_process

__all__ = ["ParserPool"]

_LOG = logging.getLogger(__name__)

_MODERATE_BYTES = 2**20
"""Bytes up to which a body is moderate: parsing it takes 0.1 s (measured)."""

_MAX_MEMORY_BYTES = 2 * 2**30
"""Address space in bytes of a parser process. Less would refuse large valid bodies; more puts the machine at risk."""

_TIME_LIMIT_S = 30.0
"""Seconds that parsing one body may take, before its process is killed."""

_T = TypeVar("_T")


@final
class _Parser:
    """A parser process, started at its first use; for one thread at a time, but for ``close``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, function: Callable[..., Any], body: bytes | bytearray | memoryview) -> Any:
        """Return what a function returns for a body, or raise what it raises.

        Raises:
            MalformedError: the process was aborted by a failed allocation; it is replaced.
            UnavailableError: the process ended otherwise, or took too long; it is replaced.
        """
        try:
            connection = self._start()
            send(connection, (function, pickle.PickleBuffer(body)))
            result, error = receive(connection)
        except (OSError, EOFError) as failure:  # TimeoutError is an OSError
            exit_code = self._stop()
            if exit_code == -signal.SIGABRT:  # Rust aborts where it cannot allocate; Python raises
                raise MalformedError(parser_process.TOO_LARGE) from failure
            _LOG.warning("a body of %d bytes could not be parsed: %r", len(body), failure)
            detail = "the process that parsed the body ended or took too long, and is replaced; try again"
            raise UnavailableError(detail, retry_after_s=RETRY_S) from failure
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Kill the process; it is not started again."""
        with self._lock:
            self._closed = True
        self._stop()

    def _start(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        with self._lock:
            if self._closed:
                raise EOFError("the server is shutting down")
            if self._connection is None:
                self._connection, self._process = _start_process()
            return self._connection

    def _stop(self) -> int | None:
        """Kill the process, if it still runs; return its exit code."""
        with self._lock:
            connection, self._connection = self._connection, None
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()
        return None if process is None else process.returncode


def _start_process() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair()
    # Each thread of a linear algebra library, which a parser does not use, would reserve address space. When memory
    # runs out, there is none for a Rust backtrace either.
    environment: Mapping[str, str] = os.environ | {"OPENBLAS_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", parser_process.__file__, str(_MAX_MEMORY_BYTES)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # the server receives an interrupt of the keyboard, and closes the parser
        )
    ours.settimeout(_TIME_LIMIT_S)
    return ours, process


@dataclass(eq=False)
class _Item:
    """A body that waits, or is being parsed.

    Attributes:
        owner: ID of the key that sent it.
        function: parses it.
        body: the body.
        future: resolves to what the function returns.
    """

    owner: str
    function: Callable[..., Any]
    body: bytes | bytearray | memoryview
    future: asyncio.Future[Any]


@final
class ParserPool:
    """Processes that parse bodies, started when they are needed; for use on the event loop.

    Args:
        settings: ``parsers``, ``max_waiting`` and ``max_wait_s``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._moderate: FairQueue[_Item] = FairQueue()
        self._large: FairQueue[_Item] = FairQueue()
        self._parsers = tuple(_Parser() for _ in range(settings.parsers))
        self._threads = ThreadPoolExecutor(settings.parsers, thread_name_prefix="parser")
        self._parsing: dict[_Parser, asyncio.Future[Any]] = {}
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of waiting bodies."""
        return len(self._moderate) + len(self._large)

    async def parse(self, owner: str, function: Callable[..., _T], body: bytes | bytearray | memoryview) -> _T:
        """Return what a function returns for a body. If this coroutine is cancelled, the body leaves the queue.

        Args:
            owner: ID of the key.
            function: a function that can be pickled, of a module with few imports.
            body: its argument.

        Raises:
            TooManyError: too many bodies wait, or this one waited too long.
            UnavailableError: the process ended, or took too long.
            Exception: what the function raises.
        """
        if self._closed:
            raise shutting_down()
        loop = asyncio.get_running_loop()
        queue = self._moderate if len(body) <= _MODERATE_BYTES else self._large
        self._make_room(queue, owner)
        item = _Item(owner, function, body, loop.create_future())
        queue.push(owner, item)
        self._dispatch()
        timer = loop.call_later(self._settings.max_wait_s, self._time_out, queue, item)
        try:
            result: _T = await item.future
            return result
        finally:
            timer.cancel()
            queue.remove(owner, item)

    async def close(self) -> None:
        """Kill the processes; bodies that wait or are being parsed fail."""
        self._closed = True
        for queue in (self._moderate, self._large):
            while len(queue):
                item = queue.pop(0.0)
                if not item.future.done():
                    item.future.set_exception(shutting_down())
        for parser in self._parsers:
            parser.close()
        await asyncio.gather(*self._parsing.values(), return_exceptions=True)
        self._threads.shutdown()

    def _make_room(self, queue: FairQueue[_Item], owner: str) -> None:
        """If a queue is full, evict the last body of the owner with the most."""
        if len(queue) < self._settings.max_waiting:
            return
        evicted = queue.evict_for(owner)
        if evicted is None:
            raise self._too_many(queue)
        if not evicted.future.done():
            evicted.future.set_exception(self._too_many(queue))

    def _time_out(self, queue: FairQueue[_Item], item: _Item) -> None:
        if queue.remove(item.owner, item) and not item.future.done():
            item.future.set_exception(self._too_many(queue))

    def _too_many(self, queue: FairQueue[_Item]) -> TooManyError:
        return TooManyError(f"{len(queue)} bodies wait to be parsed; try again later", retry_after_s=RETRY_S)

    def _dispatch(self) -> None:
        """Start the idle parsers: the first one on moderate bodies alone, the others preferably on large ones."""
        for parser in self._parsers:
            queues = (self._moderate,) if parser is self._parsers[0] else (self._large, self._moderate)
            queue = next((queue for queue in queues if len(queue)), None)
            if queue is not None and parser not in self._parsing and not self._closed:
                item = queue.pop(0.0)
                queue.charge(item.owner, len(item.body))
                self._start(parser, item)

    def _start(self, parser: _Parser, item: _Item) -> None:
        """Start parsing a body. It runs to its end even if cancelled: starting another process would take longer."""
        loop = asyncio.get_running_loop()
        parsing = loop.run_in_executor(self._threads, parser.call, item.function, item.body)
        self._parsing[parser] = parsing
        parsing.add_done_callback(lambda done: self._on_done(parser, item, done))

    def _on_done(self, parser: _Parser, item: _Item, done: asyncio.Future[Any]) -> None:
        del self._parsing[parser]
        error = done.exception()
        if item.future.done():
            pass  # it was cancelled
        elif error is not None:
            item.future.set_exception(error)
        else:
            item.future.set_result(done.result())
        self._dispatch()
