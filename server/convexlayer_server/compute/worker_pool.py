"""The pool of workers: starts, monitors, terminates and replaces them.

There are foreground workers, a standby, and background workers. The standby is ready to replace the next foreground
worker that ends or moves to the background. Background workers compute slow tasks at a lower priority; there are at
most as many of them as foreground workers. A fork server that has imported everything forks workers in milliseconds.

The process pools of the standard library and of common packages do not fit: those that survive the death of a worker
fail all running work, or know neither placement nor limits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Protocol, final

import psutil

from convexlayer.runtime import kernel_cache

from ..settings import Settings
from . import forkserver
from .devices import devices_of, worker_count
from .protocol import WorkerCapabilities
from .worker_handle import WorkerHandle
from .worker_messages import ExitReason, WorkerReady, WorkItem, WorkResult

__all__ = ["PoolObserver", "WorkerPool"]

_LOG = logging.getLogger(__name__)

_MONITOR_S = 0.1
"""Interval in seconds at which deadlines, memory and cancellation are checked."""

_CANCELLED_S = 2.0
"""Seconds for which a worker may finish cancelled work before it is terminated.

Replacing it costs more than waiting.
"""

_FIRST_RESTART_S, _MAX_RESTART_S = 1.0, 30.0
"""Pauses in seconds before a worker that failed to start is started again.

The first one, which doubles each time, and the longest.
"""

_CLOSE_POLL_S = 0.005
"""Interval in seconds at which ``close`` checks whether the workers have exited."""


class PoolObserver(Protocol):
    """The scheduler, as the pool sees it; called on the event loop."""

    def is_awaited(self, worker: WorkerHandle) -> bool:
        """Whether a request waits for the current work of a worker."""

    def on_ready(self, worker: WorkerHandle) -> None:
        """Handle that a worker accepts work for the first time."""

    def on_done(self, worker: WorkerHandle, work: WorkItem, result: WorkResult) -> None:
        """Handle that a worker finished its work, and accepts more."""

    def on_exit(self, worker: WorkerHandle, work: WorkItem | None, reason: ExitReason) -> None:
        """Handle that a worker exited, with unfinished work or without."""


@final
class WorkerPool:
    """The foreground workers, the standby, and the background workers.

    Args:
        settings: ``workers``, ``background_workers``, ``device``, ``worker_memory_bytes``.
        observer: the scheduler.

    Attributes:
        replaced: number of workers that ended unexpectedly and were replaced.
    """

    def __init__(self, settings: Settings, observer: PoolObserver) -> None:
        self._settings = settings
        self._observer = observer
        self._devices: list[str] = []
        self._count = 0
        self._all: list[tuple[WorkerHandle, str]] = []
        self._closing = asyncio.Event()
        self._monitoring: asyncio.Task[None] | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._restart_s = 0.0
        self.replaced = 0

    @property
    def all_workers(self) -> list[WorkerHandle]:
        """All ready workers."""
        return [worker for worker, _ in self._all if worker.ready]

    @property
    def foreground(self) -> list[WorkerHandle]:
        """The ready foreground workers, without the standby."""
        return self._foreground_and_standby()[: max(1, self._count)]

    @property
    def background(self) -> list[WorkerHandle]:
        """The ready background workers."""
        return [worker for worker in self.all_workers if worker.in_background]

    @property
    def max_background(self) -> int:
        """Number of background workers at most."""
        requested = self._settings.background_workers
        return self._count if requested is None else min(requested, self._count)

    @property
    def background_capacity(self) -> int:
        """Number of work items that could start in the background now, or as soon as a standby is ready."""
        busy = sum(worker.in_background and worker.work is not None for worker, _ in self._all)
        return self.max_background - busy

    @property
    def capabilities(self) -> WorkerCapabilities | None:
        """Capabilities of the workers, preferably of one with portable kernels; None until one is ready."""
        known = [worker.capabilities for worker in self.foreground if worker.capabilities is not None]
        return next((each for each in known if each.kernels.path == "portable"), known[0] if known else None)

    def move_standby_to_background(self) -> WorkerHandle | None:
        """Move the idle standby to the background, and return it; None if there is none, or no room."""
        standby = [worker for worker in self._foreground_and_standby()[max(1, self._count) :] if worker.idle]
        if not standby or len(self.background) >= self.max_background:
            return None
        self.move_to_background(standby[0])
        return standby[0]

    def move_to_background(self, worker: WorkerHandle) -> None:
        """Move a worker to the background with its work; the standby takes its place."""
        idle = [other for other in self.background if other.idle]
        if len(self.background) >= self.max_background and idle:
            idle[0].terminate("requested")
        worker.move_to_background()
        self._fill_up()

    async def open(self) -> None:
        """Start the foreground workers; the observer learns when each is ready."""
        self._devices = await asyncio.to_thread(devices_of, self._settings.device)
        self._count = worker_count(self._settings, self._devices)
        self._monitoring = asyncio.create_task(self._monitor())
        for number in range(max(1, self._count)):
            self._start(self._devices[number % len(self._devices)])

    async def close(self) -> None:
        """Terminate all workers at once, and wait for their exit."""
        self._closing.set()
        if self._monitoring is not None:
            self._monitoring.cancel()
        await asyncio.gather(*self._starting)
        for worker, _ in self._all:
            worker.terminate("requested")
        while self._all:
            await asyncio.sleep(_CLOSE_POLL_S)

    def _start(self, device: str) -> None:
        task = asyncio.create_task(self._start_worker(device))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _restart(self, device: str) -> None:
        """Start a worker again that failed to start, after a pause that grows each time."""
        self._restart_s = min(_MAX_RESTART_S, 2.0 * self._restart_s or _FIRST_RESTART_S)
        self._start(device)

    async def _start_worker(self, device: str) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), self._restart_s)
        if self._closing.is_set():
            return
        if self._count:
            try:
                worker = await asyncio.to_thread(self._start_process, device)
            except (OSError, EOFError, psutil.Error):  # EOFError: the fork server ended; psutil's: the worker did
                _LOG.exception("a worker could not be started")
                self._restart(device)
                return
        else:
            ours, theirs = socket.socketpair()
            arguments = (theirs, self._settings)
            threading.Thread(target=forkserver.run_in_thread, args=arguments, name="worker", daemon=True).start()
            worker = WorkerHandle(ours, None)
        self._all.append((worker, device))
        loop = asyncio.get_running_loop()

        def on_message(message: WorkResult | WorkerReady) -> None:
            loop.call_soon_threadsafe(self._on_message, worker, message)

        def on_exit() -> None:
            loop.call_soon_threadsafe(self._on_exit, worker)

        threading.Thread(
            target=worker.receive_until_exit, args=(on_message, on_exit), name="worker-receiver", daemon=True
        ).start()

    def _start_process(self, device: str) -> WorkerHandle:
        threads = max(1, (os.cpu_count() or 1) // self._count)
        ours, theirs = socket.socketpair()
        arguments = (theirs, self._settings, device, threads)
        process = forkserver.context().Process(
            target=forkserver.run_in_process, args=arguments, name="convexlayer-worker", daemon=True
        )
        try:
            with theirs:
                process.start()
            return WorkerHandle(ours, process)
        except BaseException:
            ours.close()
            raise

    def _on_message(self, worker: WorkerHandle, message: WorkResult | WorkerReady) -> None:
        if isinstance(message, WorkerReady):
            worker.capabilities, worker.deadline = message.capabilities, float("inf")
            self._restart_s = 0.0
            self._fill_up()
            self._observer.on_ready(worker)
            return
        work, worker.work, worker.deadline = worker.work, None, float("inf")
        assert work is not None, "a worker sends results for work items alone"
        worker.problems.difference_update(message.evicted_problems)
        worker.batches.difference_update(message.evicted_batches)
        worker.batches.update(message.cached)
        if message.canonicalised:
            worker.problems.add(work.problem_id)
        self._observer.on_done(worker, work, message)

    def _on_exit(self, worker: WorkerHandle) -> None:
        device = next(device for other, device in self._all if other is worker)
        self._all.remove((worker, device))
        reason = worker.exit_reason()
        if not self._closing.is_set():
            if reason != "requested":
                self.replaced += 1
                _LOG.warning("worker %s ended (%s) and is replaced", worker.pid, reason)
            if not worker.ready:
                self._restart(device)
            self._fill_up()
        self._observer.on_exit(worker, worker.work, reason)

    def _foreground_and_standby(self) -> list[WorkerHandle]:
        return [worker for worker in self.all_workers if not worker.in_background]

    def _fill_up(self) -> None:
        """Start the missing foreground workers and the standby, once a worker is ready."""
        for _ in range(self._missing()):
            self._start(self._least_used_device())

    def _missing(self) -> int:
        target = self._count + 1 if self._count else 1
        return target - len(self._starting) - sum(not worker.in_background for worker, _ in self._all)

    def _replace_one_without_kernels(self) -> None:
        """Terminate an idle worker that started without compiled kernels, once the kernels are compiled."""
        outdated = [worker for worker in self.all_workers if worker.without_kernels and worker.idle]
        if outdated and kernel_cache.is_complete():
            _LOG.warning("the kernels are compiled; worker %s is replaced by one that loads them", outdated[-1].pid)
            outdated[-1].terminate("requested")

    def _least_used_device(self) -> str:
        used = [device for worker, device in self._all if not worker.in_background]
        return min(self._devices, key=used.count)

    async def _monitor(self) -> None:
        while True:
            await asyncio.sleep(_MONITOR_S)
            self._replace_one_without_kernels()
            for worker, _ in self._all:
                if worker.pid is not None and worker.terminated_for is None:
                    self._enforce_limits(worker)

    def _enforce_limits(self, worker: WorkerHandle) -> None:
        now = time.monotonic()
        if worker.work is None or self._observer.is_awaited(worker):
            worker.last_needed = now
        if now > worker.deadline:
            worker.terminate("deadline")
        elif now > worker.last_needed + _CANCELLED_S:
            worker.terminate("cancelled")
        elif worker.resident_bytes() > self._settings.worker_memory_bytes:
            worker.terminate("memory")
