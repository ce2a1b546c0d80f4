"""Requests whose wait ends in the same moment as something else, and what is told about the wait."""

from __future__ import annotations

import asyncio

import pytest

from convexlayer_server.admission import admission_queue
from convexlayer_server.compute.protocol import ComputeRequest
from convexlayer_server.errors import TooManyError
from convexlayer_server.observability.tracing import RequestContext, set_context

from .test_admission import CLOCK, RESULT, Setup, run, settle


@pytest.fixture(autouse=True)
def _manual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_queue, "time", CLOCK)


def test_a_worker_starts_a_request_that_has_just_waited_too_long() -> None:
    async def scenario() -> None:
        setup, errors = Setup(max_wait_s=1.0), list[Exception]()

        def start() -> None:
            try:
                setup.backend.started["a1"]()
            except Exception as error:
                errors.append(error)

        await setup.send("a1")
        asyncio.get_running_loop().call_later(1.0, start)
        await asyncio.sleep(1.0)
        await settle()
        assert not errors
        with pytest.raises(TooManyError):
            await setup.tasks["a1"]

    run(scenario())


def test_a_request_arrives_when_others_have_just_waited_too_long() -> None:
    async def scenario() -> None:
        setup = Setup(max_wait_s=1.0, max_waiting=2)
        newest = ComputeRequest(request_id="b1", owner="b", problem_id="p", operation="solve", parameters={})

        def arrive() -> None:
            setup.tasks["b1"] = asyncio.create_task(setup._run(newest, None))

        asyncio.get_running_loop().call_later(1.0, arrive)
        await setup.send("a1", "a2")
        await asyncio.sleep(1.0)
        await settle()
        await setup.backend.start("b1")
        await setup.backend.finish("b1")
        assert (await setup.tasks["b1"]).status == RESULT.status
        for name in ("a1", "a2"):
            with pytest.raises(TooManyError):
                await setup.tasks[name]

    run(scenario())


def test_a_request_that_never_started_has_no_compute_time() -> None:
    """The same request has registered its problem before."""

    async def scenario() -> None:
        setup = Setup(max_wait_s=1.0)
        context = set_context(RequestContext("r"))
        registering = asyncio.create_task(setup.queue.register("p", b"{}", "a"))
        await settle()
        await setup.backend.start("p")
        await setup.backend.finish("p")
        await registering
        assert context.queue_s is not None
        setup._run = lambda request, on_progress: setup.queue.run(request, b"{}", on_progress)  # type: ignore[method-assign]
        await setup.send("a1")
        await asyncio.sleep(2.0)
        with pytest.raises(TooManyError):
            await setup.tasks["a1"]
        assert 'convexlayer_compute_seconds_count{operation="solve"}' not in setup.metrics.exposition().decode()

    run(scenario())
