"""What is sent again and what is not, by both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
import tenacity.nap

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
CUT, LATE = httpx.RemoteProtocolError("disconnected"), httpx.ReadTimeout("late")


class Script:
    """A transport that gives outcomes one after another, and what was asked and waited meanwhile."""

    def __init__(self, outcomes: Sequence[Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcomes = list(outcomes)
        self.requests: list[httpx.Request] = []
        self.waits_s: list[float] = []
        monkeypatch.setattr(tenacity.nap.time, "sleep", self.waits_s.append)

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


def answer(status: int, after: str | None = None) -> httpx.Response:
    return httpx.Response(status, json=OK, headers={} if after is None else {"Retry-After": after})


@pytest.mark.parametrize("failure", [answer(429), answer(503), answer(502), REFUSED, BROKEN, CUT])
def test_what_may_succeed_is_sent_again(failure: Outcome, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([failure, failure, answer(200)], monkeypatch)
    assert sent(script, lambda client: client.health()) == OK
    assert len(script.requests) == 3
    assert len(script.waits_s) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_the_server_says_when(status: int, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([answer(status, "7"), answer(200)], monkeypatch)
    assert sent(script, lambda client: client.health()) == OK
    (wait_s,) = script.waits_s
    assert 7.0 <= wait_s <= 7.0 * 1.25


def test_longer_than_there_is_time_is_an_error_at_once(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([answer(429, "3600")], monkeypatch)
    with pytest.raises(TooManyRequestsError) as caught:
        sent(script, lambda client: client.health())
    assert caught.value.retry_after_s == 3600
    assert script.waits_s == []


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (answer(500), InternalError),
        (answer(504, "1"), DeadlineError),
        (answer(410), GoneError),
        (LATE, TransportError),
    ],
)
def test_what_would_fail_again_is_not_sent_again(
    failure: Outcome, error: type[Exception], sent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script([failure, answer(200)], monkeypatch)
    with pytest.raises(error):
        sent(script, lambda client: client.health())
    assert len(script.requests) == 1


def test_a_job_that_may_have_begun_is_not_begun_again(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([BROKEN], monkeypatch)
    with pytest.raises(TransportError):
        sent(script, lambda client: client.submit(CALL))
    assert len(script.requests) == 1
    begun = httpx.Response(202, json={"id": "j", "problem_id": "p", "operation": "solve"})
    script = Script([REFUSED, answer(503), answer(429), begun], monkeypatch)
    assert sent(script, lambda client: client.submit(CALL)).id == "j"
    assert script.requests[0].headers["Prefer"] == "respond-async"


def test_a_state_that_is_gone_is_replaced_by_the_parameters(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([answer(410), answer(401)], monkeypatch)
    call = wire.vjp("p", {"x": [1.0]}, {"a": [2.0]}, state="s_1")
    with pytest.raises(Exception, match="401"):
        sent(script, lambda client: client.run(call))
    bodies = [request.content for request in script.requests]
    assert [b"s_1" in body for body in bodies] == [True, False]
    assert [b"parameters/a" in body for body in bodies] == [False, True]


def test_without_parameters_a_gone_state_is_an_error(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([answer(410)], monkeypatch)
    with pytest.raises(GoneError):
        sent(script, lambda client: client.vjp("p", {"x": [1.0]}, state="s_1"))
    with pytest.raises(ValueError, match="expected parameters"):
        sent(script, lambda client: client.vjp("p", {"x": [1.0]}))


def test_an_end_comes_when_nothing_helps(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([answer(503, "20")], monkeypatch)
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(tenacity.time, "monotonic", lambda: next(clock))
    with pytest.raises(UnavailableError):
        sent(script, lambda client: client.health())
    assert len(script.requests) < 5
