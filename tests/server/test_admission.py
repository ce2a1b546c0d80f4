"""The admission queue, with a manual backend and a manual clock."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import pytest

from convexlayer_server import Settings
from convexlayer_server.admission import admission_queue
from convexlayer_server.admission.admission_queue import AdmissionQueue
from convexlayer_server.admission.usage import UsageLedger
from convexlayer_server.compute.protocol import (
    ComputeHealth,
    ComputeRequest,
    ComputeResult,
    OnProgress,
    OnStart,
    RecordUsage,
)
from convexlayer_server.errors import TooManyError
from convexlayer_server.observability.metrics import Metrics
from convexlayer_server.observability.tracing import RequestContext, set_context
from convexlayer_server.store import Store

from .clock import Clock, run_with_clock

T = TypeVar("T")

CLOCK = Clock()

RESULT = ComputeResult(
    arrays={}, batched=True, status=("optimal",) * 3, objective=None, iterations=(), residuals={}, report=None,
    solver="none", reason="", seconds={},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _manual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_queue, "time", CLOCK)


def run(work: Coroutine[Any, Any, T]) -> T:
    return run_with_clock(work, CLOCK)


class ManualBackend:
    """A backend that starts and finishes requests when the test says so."""

    def __init__(self) -> None:
        self.started: dict[str, OnStart] = {}
        self.cancelled: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def open(self, record_usage: RecordUsage) -> None:
        self.record_usage = record_usage

    async def register(self, problem_id: str, document: bytes, owner: str, started: OnStart) -> Mapping[str, Any]:
        await self._work(problem_id, started)
        return {"id": problem_id}

    async def run(
        self, request: ComputeRequest, document: bytes, on_progress: OnProgress | None, started: OnStart
    ) -> ComputeResult:
        await self._work(request.request_id, started)
        return RESULT

    async def cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return True

    def health(self) -> ComputeHealth:
        return ComputeHealth(ready=True, cached_problems=0, running=0, workers=1)

    async def close(self) -> None: ...

    async def _work(self, name: str, started: OnStart) -> None:
        self.started[name] = started
        self._ends[name] = asyncio.Event()
        try:
            await self._ends[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise

    async def start(self, *names: str) -> None:
        for name in names:
            self.started[name]()
        await settle()

    async def finish(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await settle()


def admit(setup: Setup, owner: str) -> AbstractContextManager[None]:
    """Admit a request with its own context."""
    set_context(RequestContext(""))
    return setup.queue.admit(owner)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Setup:
    def __init__(self, **settings: Any) -> None:
        self.backend = ManualBackend()
        self.ledger = UsageLedger(Store(Settings()))
        self.metrics = Metrics()
        self.queue = AdmissionQueue(self.backend, Settings(**settings), self.ledger, self.metrics)
        self.tasks: dict[str, asyncio.Task[ComputeResult]] = {}

    async def send(self, *names: str, on_progress: OnProgress | None = None) -> None:
        """Send requests; the owner is the first letter of the name."""
        for name in names:
            request = ComputeRequest(
                request_id=name, owner=name[0], problem_id="p", operation="solve", parameters={"c": np.zeros(3)}
            )
            self.tasks[name] = asyncio.create_task(self._run(request, on_progress))
        await settle()

    async def _run(self, request: ComputeRequest, on_progress: OnProgress | None) -> ComputeResult:
        set_context(RequestContext(request.request_id))
        return await self.queue.run(request, b"{}", on_progress)


def test_a_full_queue_refuses_the_key_with_the_most_requests() -> None:
    async def scenario() -> None:
        setup = Setup(max_waiting=3)
        await setup.send("a1", "a2", "a3")
        with pytest.raises(TooManyError), admit(setup, "a"):
            pass
        await setup.send("a4")
        with pytest.raises(TooManyError) as caught:
            await setup.tasks["a4"]
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
        with admit(setup, "b"):
            pass
        await setup.send("b1")
        with pytest.raises(TooManyError):
            await setup.tasks["a3"]
        assert setup.backend.cancelled == ["a3"]
        assert setup.queue.waiting == 3
        await setup.backend.start("a1")
        assert setup.queue.waiting == 2
        await setup.send("a5")
        await setup.backend.start("b1")
        await setup.backend.finish("b1")
        assert (await setup.tasks["b1"]).status == RESULT.status

    run(scenario())


def test_requests_that_are_being_received_count() -> None:
    async def scenario() -> None:
        setup = Setup(max_waiting=2)
        with admit(setup, "a"), admit(setup, "a"), pytest.raises(TooManyError), admit(setup, "a"):
            pass
        with admit(setup, "a"):
            pass

    run(scenario())


def test_unfinished_requests_of_one_key_do_not_block_another() -> None:
    async def scenario() -> None:
        setup = Setup(max_waiting=2)
        with admit(setup, "a"), admit(setup, "a"):
            with admit(setup, "b"):
                pass
            with pytest.raises(TooManyError), admit(setup, "a"):
                pass

    run(scenario())


def test_waiting_is_limited_but_for_jobs() -> None:
    async def scenario() -> None:
        setup = Setup(max_wait_s=0.01)
        await setup.send("a1", "a2")
        await setup.send("a3", on_progress=lambda done, total: None)
        await setup.backend.start("a1")
        await asyncio.sleep(1.0)
        with pytest.raises(TooManyError):
            await setup.tasks["a2"]
        await setup.backend.finish("a1", "a3")
        for name in ("a1", "a3"):
            assert (await setup.tasks[name]).status == RESULT.status

    run(scenario())


def test_a_timeout_of_the_backend_is_not_one_of_the_queue() -> None:
    async def scenario() -> None:
        setup = Setup()

        async def late(*_: Any) -> ComputeResult:
            raise TimeoutError("mine")

        setup.backend.run = late  # type: ignore[method-assign, assignment]
        await setup.send("a1")
        with pytest.raises(TimeoutError, match="mine"):
            await setup.tasks["a1"]
        assert setup.queue.waiting == 0

    run(scenario())


def test_cancelled_requests_leave_the_queue() -> None:
    async def scenario() -> None:
        setup = Setup()
        await setup.send("a1", "a2")
        setup.tasks["a1"].cancel()
        await settle()
        assert setup.queue.waiting == 1
        assert await setup.queue.cancel("a2")
        assert setup.backend.cancelled == ["a1", "a2"]

    run(scenario())


def test_registrations_wait_too() -> None:
    async def scenario() -> None:
        setup = Setup(max_waiting=1)
        task = asyncio.create_task(setup.queue.register("p", b"{}", "b"))
        await settle()
        assert setup.queue.waiting == 1
        await setup.backend.start("p")
        await setup.backend.finish("p")
        assert await task == {"id": "p"}

    run(scenario())


def test_usage_and_metrics_are_recorded() -> None:
    async def scenario() -> None:
        setup = Setup()
        await setup.queue.open()
        await setup.send("a1", "b1")
        await asyncio.sleep(0.03)
        await setup.backend.start("a1", "b1")
        await asyncio.sleep(0.02)
        for owner in "ab":
            setup.backend.record_usage(owner, 0.01)
        await setup.backend.finish("a1", "b1")
        used = {key: usage for (key, _), usage in setup.ledger.take_unwritten().items()}
        assert used["a"].elements == used["b"].elements == 3
        assert used["a"].seconds == used["b"].seconds == pytest.approx(0.01)
        text = setup.metrics.exposition().decode()
        waited = re.search(r'convexlayer_queue_seconds_sum\{operation="solve"\} (\S+)', text)
        assert waited is not None
        assert float(waited[1]) == pytest.approx(0.06)
        assert 'convexlayer_compute_seconds_count{operation="solve"} 2.0' in text
        assert 'convexlayer_batch_elements_sum{operation="solve"} 6.0' in text

    run(scenario())
