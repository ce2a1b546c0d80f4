"""Callers that leave before they are answered, or never send all that they announced."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from convexlayer_server import Settings, create_app, presence, reading
from convexlayer_server.engine import (
    Begun,
    Charge,
    ComputeRequest,
    ComputeResult,
    EmbeddedEngine,
    EngineHealth,
    Progress,
)
from convexlayer_server.errors import CallerLeftError
from convexlayer_server.presence import while_waited_for

from .conftest import DOCUMENT, VALUES


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_SOON_S", 0.0)


class Connection:
    """A request whose caller leaves when told to."""

    def __init__(self, body: bytes = b"", *, more: bool = False) -> None:
        self.left = asyncio.Event()
        self.sent: list[Message] = []
        self._body: list[Message] = [{"type": "http.request", "body": body, "more_body": more}]

    async def receive(self) -> Message:
        if self._body:
            return self._body.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def request(self) -> Request:
        return Request({"type": "http", "headers": []}, self.receive)


class EndlessEngine:
    """One that compiles, and never comes to the end of a computation."""

    def __init__(self) -> None:
        self._engine = EmbeddedEngine(Settings(workers=0))
        self.begun, self.given_up = asyncio.Event(), asyncio.Event()

    async def open(self, charge: Charge) -> None:
        await self._engine.open(charge)

    async def register(self, problem_id: str, document: bytes, owner: str, begun: Begun) -> Mapping[str, Any]:
        return await self._engine.register(problem_id, document, owner, begun)

    async def run(
        self, request: ComputeRequest, document: bytes, progress: Progress | None, begun: Begun
    ) -> ComputeResult:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        raise AssertionError

    async def cancel(self, request_id: str) -> bool:
        return False

    def health(self) -> EngineHealth:
        return self._engine.health()

    async def close(self) -> None:
        await self._engine.close()


def test_what_is_done_in_time_is_not_touched() -> None:
    async def run() -> None:
        connection = Connection()

        async def work() -> int:
            await asyncio.sleep(0.01)
            return 3

        assert await while_waited_for(connection.request, work()) == 3
        connection.left.set()
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_errors_of_the_work_are_its_own() -> None:
    async def work() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("mine")

    async def cancelled() -> None:
        await asyncio.sleep(0.01)
        raise asyncio.CancelledError

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(_waited_for(work()))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(_waited_for(cancelled()))


async def _waited_for(work: Any) -> None:
    await while_waited_for(Connection().request, work)


def test_work_for_a_caller_who_left_is_cancelled() -> None:
    async def run() -> None:
        connection, engine = Connection(), asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                engine.set()

        waiting = asyncio.ensure_future(while_waited_for(connection.request, work()))
        await asyncio.sleep(0.01)
        connection.left.set()
        with pytest.raises(CallerLeftError):
            await waiting
        assert engine.is_set()

    asyncio.run(run())


def test_over_http() -> None:
    async def run() -> None:
        engine = EndlessEngine()
        app = create_app(Settings(workers=0), engine=engine)
        async with app.router.lifespan_context(app):
            registering = Connection(json.dumps(DOCUMENT).encode())
            await app(_scope("/v1/problems"), registering.receive, registering.send)
            path = dict(registering.sent[0]["headers"])[b"location"].decode()
            solving = Connection(json.dumps({"parameters": VALUES}).encode())
            served = asyncio.ensure_future(app(_scope(f"{path}/solve"), solving.receive, solving.send))
            await engine.begun.wait()
            solving.left.set()
            await served
            assert engine.given_up.is_set()
            assert solving.sent[0]["status"] == 499
            assert app.state.service.engine.waiting == 0

    asyncio.run(run())


def test_a_body_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PAUSE_S", 0.01)

    async def run() -> None:
        app = create_app(Settings(workers=0))
        async with app.router.lifespan_context(app):
            connection = Connection(b'{"kind": ', more=True)
            await app(_scope("/v1/problems"), connection.receive, connection.send)
            assert connection.sent[0]["status"] == 408
            assert b"9 bytes until now" in connection.sent[1]["body"]

    asyncio.run(run())


def _scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
