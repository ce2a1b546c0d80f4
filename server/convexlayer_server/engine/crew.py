"""The workers: started, watched, ended and replaced.

Those in front are as many as is asked for. One more stands by, ready to take the place of the next one that ends or
goes to the background, where at most as many again do what takes long, at a lower priority. A process that has all of
it imported forks them, in milliseconds (multiprocessing's forkserver). No process pool of the common libraries does
this: those that survive the death of a worker fail all that is in work, or know neither places nor limits.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, final

import psutil

from convexlayer.runtime import kernel_cache

from .. import forking
from ..channel import receive, send
from ..settings import Settings
from .devices import devices_of, worker_count
from .protocol import Abilities
from .work import Done, Ending, Ready, Work

__all__ = ["Crew", "Listener", "Worker"]

_LOG = logging.getLogger(__name__)

_SMALL_BYTES = 2**16
"""What is written from the event loop: an idle worker reads it at once."""

_WATCH_S = 0.1
_ABANDONED_S = 2.0
"""What nobody waits for may go on for so long: to replace a worker costs more."""

_START_S = 300.0
_LONGEST_PAUSE_S = 30.0
_LOWEST = 19


@final
class Worker:
    """One worker, as the engine sees it; for use on the event loop.

    Attributes:
        abilities: what it can do, once it has said that it takes work.
        problems: ids of the problems that it has compiled.
        batches: ids of the solved batches that it keeps.
        work: what it is doing.
        deadline: when that has to be done, or when it has to be ready, by the monotonic clock.
        ending: why it is being ended.
        without_kernels: whether none were compiled when it began.
        in_background: whether it does what takes long.
        wanted: when it was last seen to be free, or at what somebody waits for, by the monotonic clock.
    """

    def __init__(self, connection: socket.socket, process: multiprocessing.process.BaseProcess | None) -> None:
        self.abilities: Abilities | None = None
        self.problems: set[str] = set()
        self.batches: set[str] = set()
        self.work: Work | None = None
        self.deadline = time.monotonic() + _START_S
        self.ending: Ending | None = None
        self.without_kernels = process is not None and not kernel_cache.is_complete()
        self.in_background = False
        self.wanted = time.monotonic()
        self._connection = connection
        self._process = process
        self._watched = None if process is None else psutil.Process(process.pid)

    @property
    def ready(self) -> bool:
        """Whether it has said that it takes work."""
        return self.abilities is not None

    @property
    def idle(self) -> bool:
        """Whether it takes work now."""
        return self.ready and self.work is None and self.ending is None

    @property
    def pid(self) -> int | None:
        """Its process; None of a thread."""
        return None if self._process is None else self._process.pid

    def start(self, work: Work, *, limit_s: float, size_bytes: int) -> None:
        """Give it work.

        Args:
            work: what to do.
            limit_s: seconds that it may take.
            size_bytes: of the arrays, about.
        """
        self.work = work
        self.deadline = time.monotonic() + limit_s
        if size_bytes <= _SMALL_BYTES and work.document is None:
            self._send(work)
        else:
            asyncio.get_running_loop().run_in_executor(None, self._send, work)

    def end(self, ending: Ending) -> None:
        """Kill its process; a thread goes on to the end of its work, and nobody listens."""
        if self.ending is None:
            self.ending = ending
        if self._process is not None:
            self._process.kill()
            return
        try:
            self._connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            _LOG.debug("the connection to a worker was closed already")

    def stand_back(self) -> None:
        """Do what takes long from now on, at the lowest priority."""
        self.in_background = True
        if self._watched is not None and hasattr(os, "setpriority"):
            with suppress(psutil.Error, OSError):
                for thread in self._watched.threads():  # Linux has a priority for each
                    os.setpriority(os.PRIO_PROCESS, thread.id, _LOWEST)

    def listen(self, heard: Callable[[Done | Ready], None], gone: Callable[[], None]) -> None:
        """Hear what it says, from a thread of its own, until it is gone."""
        try:
            while True:
                heard(receive(self._connection))
        except (EOFError, OSError):
            pass
        except Exception:  # what it says cannot be read, so it is of no more use
            _LOG.exception("worker %s is not understood", self.pid)
            self.end("crash")
        self._connection.close()
        if self._process is not None:
            self._process.join()
        gone()

    def how_it_ended(self) -> Ending:
        """Known once it is gone."""
        if self.ending is not None:
            return self.ending
        return "killed" if self._process is not None and self._process.exitcode == -9 else "crash"

    def resident_bytes(self) -> int:
        """Resident memory of its process; 0 where that cannot be known."""
        if self._watched is None:
            return 0
        try:
            return int(self._watched.memory_info().rss)
        except psutil.Error:
            return 0

    def _send(self, work: Work) -> None:
        try:
            send(self._connection, work)
        except OSError:
            _LOG.debug("a worker ended before its work reached it")  # who listens to it notices


class Listener(Protocol):
    """Who gives work to the workers; called on the event loop."""

    def is_waited_for(self, worker: Worker) -> bool:
        """Whether anybody waits for what it is doing."""

    def on_ready(self, worker: Worker) -> None:
        """It takes work."""

    def on_done(self, worker: Worker, work: Work, done: Done) -> None:
        """It has done work, and takes more."""

    def on_gone(self, worker: Worker, work: Work | None, ending: Ending) -> None:
        """It has ended, with work in its hands or without."""


@final
class Crew:
    """As many workers in front as there are to be, one that stands by, and those in the background.

    Args:
        settings: ``workers``, ``background_workers``, ``device``, ``worker_memory_bytes``.
        listener: who gives work to them.

    Attributes:
        replaced: how many ended unasked and were replaced.
    """

    def __init__(self, settings: Settings, listener: Listener) -> None:
        self._settings = settings
        self._listener = listener
        self._devices: list[str] = []
        self._count = 0
        self._all: list[tuple[Worker, str]] = []
        self._closing = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._pause_s = 0.0
        self.replaced = 0

    @property
    def all_workers(self) -> list[Worker]:
        """All that are ready, wherever they are."""
        return [worker for worker, _ in self._all if worker.ready]

    @property
    def workers(self) -> list[Worker]:
        """Those in front, which the one that stands by is not."""
        return self._in_front()[: max(1, self._count)]

    @property
    def background(self) -> list[Worker]:
        """Those in the background."""
        return [worker for worker in self.all_workers if worker.in_background]

    @property
    def most_in_background(self) -> int:
        """How many may be in the background."""
        asked = self._settings.background_workers
        return self._count if asked is None else min(asked, self._count)

    @property
    def room(self) -> int:
        """How much more can be done in the background now: by those that are idle there, and by those still to come."""
        busy = sum(worker.in_background and worker.work is not None for worker, _ in self._all)
        return self.most_in_background - busy

    def recruit(self) -> Worker | None:
        """Let the one that stands by go to the background, idle; None where there is none, or no place."""
        waiting = [worker for worker in self._in_front()[max(1, self._count) :] if worker.idle]
        if not waiting or len(self.background) >= self.most_in_background:
            return None
        self.let_go(waiting[0])
        return waiting[0]

    def let_go(self, worker: Worker) -> None:
        """Let a worker go to the background with what it has in work; another takes its place."""
        idle = [other for other in self.background if other.idle]
        if len(self.background) >= self.most_in_background and idle:
            idle[0].end("asked")
        worker.stand_back()
        self._fill_up()

    @property
    def abilities(self) -> Abilities | None:
        """What the workers can do, those first that run the portable kernels; None before one is ready."""
        said = [worker.abilities for worker in self.workers if worker.abilities is not None]
        return next((able for able in said if able.kernels.path == "portable"), said[0] if said else None)

    async def open(self) -> None:
        """Start them; each is announced when it is ready."""
        self._devices = await asyncio.to_thread(devices_of, self._settings.device)
        self._count = worker_count(self._settings, self._devices)
        self._watching = asyncio.create_task(self._watch())
        for number in range(max(1, self._count)):
            self._start(self._devices[number % len(self._devices)])

    async def close(self) -> None:
        """End them at once."""
        self._closing.set()
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*self._starting)
        for worker, _ in self._all:
            worker.end("asked")
        while self._all:
            await asyncio.sleep(0.005)

    def _start(self, device: str) -> None:
        task = asyncio.create_task(self._started(device))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    def _start_later(self, device: str) -> None:
        """One that did not come to work is tried again, after a pause that grows each time."""
        self._pause_s = min(_LONGEST_PAUSE_S, 2.0 * self._pause_s or 1.0)
        self._start(device)

    async def _started(self, device: str) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), self._pause_s)
        if self._closing.is_set():
            return
        if self._count:
            try:
                worker = await asyncio.to_thread(self._process, device)
            except OSError:
                _LOG.exception("a worker could not be started")
                self._start_later(device)
                return
        else:
            mine, others = socket.socketpair()
            threading.Thread(target=forking.serve, args=(others, self._settings), name="worker", daemon=True).start()
            worker = Worker(mine, None)
        self._all.append((worker, device))
        loop = asyncio.get_running_loop()

        def heard(message: Done | Ready) -> None:
            loop.call_soon_threadsafe(self._heard, worker, message)

        def gone() -> None:
            loop.call_soon_threadsafe(self._gone, worker)

        threading.Thread(target=worker.listen, args=(heard, gone), name="listen-to-worker", daemon=True).start()

    def _process(self, device: str) -> Worker:
        threads = max(1, (os.cpu_count() or 1) // self._count)
        mine, others = socket.socketpair()
        arguments = (others, self._settings, device, threads)
        process = forking.context().Process(target=forking.main, args=arguments, name="convexlayer-worker", daemon=True)
        try:
            with others:
                process.start()
        except OSError:
            mine.close()
            raise
        return Worker(mine, process)

    def _heard(self, worker: Worker, message: Done | Ready) -> None:
        if isinstance(message, Ready):
            worker.abilities, worker.deadline = message.abilities, float("inf")
            self._pause_s = 0.0
            self._fill_up()
            self._listener.on_ready(worker)
            return
        work, worker.work, worker.deadline = worker.work, None, float("inf")
        assert work is not None, "a worker speaks when it has done its work"
        worker.problems.difference_update(message.problems)
        worker.batches.difference_update(message.dropped)
        worker.batches.update(message.kept)
        if message.compiled:
            worker.problems.add(work.problem_id)
        self._listener.on_done(worker, work, message)

    def _gone(self, worker: Worker) -> None:
        device = next(device for other, device in self._all if other is worker)
        self._all.remove((worker, device))
        ending = worker.how_it_ended()
        if not self._closing.is_set():
            if ending != "asked":
                self.replaced += 1
                _LOG.warning("worker %s ended (%s) and is replaced", worker.pid, ending)
            if not worker.ready:
                self._start_later(device)
            self._fill_up()
        self._listener.on_gone(worker, worker.work, ending)

    def _in_front(self) -> list[Worker]:
        return [worker for worker in self.all_workers if not worker.in_background]

    def _fill_up(self) -> None:
        """Start as many as are missing in front, the one that stands by included, once the first is ready."""
        for _ in range(self._missing()):
            self._start(self._least_used())

    def _missing(self) -> int:
        wanted = self._count + 1 if self._count else 1
        return wanted - len(self._starting) - sum(not worker.in_background for worker, _ in self._all)

    def _renew(self) -> None:
        """Let one that began before the kernels were compiled, and is idle, make room for one that has them."""
        older = [worker for worker in self.all_workers if worker.without_kernels and worker.idle]
        if older and kernel_cache.is_complete():
            _LOG.warning(
                "kernels were compiled in the background; worker %s makes room for one that has them", older[-1].pid
            )
            older[-1].end("asked")

    def _least_used(self) -> str:
        used = [device for worker, device in self._all if not worker.in_background]
        return min(self._devices, key=used.count)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            self._renew()
            for worker, _ in self._all:
                if worker.pid is None or worker.ending is not None:
                    continue
                now = time.monotonic()
                if worker.work is None or self._listener.is_waited_for(worker):
                    worker.wanted = now
                if now > worker.deadline:
                    worker.end("deadline")
                elif now > worker.wanted + _ABANDONED_S:
                    worker.end("abandoned")
                elif worker.resident_bytes() > self._settings.worker_memory_bytes:
                    worker.end("memory")
