"""Clients that disconnect before the response, or do not send all of a body."""

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

from convexlayer_server.compute.problem_solver import ProblemSolver
from convexlayer_server.errors import ClientDisconnectedError, DeadlineError, UnavailableError
from convexlayer_server.http import disconnect
from convexlayer_server.http.disconnect import CancelOnDisconnect

from .conftest import DOCUMENT, VALUES
from .running import LargeBackend, Running, WaitingBackend, Wire, eventually, running

SOLVE = json.dumps({"parameters": VALUES}).encode()
LARGE = json.dumps({"parameters": VALUES | {"b": [[0.0] * 4] * 40_000}}).encode()
BINARY = "application/vnd.convexlayer+safetensors"


@pytest.fixture(autouse=True)
def no_grace_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disconnect, "_GRACE_S", 0.0)


@pytest.fixture
def statuses(caplog: pytest.LogCaptureFixture) -> Callable[[], list[int]]:
    """Statuses in the access log."""
    caplog.set_level(logging.INFO, "convexlayer_server.access")
    return lambda: [vars(line)["status"] for line in caplog.records if line.name == "convexlayer_server.access"]


def half_a_body(wire: Wire, path: str) -> None:
    wire.request("POST", f"{path}/solve", SOLVE[:10], length=len(SOLVE))


def half_a_chunk(wire: Wire, path: str) -> None:
    wire.request("POST", f"{path}/solve", Content_Type="application/json", Transfer_Encoding="chunked")
    wire.send(b"ff\r\n{")


def half_a_document(wire: Wire, path: str) -> None:
    wire.request("POST", "/v1/problems", b'{"kind": ', length=100)


def half_a_body_after_continue(wire: Wire, path: str) -> None:
    wire.request("POST", f"{path}/solve", b"", length=100, Expect="100-continue")
    assert wire.begin() == 100


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset])
@pytest.mark.parametrize("begin", [half_a_body, half_a_chunk, half_a_document, half_a_body_after_continue])
def test_disconnect_within_a_body(
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
def test_disconnect_while_computing(leave: Callable[[Wire], None], statuses: Callable[[], list[int]]) -> None:
    backend = WaitingBackend()
    with running(backend) as server:
        path = server.register(DOCUMENT)
        wire = server.wire().request("POST", f"{path}/solve", SOLVE)
        eventually(lambda: backend.started == 1)
        assert server.service.memory.total > 0
        leave(wire)
        eventually(lambda: statuses() == [201, 499])
        assert backend.cancelled == 1
        assert server.service.compute.waiting == 0
        assert server.service.memory.total == 0


def test_disconnect_while_a_large_body_is_parsed(
    monkeypatch: pytest.MonkeyPatch, statuses: Callable[[], list[int]]
) -> None:
    with running() as server:
        path = server.register(DOCUMENT)
        reading = _Endless()
        monkeypatch.setattr(server.service.parsers, "parse", reading)
        wire = server.wire().request("POST", f"{path}/solve", LARGE)
        eventually(lambda: reading.started == 1)
        wire.close()
        eventually(lambda: statuses() == [201, 499])
        assert server.service.memory.total == 0


@pytest.mark.parametrize("leave", [Wire.close, Wire.reset])
@pytest.mark.parametrize("accept", ["application/json", BINARY])
def test_disconnect_within_a_response(
    accept: str, leave: Callable[[Wire], None], statuses: Callable[[], list[int]]
) -> None:
    with running(LargeBackend(64 * 2**20)) as server:
        wire = server.wire().request("POST", f"{server.register(DOCUMENT)}/solve", SOLVE, Accept=accept)
        assert wire.begin() == 200
        leave(wire)
        eventually(lambda: statuses() == [201, 499])
        assert server.service.memory.total == 0


def test_disconnect_within_the_result_of_a_job(statuses: Callable[[], list[int]]) -> None:
    with running(LargeBackend(64 * 2**20)) as server:
        job = _job(server)
        eventually(lambda: json.loads(server.ask("GET", job).body)["status"] == "done")
        wire = server.wire().request("GET", f"{job}/result")
        assert wire.begin() == 200
        wire.close()
        eventually(lambda: statuses()[-1] == 499)
        assert server.service.memory.total == 0


def test_disconnect_within_events(statuses: Callable[[], list[int]]) -> None:
    backend = WaitingBackend()
    with running(backend) as server:
        job = _job(server)
        wire = server.wire().request("GET", f"{job}/events")
        assert wire.begin() == 200
        wire.close()
        eventually(lambda: statuses() == [201, 202, 499])
        assert backend.cancelled == 0  # the job continues
        assert server.ask("DELETE", job).status == 204


def test_a_job_outlives_its_request(statuses: Callable[[], list[int]]) -> None:
    backend = WaitingBackend()
    with running(backend) as server:
        job = _job(server)
        eventually(lambda: backend.started == 1)
        held = server.service.memory.total
        assert held > 0  # although its request was answered
        assert server.ask("DELETE", job).status == 204
        eventually(lambda: backend.cancelled == 1 and server.service.memory.total == 0)


@pytest.mark.parametrize("sent", [b"", b'{"kind": '])
def test_bodies_that_do_not_arrive(sent: bytes) -> None:
    with running(body_pause_s=0.1) as server, server.wire() as wire:
        response = wire.request("POST", "/v1/problems", sent, length=1000).response()
        assert (response.status, response.slug) == (408, "timeout")
        assert f"{len(sent)} bytes were received" in json.loads(response.body)["detail"]
        eventually(lambda: server.service.memory.total == 0)


def test_bodies_that_arrive_too_slowly(statuses: Callable[[], list[int]]) -> None:
    with running(body_pause_s=0.1, body_bytes_per_s=1e9) as server, server.wire() as wire:
        wire.request("POST", "/v1/problems", b"", length=10**6)
        eventually(lambda: wire.send(b" ") and statuses())  # bytes keep arriving
        assert wire.response().status == 408


def test_bodies_of_methods_without_a_body_are_refused() -> None:
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
    """The ASGI interface of a client that disconnects when the test says so."""

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


def test_a_disconnect_between_body_and_response_cancels() -> None:
    async def run(end: str) -> int:
        connection = Connection()
        async with CancelOnDisconnect(connection.receive, connection.send) as present:
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
    with pytest.raises(ClientDisconnectedError):
        asyncio.run(run("left"))


@pytest.mark.parametrize(("started", "error"), [(False, UnavailableError), (True, asyncio.CancelledError)])
def test_cancellation_by_the_server_is_an_error_before_the_response(started: bool, error: type[BaseException]) -> None:
    async def run() -> None:
        connection = Connection()
        async with CancelOnDisconnect(connection.receive, connection.send) as present:
            await present.receive()
            if started:
                await present.send({"type": "http.response.start", "status": 200, "headers": []})
            current = asyncio.current_task()
            assert current is not None
            current.cancel()
            await asyncio.Event().wait()

    with pytest.raises(error):
        asyncio.run(run())


def test_unfinished_requests_at_shutdown_are_answered(
    monkeypatch: pytest.MonkeyPatch, statuses: Callable[[], list[int]]
) -> None:
    over = threading.Event()

    def endless(*_: object, **__: object) -> None:
        over.wait()
        raise DeadlineError("it is over")

    monkeypatch.setattr(ProblemSolver, "compute", endless)
    with running() as server, ExitStack() as stack:
        path = server.register(DOCUMENT)
        wires = [stack.enter_context(server.wire()).request("POST", f"{path}/solve", SOLVE) for _ in range(3)]
        eventually(lambda: server.service.compute.health().running == 3)
        server.close()
        for wire in wires:
            response = wire.response()
            assert (response.status, response.slug) == (503, "unavailable")
            assert int(response.headers["retry-after"]) > 0
        over.set()
    assert statuses() == [201, 503, 503, 503]


class _Endless:
    """A parser that never finishes."""

    def __init__(self) -> None:
        self.started = 0

    async def __call__(self, *arguments: Any) -> Any:
        self.started += 1
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
