"""The parent's view of one worker."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import final

import psutil

from convexlayer.runtime import kernel_cache

from ..shared.channel import receive, send
from .protocol import WorkerCapabilities
from .worker_messages import ExitReason, WorkerReady, WorkItem, WorkResult

__all__ = ["WorkerHandle"]

_LOG = logging.getLogger(__name__)

_MAX_INLINE_BYTES = 2**16
"""Bytes of a work item that the event loop writes itself: they fit into the socket's buffer. Others go to a thread."""

_START_LIMIT_S = 300.0
"""Seconds that a worker may take to get ready; generous, since killing a slow start would only repeat it."""

_BACKGROUND_NICENESS = 19
"""Niceness of background workers: the lowest priority."""

_SIGKILL_EXIT_CODE = -9
"""Exit code of a process that SIGKILL ended."""


@final
class WorkerHandle:
    """One worker, for use on the event loop.

    Args:
        connection: connection to the worker.
        process: its process; None for a thread of this process.

    Attributes:
        capabilities: its capabilities; None until it is ready.
        problems: IDs of the problems that it holds canonicalised.
        batches: keys of the solved batches that it caches.
        work: its current work item.
        deadline: monotonic time by which the work must be done, or the worker ready.
        terminated_for: why the pool terminated it.
        without_kernels: whether it started before the kernels were compiled.
        in_background: whether it computes slow tasks at low priority.
        last_needed: monotonic time at which it was last seen idle, or with work that a request waits for.
    """

    def __init__(self, connection: socket.socket, process: multiprocessing.process.BaseProcess | None) -> None:
        self.capabilities: WorkerCapabilities | None = None
        self.problems: set[str] = set()
        self.batches: set[str] = set()
        self.work: WorkItem | None = None
        self.deadline = time.monotonic() + _START_LIMIT_S
        self.terminated_for: ExitReason | None = None
        self.without_kernels = process is not None and not kernel_cache.is_complete()
        self.in_background = False
        self.last_needed = time.monotonic()
        self._connection = connection
        self._process = process
        self._psutil_process: psutil.Process | None = None
        if process is not None:
            with suppress(psutil.NoSuchProcess):  # it has ended already, which the receiving thread notices
                self._psutil_process = psutil.Process(process.pid)

    @property
    def ready(self) -> bool:
        """Whether it has reported that it accepts work."""
        return self.capabilities is not None

    @property
    def idle(self) -> bool:
        """Whether it accepts work now."""
        return self.ready and self.work is None and self.terminated_for is None

    @property
    def pid(self) -> int | None:
        """Process ID; None for a thread."""
        return None if self._process is None else self._process.pid

    def start(self, work: WorkItem, *, limit_s: float, size_bytes: int) -> None:
        """Send it a work item.

        Args:
            work: the work item.
            limit_s: seconds that the work may take.
            size_bytes: approximate bytes of its arrays.
        """
        self.work = work
        self.deadline = time.monotonic() + limit_s
        if size_bytes <= _MAX_INLINE_BYTES and work.document is None:
            self._send(work)
        else:
            asyncio.get_running_loop().run_in_executor(None, self._send, work)

    def terminate(self, reason: ExitReason) -> None:
        """Kill its process. A thread finishes its work, whose result is ignored."""
        if self.terminated_for is None:
            self.terminated_for = reason
        if self._process is not None:
            self._process.kill()
            return
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            _LOG.debug("the connection to a worker was closed already")

    def move_to_background(self) -> None:
        """Mark it as a background worker, and lower its priority."""
        self.in_background = True
        if self._psutil_process is not None and hasattr(os, "setpriority"):
            with suppress(psutil.Error, OSError):
                for thread in self._psutil_process.threads():  # on Linux, each thread has its own niceness
                    os.setpriority(os.PRIO_PROCESS, thread.id, _BACKGROUND_NICENESS)

    def receive_until_exit(
        self, on_message: Callable[[WorkResult | WorkerReady], None], on_exit: Callable[[], None]
    ) -> None:
        """Receive its messages until it exits; blocks, so call it from a thread of its own."""
        try:
            while True:
                on_message(receive(self._connection))
        except (EOFError, OSError):
            pass
        except Exception:  # after a message that cannot be read, nothing later can be trusted
            _LOG.exception("a message of worker %s cannot be read", self.pid)
            self.terminate("crash")
        self._connection.close()
        if self._process is not None:
            self._process.join()
        on_exit()

    def exit_reason(self) -> ExitReason:
        """Return why it exited; call this after its exit."""
        if self.terminated_for is not None:
            return self.terminated_for
        return "killed" if self._process is not None and self._process.exitcode == _SIGKILL_EXIT_CODE else "crash"

    def resident_bytes(self) -> int:
        """Return the resident memory of its process; 0 if unknown."""
        if self._psutil_process is None:
            return 0
        try:
            return int(self._psutil_process.memory_info().rss)
        except psutil.Error:
            return 0

    def _send(self, work: WorkItem) -> None:
        try:
            send(self._connection, work)
        except OSError:
            _LOG.debug("a worker ended before it received its work")  # the receiving thread notices its exit
