"""Callers that leave before they are answered, or never send all that they announced: on their sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.types import Message

from convexlayer_server import presence
from convexlayer_server.engine.computation import Computation
from convexlayer_server.errors import CallerLeftError, DeadlineError, UnavailableError
from convexlayer_server.presence import Presence

from .conftest import DOCUMENT, VALUES
from .running import LargeEngine, Running, WaitingEngine, Wire, eventually, running

SOLVE = json.dumps({"parameters": VALUES}).encode()
LARGE = json.dumps({"parameters": VALUES | {"b": [[0.0] * 4] * 40_000}}).encode()
BINARY = "application/vnd.convexlayer+safetensors"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_SOON_S", 0.0)


@pytest.fixture
def statuses(caplog: pytest.LogCaptureFixture) -> Callable[[], list[int]]:
    """Statuses in the log of requests."""
    caplog.set_level(logging.INFO, "convexlayer_server.access")
    return lambda: [vars(line)["status"] for line in caplog.records if line.name == "convexlayer_server.access"]


def half_a_body(wire: Wire, path: str) -> None:
    wire.request("POST", f"{path}/solve", SOLVE[:10], length=len(SOLVE))


def half_a_chunk(wire: Wire, path: str) -> None:
    wire.request("POST", f"{path}/solve", Content_Type="application/json", Transfer_Encoding="chunked")
    wire.send(b"ff\r\n{")


def half_a_document(wire: Wire, path: str) -> None:
    wire.request("POST", "/v1/problems", b'{"kind": ', length=100)


def half_a_body_that_is_awaited(wire: Wire, path: str) -> None:
    wire.request("POST", f"{path}/solve", b"", length=100, Expect="100-continue")
    assert wire.begin() == 100


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset])
@pytest.mark.parametrize("begin", [half_a_body, half_a_chunk, half_a_document, half_a_body_that_is_awaited])
def test_in_the_middle_of_a_body(
    begin: Callable[[Wire, str], None], leave: Callable[[Wire], None], statuses: Callable[[], list[int]]
) -> None:
    with running() as server:
        path = server.register(DOCUMENT)
        wire = server.wire()
        begin(wire, path)
        leave(wire)
        eventually(lambda: statuses() == [201, 499])
        assert server.measured(_count("POST", f"{_route(begin)}", 499)) == 1
        assert server.service.memory.total == 0


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset])
def test_while_it_is_computed(leave: Callable[[Wire], None], statuses: Callable[[], list[int]]) -> None:
    engine = WaitingEngine()
    with running(engine) as server:
        path = server.register(DOCUMENT)
        wire = server.wire().request("POST", f"{path}/solve", SOLVE)
        eventually(lambda: engine.begun == 1)
        assert server.service.memory.total > 0
        leave(wire)
        eventually(lambda: statuses() == [201, 499])
        assert engine.given_up == 1
        assert server.service.engine.waiting == 0
        assert server.service.memory.total == 0


def test_while_a_large_body_is_read(monkeypatch: pytest.MonkeyPatch, statuses: Callable[[], list[int]]) -> None:
    with running() as server:
        path = server.register(DOCUMENT)
        reading = _Endless()
        monkeypatch.setattr(server.service.readers, "read", reading)
        wire = server.wire().request("POST", f"{path}/solve", LARGE)
        eventually(lambda: reading.begun == 1)
        wire.close()
        eventually(lambda: statuses() == [201, 499])
        assert server.service.memory.total == 0


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset])
@pytest.mark.parametrize("accept", ["application/json", BINARY])
def test_in_the_middle_of_an_answer(
    accept: str, leave: Callable[[Wire], None], statuses: Callable[[], list[int]]
) -> None:
    with running(LargeEngine(64 * 2**20)) as server:
        wire = server.wire().request("POST", f"{server.register(DOCUMENT)}/solve", SOLVE, Accept=accept)
        assert wire.begin() == 200
        leave(wire)
        eventually(lambda: statuses() == [201, 499])
        assert server.service.memory.total == 0


def test_in_the_middle_of_a_jobs_answer(statuses: Callable[[], list[int]]) -> None:
    with running(LargeEngine(64 * 2**20)) as server:
        job = _job(server)
        eventually(lambda: json.loads(server.ask("GET", job).body)["status"] == "done")
        wire = server.wire().request("GET", f"{job}/result")
        assert wire.begin() == 200
        wire.close()
        eventually(lambda: statuses()[-1] == 499)
        assert server.service.memory.total == 0


def test_in_the_middle_of_events(statuses: Callable[[], list[int]]) -> None:
    engine = WaitingEngine()
    with running(engine) as server:
        job = _job(server)
        wire = server.wire().request("GET", f"{job}/events")
        assert wire.begin() == 200
        wire.close()
        eventually(lambda: statuses() == [201, 202, 499])
        assert engine.given_up == 0  # the job lives on
        assert server.ask("DELETE", job).status == 204


def test_a_job_lives_on(statuses: Callable[[], list[int]]) -> None:
    engine = WaitingEngine()
    with running(engine) as server:
        job = _job(server)
        eventually(lambda: engine.begun == 1)
        held = server.service.memory.total
        assert held > 0  # though its request was answered
        assert server.ask("DELETE", job).status == 204
        eventually(lambda: engine.given_up == 1 and server.service.memory.total == 0)


@pytest.mark.parametrize("sent", [b"", b'{"kind": '])
def test_bodies_that_do_not_come(sent: bytes) -> None:
    with running(body_pause_s=0.1) as server, server.wire() as wire:
        answer = wire.request("POST", "/v1/problems", sent, length=1000).answer()
        assert (answer.status, answer.slug) == (408, "timeout")
        assert f"{len(sent)} bytes until now" in json.loads(answer.body)["detail"]
        eventually(lambda: server.service.memory.total == 0)


def test_bodies_that_come_too_slowly(statuses: Callable[[], list[int]]) -> None:
    with running(body_pause_s=0.1, body_bytes_per_s=1e9) as server, server.wire() as wire:
        wire.request("POST", "/v1/problems", b"", length=10**6)
        eventually(lambda: wire.send(b" ") and statuses())  # there is no pause
        assert wire.answer().status == 408


def test_no_body_where_none_is_read() -> None:
    with running() as server:
        job = "/v1/jobs/j_none/events"
        for method, path in (("GET", job), ("DELETE", "/v1/problems/p"), ("HEAD", "/healthz"), ("GET", "/healthz")):
            with server.wire() as wire:
                assert wire.request(method, path, b"{}").begin() == 413
            with server.wire() as wire:
                assert wire.request(method, path, Transfer_Encoding="chunked").begin() == 413
        with server.wire() as wire:
            assert wire.request("GET", "/healthz", b"").begin() == 200


class Connection:
    """ASGI's view of a caller who leaves when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.sent: list[Message] = []
        self._messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self) -> Message:
        if self._messages:
            return self._messages.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


def test_presence_is_noticed_between_body_and_answer() -> None:
    async def run(end: str) -> int:
        connection = Connection()
        async with Presence(connection.receive, connection.send) as present:
            await present.receive()
            await present.send({"type": "http.response.start", "status": 200, "headers": []})
            await present.send({"type": "http.response.body", "body": b"", "more_body": end != "answered"})
            connection.left.set()
            for _ in range(20):
                await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        current = asyncio.current_task()
        assert current is not None
        return current.cancelling()

    assert asyncio.run(run("answered")) == 0
    with pytest.raises(CallerLeftError):
        asyncio.run(run("left"))


@pytest.mark.parametrize(("begun", "error"), [(False, UnavailableError), (True, asyncio.CancelledError)])
def test_who_is_cancelled_by_the_server_is_answered_where_nothing_was_sent(
    begun: bool, error: type[BaseException]
) -> None:
    async def run() -> None:
        connection = Connection()
        async with Presence(connection.receive, connection.send) as present:
            await present.receive()
            if begun:
                await present.send({"type": "http.response.start", "status": 200, "headers": []})
            current = asyncio.current_task()
            assert current is not None
            current.cancel()
            await asyncio.Event().wait()

    with pytest.raises(error):
        asyncio.run(run())


def test_a_server_that_stops_answers_what_it_cannot_finish(
    monkeypatch: pytest.MonkeyPatch, statuses: Callable[[], list[int]]
) -> None:
    over = threading.Event()

    def endless(*_: object, **__: object) -> None:
        over.wait()
        raise DeadlineError("it is over")

    monkeypatch.setattr(Computation, "result", endless)
    with running() as server, ExitStack() as stack:
        path = server.register(DOCUMENT)
        wires = [stack.enter_context(server.wire()).request("POST", f"{path}/solve", SOLVE) for _ in range(3)]
        eventually(lambda: server.service.engine.health().running == 3)
        server.close()
        for wire in wires:
            answer = wire.answer()
            assert (answer.status, answer.slug) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
        over.set()
    assert statuses() == [201, 503, 503, 503]


class _Endless:
    """A reader of bodies that does not come to an end."""

    def __init__(self) -> None:
        self.begun = 0

    async def __call__(self, *arguments: Any) -> Any:
        self.begun += 1
        await asyncio.Event().wait()


def _job(server: Running) -> str:
    path = f"{server.register(DOCUMENT)}/solve"
    accepted = server.ask("POST", path, {"parameters": VALUES}, Prefer="respond-async")
    assert accepted.status == 202
    return accepted.headers["location"]


def _route(begin: Callable[[Wire, str], None]) -> str:
    return "/v1/problems" if begin is half_a_document else "/v1/problems/{problem_id}/solve"


def _count(method: str, route: str, status: int) -> str:
    return f'convexlayer_request_seconds_count{{method="{method}",route="{route}",status="{status}"}}'
