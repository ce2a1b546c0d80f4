"""Retries of both clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from convexlayer_client import (
    AsyncClient,
    Client,
    DeadlineError,
    GoneError,
    InternalError,
    TooManyRequestsError,
    TransportError,
    UnavailableError,
    wire,
)

Outcome = httpx.Response | Exception
OK = {"status": "ok"}
CALL = wire.solve("p", {"a": [1.0]})
REFUSED, BROKEN = httpx.ConnectError("refused"), httpx.ReadError("reset")
DISCONNECTED, TIMED_OUT = httpx.RemoteProtocolError("disconnected"), httpx.ReadTimeout("late")


class Script:
    """A transport with scripted outcomes, which records requests and waits."""

    def __init__(self, outcomes: Sequence[Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[httpx.Request] = []
        self.waits_s: list[float] = []
        monkeypatch.setattr(time, "sleep", self.waits_s.append)

        async def sleep(seconds: float) -> None:
            self.waits_s.append(seconds)

        monkeypatch.setattr(asyncio, "sleep", sleep)

    def respond(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = self.outcomes[min(len(self.requests), len(self.outcomes)) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)


def by_client(script: Script, work: Callable[[Any], Any]) -> Any:
    with Client("http://server", transport=httpx.MockTransport(script.respond)) as client:
        return work(client)


def by_async_client(script: Script, work: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        async with AsyncClient("http://server", transport=httpx.MockTransport(script.respond)) as client:
            return await work(client)

    return asyncio.run(run())


@pytest.fixture(params=[by_client, by_async_client])
def sent(request: pytest.FixtureRequest) -> Any:
    return request.param


def response(status: int, after: str | None = None) -> httpx.Response:
    return httpx.Response(status, json=OK, headers={} if after is None else {"Retry-After": after})


@pytest.mark.parametrize("failure", [response(429), response(503), response(502), REFUSED, BROKEN, DISCONNECTED])
def test_transient_failures_are_retried(failure: Outcome, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([failure, failure, response(200)], monkeypatch)
    assert sent(script, lambda client: client.health()) == OK
    assert len(script.requests) == 3
    assert len(script.waits_s) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_respected(status: int, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([response(status, "7"), response(200)], monkeypatch)
    assert sent(script, lambda client: client.health()) == OK
    (wait_s,) = script.waits_s
    assert 7.0 <= wait_s <= 7.0 * 1.25


def test_a_retry_after_beyond_the_retry_time_is_an_error_at_once(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([response(429, "3600")], monkeypatch)
    with pytest.raises(TooManyRequestsError) as caught:
        sent(script, lambda client: client.health())
    assert caught.value.retry_after_s == 3600
    assert script.waits_s == []


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (response(500), InternalError),
        (response(504, "1"), DeadlineError),
        (response(410), GoneError),
        (TIMED_OUT, TransportError),
    ],
)
def test_permanent_failures_are_not_retried(
    failure: Outcome, error: type[Exception], sent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script([failure, response(200)], monkeypatch)
    with pytest.raises(error):
        sent(script, lambda client: client.health())
    assert len(script.requests) == 1


def test_a_job_that_may_have_been_submitted_is_not_retried(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([BROKEN], monkeypatch)
    with pytest.raises(TransportError):
        sent(script, lambda client: client.submit(CALL))
    assert len(script.requests) == 1
    accepted = httpx.Response(202, json={"id": "j", "problem_id": "p", "operation": "solve"})
    script = Script([REFUSED, response(503), response(429), accepted], monkeypatch)
    assert sent(script, lambda client: client.submit(CALL)).id == "j"
    assert script.requests[0].headers["Prefer"] == "respond-async"


def test_parameters_are_sent_if_the_state_has_expired(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([response(410), response(401)], monkeypatch)
    call = wire.vjp("p", {"x": [1.0]}, {"a": [2.0]}, state="s_1")
    with pytest.raises(Exception, match="401"):
        sent(script, lambda client: client.run(call))
    bodies = [request.content for request in script.requests]
    assert [b"s_1" in body for body in bodies] == [True, False]
    assert [b"parameters/a" in body for body in bodies] == [False, True]


def test_an_expired_state_without_parameters_is_an_error(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([response(410)], monkeypatch)
    with pytest.raises(GoneError):
        sent(script, lambda client: client.vjp("p", {"x": [1.0]}, state="s_1"))
    with pytest.raises(ValueError, match="expected parameters"):
        sent(script, lambda client: client.vjp("p", {"x": [1.0]}))


def test_retries_end_after_the_retry_time(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([response(503, "20")], monkeypatch)
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pytest.raises(UnavailableError):
        sent(script, lambda client: client.health())
    assert len(script.requests) < 5
