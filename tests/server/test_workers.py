"""Worker processes that end: by a signal, by a limit, by a problem. Each test brings its own misfortune to one crew."""

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

from convexlayer_server.engine import ComputeResult, EmbeddedEngine, crew
from convexlayer_server.engine.crew import Worker
from convexlayer_server.errors import DeadlineError, DocumentError, InvalidError, UnavailableError
from convexlayer_server.settings import Settings

from .engines import DOCUMENT, SOLUTION, gradient_request, request

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@final
class Shop:
    """An engine with one worker process and one that stands by, on an event loop that lives as long."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self.engine = EmbeddedEngine(Settings(workers=1, quarantine_s=3600.0))
        self._runner.run(self.engine.open())

    @property
    def crew(self) -> list[Worker]:
        return [worker for worker, _ in self.engine._scheduler.crew._all]

    def run(self, work: Callable[[Shop], Awaitable[Any]]) -> Any:
        async def with_a_full_crew() -> Any:
            while sum(worker.idle for worker in self.crew) < 2:
                await asyncio.sleep(0.01)
            return await work(self)

        return self._runner.run(with_a_full_crew())

    async def in_the_hands_of_a_stopped_worker(self, **fields: Any) -> asyncio.Task[ComputeResult]:
        """A request that has been given to the worker, which does nothing any more."""
        await self.engine.run(request("before", **fields), DOCUMENT)
        worker = self.crew[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        task = asyncio.create_task(self.engine.run(request("in-flight", **fields), DOCUMENT))
        while worker.work is None:
            await asyncio.sleep(0)
        return task

    def close(self) -> None:
        self._runner.run(self.engine.close())
        self._runner.close()


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    shop = Shop()
    yield shop
    shop.close()


def kill(worker: Worker, number: int = signal.SIGKILL) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, number)
    os.kill(worker.pid, signal.SIGCONT)


def test_a_killed_worker_costs_what_was_in_its_hands_alone(shop: Shop) -> None:
    async def work(shop: Shop) -> None:
        replaced = shop.engine.health().replaced
        solved = await shop.engine.run(request("s", keep=True), DOCUMENT)
        lost = await shop.in_the_hands_of_a_stopped_worker()
        waiting = asyncio.create_task(shop.engine.run(request("waits", problem_id="q"), DOCUMENT))
        await asyncio.sleep(0)
        kill(shop.crew[0])
        with pytest.raises(UnavailableError, match="ended; send it again") as error:
            await lost
        assert error.value.retry_after_s == 1.0
        np.testing.assert_allclose((await waiting).arrays["x"], SOLUTION, atol=1e-8)
        assert shop.engine.health().replaced == replaced + 1
        # the factors are lost with the worker, the solutions are not
        gradients = await shop.engine.run(gradient_request(parameters={}, state=solved.state), DOCUMENT)
        np.testing.assert_allclose(gradients.arrays["c"], [1.0, 0.0], atol=1e-8)

    shop.run(work)


def test_requests_that_were_merged_are_done_again(shop: Shop) -> None:
    async def work(shop: Shop) -> None:
        first, second = shop.crew[:2]
        lost = await shop.in_the_hands_of_a_stopped_worker()
        merged = [asyncio.create_task(shop.engine.run(request(f"m{i}"), DOCUMENT)) for i in range(3)]
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

    shop.run(work)


def test_limits_of_time_and_memory(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def late(shop: Shop) -> None:
        task = await shop.in_the_hands_of_a_stopped_worker()
        shop.crew[0].deadline = time.monotonic()
        with pytest.raises(DeadlineError):
            await task

    shop.run(late)

    async def fat(shop: Shop) -> None:
        task = await shop.in_the_hands_of_a_stopped_worker(problem_id="fat")
        worker, resident = shop.crew[0], Worker.resident_bytes
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "resident_bytes", lambda each: 2**50 if each is worker else resident(each))
            with pytest.raises(InvalidError, match=r"more memory than a worker may have.*send fewer elements"):
                await task

    assert all(worker.resident_bytes() > 2**20 for worker in shop.crew)
    shop.run(fat)
    shop.run(fat)  # twice, and yet nobody is kept from it, who may send less

    async def lean(shop: Shop) -> None:
        assert (await shop.engine.run(request(problem_id="fat"), DOCUMENT)).status == ("optimal", "optimal")

    shop.run(lean)


def test_what_nobody_waits_for_does_not_keep_a_worker(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_ABANDONED_S", 0.0)

    async def leave(shop: Shop) -> None:
        task = await shop.in_the_hands_of_a_stopped_worker(problem_id="left")
        stopped = shop.crew[0].pid
        task.cancel()
        while stopped in [worker.pid for worker in shop.crew]:
            await asyncio.sleep(0.01)
        await shop.engine.run(request(problem_id="left"), DOCUMENT)

    shop.run(leave)
    shop.run(leave)  # twice, and the problem is not blamed


def test_compiling_has_limits_too(shop: Shop) -> None:
    async def work(shop: Shop) -> None:
        worker = shop.crew[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        task = asyncio.create_task(shop.engine.register("slow", DOCUMENT))
        while worker.work is None:
            await asyncio.sleep(0)
        worker.deadline = time.monotonic()
        with pytest.raises(DocumentError, match="compiling it took more than 60 s"):
            await task

    shop.run(work)


def test_a_problem_that_ends_two_workers_is_quarantined(shop: Shop) -> None:
    async def crash(shop: Shop) -> None:
        task = await shop.in_the_hands_of_a_stopped_worker(problem_id="crash")
        kill(shop.crew[0], signal.SIGSEGV)
        with pytest.raises(UnavailableError, match="ended; send it again"):
            await task

    shop.run(crash)
    shop.run(crash)

    async def refused(shop: Shop) -> None:
        with pytest.raises(
            UnavailableError, match="ended 2 workers that computed for this key, and is refused to it"
        ) as error:
            await shop.engine.run(request(problem_id="crash"), DOCUMENT)
        assert 0 < (error.value.retry_after_s or 0) <= 3600
        await shop.engine.run(request(), DOCUMENT)

    shop.run(refused)
