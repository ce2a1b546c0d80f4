"""Worker processes that end: by a signal, by a limit, or by a problem."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, final

import numpy as np
import pytest

from convexlayer_server.compute import worker_pool
from convexlayer_server.compute.local_backend import LocalBackend
from convexlayer_server.compute.protocol import ComputeResult
from convexlayer_server.compute.worker_handle import WorkerHandle
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
