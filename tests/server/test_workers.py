"""Worker processes that end: by a signal, by a limit, or by a problem."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, final

import numpy as np
import pytest

from convexlayer.runtime import kernel_cache
from convexlayer_server.compute import forkserver, worker, worker_pool
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.protocol import ComputeResult
from convexlayer_server.compute.worker_handle import WorkerHandle
from convexlayer_server.compute.worker_messages import WorkItem
from convexlayer_server.errors import DeadlineError, DocumentError, InvalidError, UnavailableError
from convexlayer_server.settings import Settings

from .backends import DOCUMENT, SOLUTION, gradient_request, request

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@final
class PoolHarness:
    """A backend with one worker process and a standby, and its event loop."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.backend = LocalBackend(Settings(workers=1, quarantine_s=3600.0))
        self._runner.run(self.backend.open())

    @property
    def pool(self) -> list[WorkerHandle]:
        return [worker for worker, _ in self.backend._scheduler.pool._all]

    def run(self, work: Callable[[PoolHarness], Awaitable[Any]]) -> Any:
        async def with_both_workers() -> Any:
            while sum(worker.idle for worker in self.pool) < 2:
                await asyncio.sleep(0.01)
            return await work(self)

        return self._runner.run(with_both_workers())

    async def send_to_stopped_worker(self, **fields: Any) -> asyncio.Task[ComputeResult]:
        """Send a request to a stopped worker."""
        await self.backend.run(request("before", **fields), DOCUMENT)
        worker = self.pool[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        task = asyncio.create_task(self.backend.run(request("in-flight", **fields), DOCUMENT))
        while worker.work is None:
            await asyncio.sleep(0)
        return task

    def close(self) -> None:
        self._runner.run(self.backend.close())
        self._runner.close()


@pytest.fixture(scope="module")
def harness() -> Iterator[PoolHarness]:
    harness = PoolHarness()
    yield harness
    harness.close()


def kill(worker: WorkerHandle, number: int = signal.SIGKILL) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, number)
    os.kill(worker.pid, signal.SIGCONT)


def test_a_killed_worker_fails_only_its_request(harness: PoolHarness) -> None:
    async def work(harness: PoolHarness) -> None:
        replaced = harness.backend.health().replaced
        solved = await harness.backend.run(request("s", keep=True), DOCUMENT)
        lost = await harness.send_to_stopped_worker()
        waiting = asyncio.create_task(harness.backend.run(request("waits", problem_id="q"), DOCUMENT))
        await asyncio.sleep(0)
        kill(harness.pool[0])
        with pytest.raises(UnavailableError, match="ended; send it again") as error:
            await lost
        assert error.value.retry_after_s == 1.0
        np.testing.assert_allclose((await waiting).arrays["x"], SOLUTION, atol=1e-8)
        assert harness.backend.health().replaced == replaced + 1
        # the factorisation is lost with the worker, the solutions are not
        gradients = await harness.backend.run(gradient_request(parameters={}, state=solved.state), DOCUMENT)
        np.testing.assert_allclose(gradients.arrays["c"], [1.0, 0.0], atol=1e-8)

    harness.run(work)


def test_merged_requests_are_computed_again(harness: PoolHarness) -> None:
    async def work(harness: PoolHarness) -> None:
        first, second = harness.pool[:2]
        lost = await harness.send_to_stopped_worker()
        merged = [asyncio.create_task(harness.backend.run(request(f"m{i}"), DOCUMENT)) for i in range(3)]
        await asyncio.sleep(0)
        assert second.pid is not None
        os.kill(second.pid, signal.SIGSTOP)
        kill(first)
        while second.work is None:
            await asyncio.sleep(0.001)
        assert second.work.merged
        kill(second)
        for result in await asyncio.gather(*merged):
            np.testing.assert_allclose(result.arrays["x"], SOLUTION, atol=1e-8)
        with pytest.raises(UnavailableError):
            await lost

    harness.run(work)


def test_limits_of_time_and_memory(harness: PoolHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    async def overdue(harness: PoolHarness) -> None:
        task = await harness.send_to_stopped_worker()
        harness.pool[0].deadline = time.monotonic()
        with pytest.raises(DeadlineError):
            await task

    harness.run(overdue)

    async def too_large(harness: PoolHarness) -> None:
        task = await harness.send_to_stopped_worker(problem_id="large")
        worker, resident = harness.pool[0], WorkerHandle.resident_bytes
        with monkeypatch.context() as patch:
            patch.setattr(WorkerHandle, "resident_bytes", lambda each: 2**50 if each is worker else resident(each))
            with pytest.raises(InvalidError, match=r"more memory than a worker may use.*send fewer elements"):
                await task

    assert all(worker.resident_bytes() > 2**20 for worker in harness.pool)
    harness.run(too_large)
    harness.run(too_large)  # twice, but this does not count as a strike

    async def within_limit(harness: PoolHarness) -> None:
        assert (await harness.backend.run(request(problem_id="large"), DOCUMENT)).status == ("optimal", "optimal")

    harness.run(within_limit)


def test_a_worker_with_cancelled_work_is_replaced(harness: PoolHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_CANCELLED_S", 0.0)

    async def leave(harness: PoolHarness) -> None:
        task = await harness.send_to_stopped_worker(problem_id="left")
        stopped = harness.pool[0].pid
        task.cancel()
        while stopped in [worker.pid for worker in harness.pool]:
            await asyncio.sleep(0.01)
        await harness.backend.run(request(problem_id="left"), DOCUMENT)

    harness.run(leave)
    harness.run(leave)  # twice, but this does not count as a strike


def test_canonicalising_has_a_time_limit(harness: PoolHarness) -> None:
    async def work(harness: PoolHarness) -> None:
        worker = harness.pool[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        task = asyncio.create_task(harness.backend.register("slow", DOCUMENT))
        while worker.work is None:
            await asyncio.sleep(0)
        worker.deadline = time.monotonic()
        with pytest.raises(DocumentError, match="canonicalising the problem took more than 60 s"):
            await task

    harness.run(work)


def test_a_problem_that_ends_two_workers_is_quarantined(harness: PoolHarness) -> None:
    async def crash(harness: PoolHarness) -> None:
        task = await harness.send_to_stopped_worker(problem_id="crash")
        kill(harness.pool[0], signal.SIGSEGV)
        with pytest.raises(UnavailableError, match="ended; send it again"):
            await task

    harness.run(crash)
    harness.run(crash)

    async def refused(harness: PoolHarness) -> None:
        with pytest.raises(
            UnavailableError, match="ended 2 workers that computed for this key, and is unavailable to it"
        ) as error:
            await harness.backend.run(request(problem_id="crash"), DOCUMENT)
        assert 0 < (error.value.retry_after_s or 0) <= 3600
        await harness.backend.run(request(), DOCUMENT)

    harness.run(refused)


def test_a_worker_exits_when_its_connection_closes(harness: PoolHarness) -> None:
    async def work(harness: PoolHarness) -> None:
        await harness.backend.run(request(), DOCUMENT)
        first = harness.pool[0]
        first._connection.shutdown(socket.SHUT_RDWR)
        while first in harness.pool:
            await asyncio.sleep(0.01)
        assert first._process.exitcode == 0
        assert first.resident_bytes() == 0

    harness.run(work)


def test_a_worker_exits_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it computes, it does not notice that its connection closed."""
    ended, statuses = threading.Event(), list[int]()

    class Parent:
        join = ended.wait

    monkeypatch.setattr(multiprocessing, "parent_process", Parent)
    monkeypatch.setattr(os, "_exit", statuses.append)
    waiting = threading.Thread(target=worker._exit_with_parent)
    waiting.start()
    assert statuses == []
    ended.set()
    waiting.join()
    assert statuses == [0]


def test_the_standby_moves_to_the_background(harness: PoolHarness) -> None:
    async def work(harness: PoolHarness) -> None:
        pool, (first, standby) = harness.backend._scheduler.pool, harness.pool
        assert pool.move_standby_to_background() is standby
        assert (pool.foreground, pool.background) == ([first], [standby])
        assert [os.getpriority(os.PRIO_PROCESS, each.pid) for each in (first, standby)] == [5, 19]
        while len(pool.all_workers) < 3:
            await asyncio.sleep(0.01)
        assert pool.move_standby_to_background() is None  # there is one background worker at most

    harness.run(work)

    async def back_to_one_standby(harness: PoolHarness) -> None:
        pool, replaced = harness.backend._scheduler.pool, harness.backend.health().replaced
        (first, idle, standby) = harness.pool
        pool.move_to_background(first)  # which ends the idle one, and the standby takes its place
        assert (pool.foreground, pool.background) == ([standby], [first, idle])
        while idle in harness.pool:
            await asyncio.sleep(0.01)
        assert (pool.foreground, pool.background) == ([standby], [first])
        assert idle.exit_reason() == "requested"
        assert harness.backend.health().replaced == replaced
        first.terminate("requested")
        while first in harness.pool:
            await asyncio.sleep(0.01)

    harness.run(back_to_one_standby)


@final
class FailingStarts:
    """The context of worker processes, of which the first ones do not start, or end before they are ready."""

    def __init__(self, failures: int, *, by_signal: bool) -> None:
        self.attempts = 0
        self._failures, self._by_signal = failures, by_signal
        self._context = forkserver.context()

    def Process(self, **arguments: Any) -> Any:
        process = self._context.Process(**arguments)

        def fail() -> None:
            if not self._by_signal:
                raise OSError("no process may be started")
            del process.start  # this function, which cannot be pickled
            process.start()
            process.kill()

        self.attempts += 1
        if self.attempts <= self._failures:
            process.start = fail
        return process


@pytest.mark.parametrize("by_signal", [False, True])
def test_workers_that_do_not_start_are_started_again(
    by_signal: bool, harness: PoolHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses_s: list[float] = []
    pool, starts = harness.backend._scheduler.pool, FailingStarts(3, by_signal=by_signal)
    start = pool._start

    def record_and_start(device: str) -> None:
        pauses_s.append(pool._restart_s)
        start(device)

    async def work(harness: PoolHarness) -> None:
        monkeypatch.setattr(forkserver, "context", lambda: starts)
        monkeypatch.setattr(pool, "_start", record_and_start)
        monkeypatch.setattr(worker_pool, "_FIRST_RESTART_S", 0.01)
        monkeypatch.setattr(worker_pool, "_MAX_RESTART_S", 0.02)
        kill(harness.pool[1])
        while starts.attempts < 4:
            await asyncio.sleep(0.01)

    harness.run(work)
    harness.run(lambda harness: harness.backend.run(request(), DOCUMENT))
    assert pauses_s == [0.0, 0.01, 0.02, 0.02]
    assert pool._restart_s == 0.0  # since one is ready
    assert ("a worker could not be started" in caplog.text) is not by_signal


def test_workers_without_kernels_are_replaced_when_these_are_compiled(
    harness: PoolHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(harness: PoolHarness) -> None:
        before, replaced = list(harness.pool), harness.backend.health().replaced
        for each in before:
            each.without_kernels = True
        await asyncio.sleep(0)
        monkeypatch.setattr(kernel_cache, "is_complete", lambda: True)
        while set(before) & set(harness.pool):
            await asyncio.sleep(0.01)
        assert harness.backend.health().replaced == replaced

    harness.run(work)


def test_a_message_that_cannot_be_read_ends_a_worker(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = socket.socketpair()
    handle, exits = WorkerHandle(ours, None), list[str]()
    with theirs:
        theirs.sendall(struct.pack("<QI", 3, 0) + b"abc")
        handle.receive_until_exit(lambda message: None, lambda: exits.append(handle.exit_reason()))
        assert theirs.recv(1) == b""
    assert exits == ["crash"]
    assert "cannot be read" in caplog.text
    handle.terminate("requested")
    with caplog.at_level(logging.DEBUG):
        handle.start(WorkItem(problem_id="p", document=None, request=request()), limit_s=1.0, size_bytes=0)
    assert "ended before it received its work" in caplog.text
    assert (handle.exit_reason(), handle.pid, handle.resident_bytes()) == ("crash", None, 0)
