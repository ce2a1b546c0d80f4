"""Who may wait for the engine: with one that begins and ends each request when told to, and a clock of its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import pytest

from convexlayer_server import Settings
from convexlayer_server.engine import (
    Admission,
    Begun,
    Charge,
    ComputeRequest,
    ComputeResult,
    EngineHealth,
    Progress,
    admission,
)
from convexlayer_server.errors import TooManyError
from convexlayer_server.metrics import Metrics
from convexlayer_server.store import Store
from convexlayer_server.trace import Trace, current_trace
from convexlayer_server.usage import Ledger

from .clock import Clock, at_no_time

T = TypeVar("T")

CLOCK = Clock()

RESULT = ComputeResult(
    arrays={}, batched=True, status=("optimal",) * 3, objective=None, iterations=(), residuals={}, report=None,
    solver="none", reason="", seconds={},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "time", CLOCK)


def done(work: Coroutine[Any, Any, T]) -> T:
    return at_no_time(work, CLOCK)


class ManualEngine:
    """An engine that begins nothing and ends nothing by itself."""

    def __init__(self) -> None:
        self.begun: dict[str, Begun] = {}
        self.cancelled: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def open(self, charge: Charge) -> None:
        self.charge = charge

    async def register(self, problem_id: str, document: bytes, owner: str, begun: Begun) -> Mapping[str, Any]:
        await self._work(problem_id, begun)
        return {"id": problem_id}

    async def run(
        self, request: ComputeRequest, document: bytes, progress: Progress | None, begun: Begun
    ) -> ComputeResult:
        await self._work(request.request_id, begun)
        return RESULT

    async def cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return True

    def health(self) -> EngineHealth:
        return EngineHealth(ready=True, compiled=0, running=0, workers=1)

    async def close(self) -> None: ...

    async def _work(self, name: str, begun: Begun) -> None:
        self.begun[name] = begun
        self._ends[name] = asyncio.Event()
        try:
            await self._ends[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise

    async def begin(self, *names: str) -> None:
        for name in names:
            self.begun[name]()
        await settled()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
        await settled()


def arriving(setup: Setup, owner: str) -> AbstractContextManager[None]:
    """A request of its own."""
    current_trace(begin=Trace(""))
    return setup.admission.arriving(owner)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Setup:
    def __init__(self, **settings: Any) -> None:
        self.engine = ManualEngine()
        self.ledger = Ledger(Store(Settings()))
        self.metrics = Metrics()
        self.admission = Admission(self.engine, Settings(**settings), self.ledger, self.metrics)
        self.tasks: dict[str, asyncio.Task[ComputeResult]] = {}

    async def send(self, *names: str, progress: Progress | None = None) -> None:
        """Requests whose owner is the first letter of their name."""
        for name in names:
            request = ComputeRequest(
                request_id=name, owner=name[0], problem_id="p", operation="solve", parameters={"c": np.zeros(3)}
            )
            self.tasks[name] = asyncio.create_task(self._run(request, progress))
        await settled()

    async def _run(self, request: ComputeRequest, progress: Progress | None) -> ComputeResult:
        current_trace(begin=Trace(request.request_id))
        return await self.admission.run(request, b"{}", progress)


def test_when_too_many_wait_the_greediest_key_is_refused() -> None:
    async def run() -> None:
        setup = Setup(max_waiting=3)
        await setup.send("a1", "a2", "a3")
        with pytest.raises(TooManyError), arriving(setup, "a"):
            pass
        await setup.send("a4")
        with pytest.raises(TooManyError) as caught:
            await setup.tasks["a4"]
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
        with arriving(setup, "b"):
            pass
        await setup.send("b1")
        with pytest.raises(TooManyError):
            await setup.tasks["a3"]
        assert setup.engine.cancelled == ["a3"]
        assert setup.admission.waiting == 3
        await setup.engine.begin("a1")
        assert setup.admission.waiting == 2
        await setup.send("a5")
        await setup.engine.begin("b1")
        await setup.engine.end("b1")
        assert (await setup.tasks["b1"]).status == RESULT.status

    done(run())


def test_those_that_are_being_read_have_a_place() -> None:
    async def run() -> None:
        setup = Setup(max_waiting=2)
        with arriving(setup, "a"), arriving(setup, "a"), pytest.raises(TooManyError), arriving(setup, "a"):
            pass
        with arriving(setup, "a"):
            pass

    done(run())


def test_what_one_key_never_ends_sending_keeps_no_other_out() -> None:
    async def run() -> None:
        setup = Setup(max_waiting=2)
        with arriving(setup, "a"), arriving(setup, "a"):
            with arriving(setup, "b"):
                pass
            with pytest.raises(TooManyError), arriving(setup, "a"):
                pass

    done(run())


def test_nobody_waits_for_ever_but_a_job_and_what_has_begun() -> None:
    async def run() -> None:
        setup = Setup(max_wait_s=0.01)
        await setup.send("a1", "a2")
        await setup.send("a3", progress=lambda done, total: None)
        await setup.engine.begin("a1")
        await asyncio.sleep(1.0)
        with pytest.raises(TooManyError):
            await setup.tasks["a2"]
        await setup.engine.end("a1", "a3")
        for name in ("a1", "a3"):
            assert (await setup.tasks[name]).status == RESULT.status

    done(run())


def test_a_time_out_of_the_engine_is_not_taken_for_one_of_waiting() -> None:
    async def run() -> None:
        setup = Setup()

        async def late(*_: Any) -> ComputeResult:
            raise TimeoutError("mine")

        setup.engine.run = late  # type: ignore[method-assign]
        await setup.send("a1")
        with pytest.raises(TimeoutError, match="mine"):
            await setup.tasks["a1"]
        assert setup.admission.waiting == 0

    done(run())


def test_who_leaves_gives_up_the_place() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("a1", "a2")
        setup.tasks["a1"].cancel()
        await settled()
        assert setup.admission.waiting == 1
        assert await setup.admission.cancel("a2")
        assert setup.engine.cancelled == ["a1", "a2"]

    done(run())


def test_registrations_hold_a_place_too() -> None:
    async def run() -> None:
        setup = Setup(max_waiting=1)
        task = asyncio.create_task(setup.admission.register("p", b"{}", "b"))
        await settled()
        assert setup.admission.waiting == 1
        await setup.engine.begin("p")
        await setup.engine.end("p")
        assert await task == {"id": "p"}

    done(run())


def test_usage_and_metrics_are_counted() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.admission.open()
        await setup.send("a1", "b1")
        await asyncio.sleep(0.03)
        await setup.engine.begin("a1", "b1")
        await asyncio.sleep(0.02)
        for owner in "ab":
            setup.engine.charge(owner, 0.01)
        await setup.engine.end("a1", "b1")
        used = {key: usage for (key, _), usage in setup.ledger.take().items()}
        assert used["a"].elements == used["b"].elements == 3
        assert used["a"].seconds == used["b"].seconds == pytest.approx(0.01)
        text = setup.metrics.written().decode()
        waited = re.search(r'convexlayer_queue_seconds_sum\{operation="solve"\} (\S+)', text)
        assert waited is not None
        assert float(waited[1]) == pytest.approx(0.06)
        assert 'convexlayer_compute_seconds_count{operation="solve"} 2.0' in text
        assert 'convexlayer_batch_elements_sum{operation="solve"} 6.0' in text

    done(run())
