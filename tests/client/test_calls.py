"""Options, headers, errors and request ids of a call; capabilities, usage and jobs."""

from __future__ import annotations

import asyncio
import gc
import pickle
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

import httpx
import numpy as np
import pytest

import convexlayer_client
from convexlayer_client import (
    AsyncClient,
    Capabilities,
    Client,
    ClientError,
    DayUsage,
    FieldError,
    InvalidError,
    NotFoundError,
    ProtocolError,
    RequestTimeoutError,
    SolveResult,
    TransportError,
    UnavailableError,
    wire,
)
from tests.client.conftest import CLIENT
from tests.client.example import DOCUMENT, THETA
from tests.client.layers import remote
from tests.families import family

Work = Callable[[Any], Any]


def by_client(work: Work, url: str, **keywords: Any) -> Any:
    with Client(url, **keywords) as client:
        return work(client)


def by_async_client(work: Work, url: str, **keywords: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(url, **keywords) as client:
            return await work(client)

    return asyncio.run(run())


@pytest.fixture(params=[by_client, by_async_client])
def run(request: pytest.FixtureRequest) -> Any:
    """Run a function with a client of either kind."""
    return request.param


@pytest.fixture
def silent() -> Iterator[str]:
    """URL of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def recording(seen: list[httpx.Request], body: Any = None) -> httpx.MockTransport:
    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=body or {"status": "ok"}, headers={"X-Request-Id": "r-9"})

    return httpx.MockTransport(respond)


# --- options of one call ----------------------------------------------------------------------------------------------


def test_a_call_may_have_its_own_timeout(silent: str, run: Any) -> None:
    with pytest.raises(RequestTimeoutError, match=r"to GET /healthz within 0\.05 s.*timeout_s.*submit a job") as caught:
        run(lambda client: client.with_options(timeout_s=0.05).health(), silent)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, TransportError)
    assert isinstance(caught.value.__cause__, httpx.ReadTimeout)
    assert caught.value.timeout_s == 0.05


def test_a_connect_timeout_is_reported_as_such(run: Any) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectTimeout("")

    with pytest.raises(RequestTimeoutError, match=r"no connection within 3 s.*http://server.*is the server running"):
        run(
            lambda client: client.health(),
            "http://server",
            transport=httpx.MockTransport(respond),
            retry_s=0,
            timeout_s=3,
        )


def test_retries_can_be_disabled_for_a_call(run: Any) -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(503, json={}, headers={"Retry-After": "1"})

    with pytest.raises(UnavailableError):
        run(
            lambda client: client.with_options(retry_s=0).health(),
            "http://server",
            transport=httpx.MockTransport(respond),
        )
    assert len(seen) == 1


def test_headers_of_the_call_override_those_of_the_client_and_the_package(run: Any) -> None:
    seen: list[httpx.Request] = []
    agent = f"convexlayer-client/{convexlayer_client.__version__} python/{platform.python_version()}"

    def twice(client: Any) -> Any:
        once = client.with_options(headers={"x-one": "call", "ACCEPT": "text/html", "X-Three": "3"})
        return once.run(wire.health())

    keywords = {"api_key": "k", "transport": recording(seen)}
    run(lambda client: client.health(), "http://server", **keywords)
    run(twice, "http://server", headers={"X-One": "client", "X-Two": "2"}, **keywords)
    run(twice, "http://server", headers={"user-agent": "mine", "authorization": "Basic x"}, **keywords)
    plain, both, own = (request.headers for request in seen)
    assert plain["User-Agent"] == both["User-Agent"] == agent
    assert plain["Authorization"] == "Bearer k"
    assert (both["X-One"], both["X-Two"], both["X-Three"]) == ("call", "2", "3")
    assert both.get_list("X-One") == ["call"]
    assert both.get_list("Accept") == [
        "application/json"
    ]  # set by the client alone: it must be able to read the response
    assert own.get_list("User-Agent") == ["mine"]
    assert own.get_list("Authorization") == ["Basic x"]


def test_requests_for_events_have_the_same_headers() -> None:
    seen: list[httpx.Request] = []
    status = {
        "id": "j",
        "problem_id": "p",
        "operation": "solve",
        "done": 0,
        "total": 1,
        "seconds": 0.1,
        "expires_s": None,
    }

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        ended = request.url.path.endswith("/events")
        return httpx.Response(404 if ended else 200, json=status | {"status": "done" if len(seen) > 2 else "running"})

    with Client("http://server", api_key="k", headers={"X-One": "1"}, transport=httpx.MockTransport(respond)) as client:
        assert [status.status for status in client.events(client.job("j"))][-1] == "done"
    events = next(request.headers for request in seen if request.url.path.endswith("/events"))
    assert events["X-One"] == "1"
    assert events["Authorization"] == "Bearer k"
    assert events["Accept"] == "text/event-stream"


def test_with_options_leaves_the_client_unchanged_and_shares_its_connections() -> None:
    seen: list[httpx.Request] = []
    client = Client("http://server", headers={"X-One": "client"}, transport=recording(seen))
    other = client.with_options(headers={"X-One": "other"}).with_options(timeout_s=3)
    client.health()
    other.health()
    assert [request.headers["X-One"] for request in seen] == ["client", "other"]
    assert [request.extensions["timeout"]["read"] for request in seen] == [600.0, 3]
    del client
    gc.collect()
    other.health()  # the pool stays open while a client uses it
    with other.with_options():
        pass
    with pytest.raises(TransportError, match="closed"):
        other.health()


def test_options_are_pickled_without_secrets() -> None:
    client = Client("http://server", "hidden-key", timeout_s=3, headers={"Cookie": "hidden-cookie"})
    text = pickle.dumps(client.with_options(retry_s=7))
    assert b"hidden" not in text
    endpoint = pickle.loads(text)._connection.endpoint
    assert (endpoint.url, endpoint.timeout.read, endpoint.retries["stop"].max_delay) == ("http://server", 3, 7)


def test_a_layer_has_the_options_of_its_client(silent: str) -> None:
    case = family("least_norm")
    impatient = Client(silent).with_options(timeout_s=0.05)
    with pytest.raises(RequestTimeoutError):
        remote(case, impatient)


def test_a_layer_shows_its_progress(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    case = family("least_norm")
    layer = remote(case, client, progress=True)
    layer(*case.tensors(3, seed=1))[0].sum().backward()
    shown = capsys.readouterr().err
    assert "solve: 100%" in shown
    assert "vjp: 100%" in shown


# --- request ids ------------------------------------------------------------------------------------------------------


def test_every_result_has_its_request_id(client: Client) -> None:
    named = client.with_options(headers={"X-Request-Id": "mine-1"})
    problem = named.register(DOCUMENT)
    job = named.submit(wire.solve(problem.id, THETA))
    results = [
        problem,
        named.get(problem.id),
        named.solve(problem.id, THETA),
        named.vjp(problem.id, {"x": np.ones((2, 3))}, THETA),
        named.jvp(problem.id, {"a": np.ones((2, 3))}, THETA),
        named.capabilities(),
        named.usage(),
        job,
        named.status(job),
        named.result(job),
    ]
    assert {result.request_id for result in results} == {"mine-1"}
    others = {client.solve(problem.id, THETA).request_id for _ in range(2)}
    assert len(others) == 2
    assert None not in others
    assert client.get(problem.id) == named.get(problem.id)


def test_the_request_id_is_optional() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"key": None, "days": []})

    with Client("http://server", transport=httpx.MockTransport(respond)) as client:
        assert client.usage().request_id is None


# --- capabilities, usage and listing ----------------------------------------------------------------------------------


def test_capabilities_and_usage(url: str, run: Any) -> None:
    capabilities = run(lambda client: client.capabilities(), url)
    assert isinstance(capabilities, Capabilities)
    assert capabilities.versions["convexlayer"]
    assert "clarabel" in [solver.name for solver in capabilities.solvers]
    assert all(isinstance(solver.cones, tuple) for solver in capabilities.solvers)
    assert "sum_squares" in capabilities.functions
    assert set(capabilities.documents) == {"expression", "cone_program"}
    assert not capabilities.keys_required
    assert capabilities.workers == 1
    assert capabilities.limits["max_batch"] == 4096
    used = run(lambda client: client.usage(days=2), url)
    assert used.key is None
    assert all(isinstance(day, DayUsage) and day.requests >= 0 for day in used.days)
    with pytest.raises(InvalidError, match="days"):
        run(lambda client: client.usage(days=0), url)


@pytest.mark.parametrize("page_size", [1, 3, 7])
def test_all_pages_of_problems_are_read(page_size: int, run: Any) -> None:
    listed = [{"id": f"p/{i} &", "parameters": {}, "variables": {}, "duals": {}} for i in range(7)]
    seen: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/problems"
        seen.append(request.url.query.decode())
        after = parse_qs(seen[-1]).get("after", [""])[0]
        rest = listed[[entry["id"] for entry in listed].index(after) + 1 :] if after else listed
        following = rest[page_size - 1]["id"] if len(rest) > page_size else None
        return httpx.Response(200, json={"problems": rest[:page_size], "next": following})

    found = run(lambda client: client.problems(), "http://server", transport=httpx.MockTransport(respond))
    assert [problem.id for problem in found] == [entry["id"] for entry in listed]
    assert len(seen) == -(-7 // page_size)
    assert seen[0] == ""


def test_a_repeated_page_is_a_protocol_error(run: Any) -> None:
    seen: list[httpx.Request] = []
    transport = recording(seen, {"problems": [], "next": "a"})
    with pytest.raises(ProtocolError, match="the page after 'a' repeats an earlier page"):
        run(lambda client: client.problems(), "http://server", transport=transport)
    assert len(seen) == 2


# --- jobs of other processes ------------------------------------------------------------------------------------------

OTHER_PROCESS = """
import pickle, sys
from convexlayer_client import Client
url, job_id, job = sys.argv[1], sys.argv[2], pickle.loads(bytes.fromhex(sys.argv[3]))
with Client(url) as client:
    for known in (job, client.job(job_id)):
        result = client.result(known)
        print(type(result).__name__, result.status, known.operation, known.problem_id)
"""


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda problem: wire.solve(problem, THETA), "SolveResult"),
        (lambda problem: wire.vjp(problem, {"x": np.ones((2, 3))}, THETA), "VjpResult"),
        (lambda problem: wire.jvp(problem, {"a": np.ones((2, 3))}, THETA), "JvpResult"),
    ],
)
def test_a_job_can_be_awaited_in_another_process(call: Any, kind: str, client: Client, url: str) -> None:
    problem = client.register(DOCUMENT)
    job = client.submit(call(problem.id))
    lines = subprocess.run(
        [sys.executable, "-P", "-c", OTHER_PROCESS, url, job.id, pickle.dumps(job).hex()],
        env={"PYTHONPATH": str(CLIENT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert lines == [f"{kind} ('optimal', 'optimal') {job.operation} {problem.id}"] * 2


def test_a_job_by_its_id(url: str, client: Client, run: Any) -> None:
    problem = client.register(DOCUMENT)
    job = client.submit(wire.solve(problem.id, THETA))
    found = run(lambda other: other.job(job.id), url)
    assert found == job
    assert isinstance(client.result(found), SolveResult)
    with pytest.raises(NotFoundError):
        run(lambda other: other.job("j_none"), url)


# --- pickled errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        InvalidError(status=422, type="t", title="T", detail="d", errors=[FieldError("/a", "b")], request_id="r"),
        RequestTimeoutError("too late", timeout_s=3.0),
        TransportError("gone"),
    ],
)
def test_errors_can_be_pickled(error: ClientError) -> None:
    copied = pickle.loads(pickle.dumps(error))
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)
