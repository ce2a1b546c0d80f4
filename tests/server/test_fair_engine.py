"""The queue before the engine, with an engine that ends each request when it is told to, and a clock of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import pytest

from convexlayer_server import Settings
from convexlayer_server.engine import (
    ComputeOptions,
    ComputeRequest,
    ComputeResult,
    EngineHealth,
    FairEngine,
    Progress,
    fair,
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
    monkeypatch.setattr(fair, "time", CLOCK)


def done(work: Coroutine[Any, Any, T]) -> T:
    return at_no_time(work, CLOCK)


class ManualEngine:
    """An engine of one worker."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def open(self) -> None: ...

    async def register(self, problem_id: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        await self._work(problem_id)
        return {"id": problem_id}

    async def run(
        self, request: ComputeRequest, document: Mapping[str, Any], progress: Progress | None = None
    ) -> ComputeResult:
        await self._work(request.request_id)
        return RESULT

    async def cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return True

    def health(self) -> EngineHealth:
        return EngineHealth(ready=True, compiled=0, running=0, workers=1)

    async def close(self) -> None: ...

    async def _work(self, name: str) -> None:
        self.started.append(name)
        self._ends[name] = asyncio.Event()
        await self._ends[name].wait()

    async def end(self, *names: str) -> None:
        await asyncio.sleep(1e-3)  # nothing takes no time
        for name in names:
            self._ends[name].set()
        await settled()


def arriving(setup: Setup, owner: str) -> AbstractContextManager[None]:
    """A request of its own."""
    current_trace(begin=Trace(""))
    return setup.engine.arriving(owner)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Setup:
    def __init__(self, **settings: Any) -> None:
        self.manual = ManualEngine()
        self.ledger = Ledger(Store(Settings()))
        self.metrics = Metrics()
        self.engine = FairEngine(self.manual, Settings(**settings), self.ledger, self.metrics)
        self.tasks: dict[str, asyncio.Task[ComputeResult]] = {}

    async def send(
        self, *names: str, problem: str | None = None, progress: Progress | None = None, **fields: Any
    ) -> None:
        """Requests whose owner is the first letter of their name, each of a problem of its own unless it is named."""
        for name in names:
            request = ComputeRequest(
                request_id=name, owner=name[0], problem_id=problem or name, operation="solve",
                parameters={"c": np.zeros(3)}, **fields,
            )  # fmt: skip
            self.tasks[name] = asyncio.create_task(self.engine.run(request, {}, progress))
        await settled()


def test_one_key_cannot_flood() -> None:
    async def run() -> list[str]:
        setup = Setup()
        await setup.send("a1", "a2", "a3", "a4", "b1", "b2")
        for _ in range(6):
            await asyncio.sleep(0.05)  # longer than a worker is ever held back
            await setup.manual.end(setup.manual.started[-1])
        return setup.manual.started

    assert done(run()) == ["a1", "b1", "a2", "b2", "a3", "a4"]


def test_what_can_be_merged_goes_together() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("x")
        await setup.send("a1", "b1", "c1", problem="p")
        await setup.send("a2", problem="p", options=ComputeOptions(tol=1e-3))
        await setup.send("a3", problem="q")
        await setup.manual.end("x")
        assert setup.manual.started == ["x", "a1", "b1", "c1"]
        await setup.manual.end("a1", "b1")
        assert setup.manual.started[4:] == []
        await setup.manual.end("c1")
        assert len(setup.manual.started[4:]) == 1

    done(run())


def test_merging_is_limited_and_can_be_turned_off() -> None:
    async def started(**settings: Any) -> int:
        setup = Setup(**settings)
        await setup.send("a")
        await setup.send("a1", "a2", "a3", "a4", problem="p")
        await setup.manual.end("a")
        return len(setup.manual.started) - 1

    assert done(started()) == 4
    assert done(started(merged_rows=2)) == 2
    assert done(started(batching=False)) == 1
    assert done(started(batching=False, max_running=3)) == 3


def test_long_computations_are_merged_less() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("a0", problem="p")
        await asyncio.sleep(0.1)
        await setup.manual.end("a0")
        await setup.send("a")
        await setup.send(*(f"a{number}" for number in range(1, 10)), problem="p")
        await setup.manual.end("a")
        assert setup.manual.started == ["a0", "a", "a1", "a2"]

    done(run())


def test_a_worker_is_held_back_for_a_key_that_was_served_less() -> None:
    async def run() -> list[str]:
        setup = Setup()
        await setup.send("b0")
        await setup.send("a1", "a2", "a3")
        await setup.manual.end("b0")
        assert setup.manual.started == ["b0", "a1"]
        await setup.send("b1")
        await asyncio.sleep(0.05)
        await setup.manual.end("a1")
        assert setup.manual.started == ["b0", "a1", "b1"]
        await asyncio.sleep(0.02)
        await setup.manual.end("b1")
        assert setup.manual.started == ["b0", "a1", "b1"]  # though two requests of the other key wait
        await setup.send("b2")
        return setup.manual.started

    assert done(run()) == ["b0", "a1", "b1", "b2"]


def test_a_worker_is_held_back_for_what_is_being_read() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("a1", "a2", "a3")
        with arriving(setup, "b"):
            await setup.manual.end("a1")
            assert setup.manual.started == ["a1"]
            await setup.send("b1")
            assert setup.manual.started == ["a1", "b1"]
        with arriving(setup, "a"):
            await setup.manual.end("b1")
        await asyncio.sleep(0.05)
        assert setup.manual.started == ["a1", "b1", "a2"]

    done(run())


def test_a_worker_is_not_held_back_for_long() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("a1", "a2")
        await setup.send("b1")
        await asyncio.sleep(0.05)
        await setup.manual.end("a1")
        await asyncio.sleep(0.01)
        await setup.manual.end("b1")
        await asyncio.sleep(0.05)
        assert setup.manual.started == ["a1", "b1", "a2"]

    done(run())


def test_when_too_many_wait_the_greediest_key_is_refused() -> None:
    async def run() -> None:
        setup = Setup(max_waiting=3)
        await setup.send("a0", "a1", "a2", "a3")
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
        await setup.manual.end("a0")
        assert setup.manual.started == ["a0", "b1"]

    done(run())


def test_those_that_are_being_read_have_a_place() -> None:
    async def run() -> None:
        setup = Setup(max_waiting=2)
        await setup.send("a0")
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


def test_requests_that_come_to_nothing_hold_no_worker_back_for_long() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("a1", "a2")
        with arriving(setup, "b"):
            await setup.manual.end("a1")
        assert setup.manual.started == ["a1"]
        for _ in range(100):
            with arriving(setup, "b"):
                await asyncio.sleep(0.005)
        assert setup.manual.started == ["a1", "a2"]

    done(run())


def test_nobody_waits_for_ever_but_a_job() -> None:
    async def run() -> None:
        setup = Setup(max_wait_s=0.01)
        await setup.send("a1", "a2")
        await setup.send("a3", progress=lambda done, total: None)
        with pytest.raises(TooManyError):
            await setup.tasks["a2"]
        await setup.manual.end("a1")
        assert setup.manual.started == ["a1", "a3"]

    done(run())


def test_cancelling() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("a1", "a2", "a3", "a4")
        assert await setup.engine.cancel("a2")
        with pytest.raises(asyncio.CancelledError):
            await setup.tasks["a2"]
        assert setup.manual.cancelled == []
        assert await setup.engine.cancel("a1")
        assert setup.manual.cancelled == ["a1"]
        setup.tasks["a3"].cancel()  # as where a client goes away
        setup.tasks["a1"].cancel()
        await settled()
        assert setup.manual.started == ["a1", "a4"]
        await setup.manual.end("a4")
        assert (await setup.tasks["a4"]).status == RESULT.status
        await setup.send("a5")
        assert setup.manual.started[-1] == "a5"

    done(run())


def test_a_cancelled_request_in_the_turn_that_it_gets_leaves_no_gap() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("a1", "a2", "a3")
        setup.manual._ends["a1"].set()
        setup.tasks["a2"].cancel()
        await settled()
        assert setup.manual.started == ["a1", "a3"]

    done(run())


def test_registrations_wait_for_their_turn_too() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("a1", "a2", "a3")
        task = asyncio.create_task(setup.engine.register("p", {}, "b"))
        await settled()
        await setup.manual.end("a1")
        assert setup.manual.started == ["a1", "p"]
        await setup.manual.end("p")
        assert await task == {"id": "p"}

    done(run())


def test_usage_and_metrics_are_counted() -> None:
    async def run() -> None:
        setup = Setup()
        await setup.send("x")
        await setup.send("a1", "b1", problem="p")
        await asyncio.sleep(0.03)
        await setup.manual.end("x")
        await asyncio.sleep(0.02)
        await setup.manual.end("a1", "b1")
        used = {key: usage for (key, _), usage in setup.ledger.take().items()}
        assert used["a"].elements == used["b"].elements == 3
        assert used["a"].seconds == used["b"].seconds == pytest.approx(0.0105)  # half of what both took
        assert (await setup.tasks["a1"]).seconds["queue"] == pytest.approx(0.031)
        text = setup.metrics.written().decode()
        assert 'convexlayer_compute_seconds_count{operation="solve"} 3.0' in text
        assert 'convexlayer_batch_elements_sum{operation="solve"} 9.0' in text

    done(run())
