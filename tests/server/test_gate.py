"""Keys, limits, ownership and logs, over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from convexlayer_server import Settings, create_app
from convexlayer_server.admission.keys import new_key, new_token
from convexlayer_server.errors import StoreError
from convexlayer_server.observability import logs
from convexlayer_server.store import Store

from .conftest import DOCUMENT, VALUES, AppClient

IN_PROCESS: dict[str, Any] = {"workers": 0}


class ClientWithKeys:
    """A client of a server with two keys."""

    def __init__(self, path: Path | str = ":memory:", **settings: Any) -> None:
        chosen = Settings(**IN_PROCESS | settings)
        self.store = Store(chosen, path)
        self.tokens = [new_token() for _ in range(2)]
        for token in self.tokens:
            self.store.add_key(new_key("someone", token))
        self.app = create_app(chosen, store=self.store)
        self.client = AppClient(self.app)

    def send(self, who: int | None, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        if who is not None:
            headers["Authorization"] = f"Bearer {self.tokens[who]}"
        return self.client.request(method, path, json=body, headers=headers)


@contextmanager
def keyed_client(**settings: Any) -> Iterator[ClientWithKeys]:
    lab = ClientWithKeys(**settings)
    try:
        yield lab
    finally:
        lab.client.close()


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["X-Request-Id"]
    return dict(response.json())


def test_a_server_with_keys_requires_one() -> None:
    with keyed_client() as lab:
        for path in ("/v1/problems", "/v1/usage", "/v1/capabilities", "/v1/jobs", "/metrics", "/v1/nothing"):
            refused = lab.send(None, "GET", path)
            assert problem(refused, 401)["type"] == "urn:convexlayer:problem:unauthenticated"
            assert refused.headers["WWW-Authenticate"] == "Bearer"
            assert lab.send(0, "GET", path).status_code == (404 if path == "/v1/nothing" else 200)
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert lab.send(None, "GET", path).status_code == 200
        wrong = lab.send(None, "GET", "/v1/problems", Authorization=f"Bearer {lab.tokens[0]}x")
        assert lab.tokens[0] not in wrong.text
        problem(wrong, 401)


def test_problems_of_other_keys_are_404() -> None:
    with keyed_client() as lab:
        path = lab.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
        unknown = path[:-3] + "aaa"
        solve = {"parameters": VALUES, "return": ["state"]}
        for method, below, body in (("GET", "", None), ("DELETE", "", None), ("POST", "/solve", solve)):
            theirs = problem(lab.send(1, method, path + below, body), 404)
            nobodys = problem(lab.send(1, method, unknown + below, body), 404)
            assert theirs["detail"].replace(path[-20:], "") == nobodys["detail"].replace(unknown[-20:], "")
        assert lab.send(1, "GET", "/v1/problems").json() == {"problems": [], "next": None}
        state = lab.send(0, "POST", f"{path}/solve", solve).json()["state"]
        assert lab.send(1, "POST", "/v1/problems", DOCUMENT).status_code == 201
        assert lab.send(0, "POST", "/v1/problems", DOCUMENT).status_code == 200
        vjp = {"cotangents": {"x": [1.0, 0.0, 0.0]}, "state": state}
        assert lab.send(0, "POST", f"{path}/vjp", vjp).status_code == 200
        assert lab.send(1, "POST", f"{path}/vjp", vjp).status_code == 410
        assert lab.send(0, "DELETE", path).status_code == 204
        assert lab.send(0, "GET", path).status_code == 404
        assert lab.send(1, "POST", f"{path}/solve", {"parameters": VALUES}).status_code == 200


def test_jobs_belong_to_their_owners() -> None:
    with keyed_client() as lab:
        path = lab.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
        accepted = lab.send(0, "POST", f"{path}/solve", {"parameters": VALUES}, Prefer="respond-async")
        assert accepted.status_code == 202
        job = accepted.headers["Location"]
        assert lab.send(0, "GET", job).status_code == 200
        for method, below in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
            problem(lab.send(1, method, job + below), 404)


def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with keyed_client(path=path) as before:
        tokens = before.tokens
        place = before.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
        answer = before.send(0, "POST", f"{place}/solve", {"parameters": VALUES}).json()
    with keyed_client(path=path, refresh_s=3600.0) as after:  # what it counts itself is written later
        after.tokens = tokens
        assert [entry["id"] for entry in after.send(0, "GET", "/v1/problems").json()["problems"]] == [place[-54:]]
        again = after.send(0, "POST", f"{place}/solve", {"parameters": VALUES}).json()
        assert again["variables"] == answer["variables"]
        assert after.send(0, "POST", "/v1/problems", DOCUMENT).status_code == 200
        (day, *_) = after.send(0, "GET", "/v1/usage").json()["days"]
        assert day["elements"] == 1
        assert day["requests"] == 2
        assert day["seconds"] > 0
        assert after.send(1, "GET", "/v1/usage").json()["days"] == []


def test_problems_of_other_versions_are_canonicalised_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    with keyed_client(path=path) as before:
        place = before.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
        before.store._connection.execute("""UPDATE problem SET versions = 'old', summary = '{"id": "old"}'""")
        tokens = before.tokens
    with keyed_client(path=path) as after:
        after.tokens = tokens
        assert after.send(0, "GET", place).json()["variables"] == {"x": {"shape": [3]}}
        (listed,) = after.send(0, "GET", "/v1/problems").json()["problems"]
        assert listed["id"] == place[-54:]


def test_created_and_revoked_keys_are_reloaded(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    chosen = Settings(**IN_PROCESS, refresh_s=0.01)
    client = AppClient(create_app(chosen, store=Store(chosen, path)))

    def status(token: str) -> int:
        return client.request("GET", "/v1/problems", headers={"Authorization": f"Bearer {token}"}).status_code

    def becomes(wanted: int, token: str) -> None:
        while status(token) != wanted:
            client._runner.run(asyncio.sleep(0.01))

    try:
        token, other = new_token(), Store(chosen, path)
        assert status("") == 200
        key = new_key("late", token)
        other.add_key(key)
        becomes(401, "")
        assert status(token) == 200
        other.revoke_key(key.id)
        becomes(401, token)
        other.close()
    finally:
        client.close()


def test_limits_are_429_with_retry_after() -> None:
    with keyed_client(requests_per_minute=2) as lab:
        for _ in range(2):
            assert lab.send(0, "GET", "/v1/problems").status_code == 200
        refused = lab.send(0, "GET", "/v1/problems")
        assert problem(refused, 429)["type"] == "urn:convexlayer:problem:too-many"
        assert 1 <= int(refused.headers["Retry-After"]) <= 30
        assert lab.send(1, "GET", "/v1/problems").status_code == 200
        text = lab.send(1, "GET", "/metrics").text
        assert 'convexlayer_refused_total{reason="too-many"} 1.0' in text


def test_quotas_are_403() -> None:
    with keyed_client(max_problems_per_key=1) as lab:
        assert lab.send(0, "POST", "/v1/problems", DOCUMENT).status_code == 201
        refused = lab.send(0, "POST", "/v1/problems", DOCUMENT | {"constants": {"c": 1.0}})
        assert "1 problems" in problem(refused, 403)["detail"]


def test_a_key_that_fills_the_store_leaves_others_their_share() -> None:
    with keyed_client(max_store_bytes=4000) as lab:

        def register(who: int, number: int) -> httpx.Response:
            return lab.send(who, "POST", "/v1/problems", DOCUMENT | {"constants": {"c": [number / 7] * 4}})

        answers = [register(0, number) for number in range(20)]
        refused = [answer.status_code for answer in answers].index(403)
        assert refused > 4
        detail = problem(answers[refused], 403)["detail"]
        assert "its share of the 4000 bytes of this server is 1000" in detail
        assert "delete problems that are no longer needed" in detail
        assert register(1, 100).status_code == 201
        assert lab.send(0, "DELETE", answers[0].headers["Location"]).status_code == 204
        assert register(0, 101).status_code == 201


def test_the_first_key_takes_over_problems_without_a_key() -> None:
    chosen = Settings(**IN_PROCESS)
    store = Store(chosen)
    app = create_app(chosen, store=store)
    client = AppClient(app)
    try:
        path = client.register(DOCUMENT)
        token = new_token()
        store.add_key(new_key("first", token))
        app.state.service.keyring.replace(store.all_keys())
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get(path).status_code == 401
        assert client.request("GET", path, headers=headers).status_code == 200
        solved = client.request("POST", f"{path}/solve", json={"parameters": VALUES}, headers=headers)
        assert solved.status_code == 200
    finally:
        client.close()


def test_a_full_queue_refuses_before_the_body() -> None:
    with keyed_client(max_waiting=1) as lab:
        backend = lab.app.state.service.compute
        read: list[bytes] = []

        async def body() -> Any:
            read.append(b"{")
            yield b"{"

        blocked = asyncio.Event()

        async def run() -> httpx.Response:
            async def work(started: Any) -> None:
                await blocked.wait()

            key = lab.store.all_keys()[0].id
            task = asyncio.create_task(backend._wait_in_queue(key, "solve", work, limited=False))
            await asyncio.sleep(0)
            headers = {"Authorization": f"Bearer {lab.tokens[0]}", "Content-Type": "application/json"}
            response = await lab.client._http.post("/v1/problems", content=body(), headers=headers)
            blocked.set()
            await task
            return response

        refused = lab.client._runner.run(run())
        assert problem(refused, 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert read == []


def test_a_failing_store_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    with keyed_client() as lab:

        def fail(*arguments: Any) -> Any:
            raise StoreError("the disk is full")

        monkeypatch.setattr(lab.store, "put", fail)
        refused = lab.send(0, "POST", "/v1/problems", DOCUMENT)
        assert "disk" not in problem(refused, 503)["detail"]
        assert int(refused.headers["Retry-After"]) >= 1


def test_capabilities() -> None:
    client = AppClient(create_app(Settings(**IN_PROCESS, max_batch=77)))
    found = client.get("/v1/capabilities").json()
    client.close()
    assert found["keys_required"] is False
    assert found["limits"]["max_batch"] == 77
    assert "store" not in found["limits"]
    assert {"norm1", "soc", "quad_form"} <= set(found["functions"])
    assert "clarabel" in [solver["name"] for solver in found["solvers"]]
    assert set(found["versions"]) == {"convexlayer", "cvxpy"}


@pytest.mark.parametrize("below", ["", "/lab"])
def test_root_path_behind_a_proxy(below: str) -> None:
    client = AppClient(create_app(Settings(**IN_PROCESS, root_path="/lab")))
    try:
        registered = client.post(f"{below}/v1/problems", DOCUMENT)
        assert registered.status_code == 201
        location = registered.headers["Location"]
        assert location.startswith("/lab/v1/problems/p_")
        place = below + location.removeprefix("/lab")
        assert client.post(f"{place}/solve", {"parameters": VALUES}).status_code == 200
        assert client.get(f"{below}/openapi.json").json()["servers"] == [{"url": "/lab"}]
        assert 'href="healthz"' in client.get(f"{below}/").text
    finally:
        client.close()


def test_the_root_path_does_not_bypass_the_gate() -> None:
    with keyed_client(root_path="/lab") as lab:
        for path in ("/lab/v1/problems", "/v1/problems", "/lab/metrics", "/metrics"):
            problem(lab.send(None, "GET", path), 401)
            assert lab.send(0, "GET", path).status_code == 200
        for path in ("/lab/lab/v1/problems", "//v1/problems", "/lab//v1/problems", "/v1"):
            assert lab.send(None, "GET", path).status_code in (401, 404)


def test_logs_contain_neither_arrays_nor_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with keyed_client() as lab:
            logs.configure(Settings())
            path = lab.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
            body = {"parameters": VALUES | {"lam": [0.5, 0.625, 123.4375]}}
            assert lab.send(0, "POST", f"{path}/solve", body, **{"X-Request-Id": "mine"}).status_code == 200
            lab.send(0, "POST", f"{path}/solve", {"parameters": {"A": 123.4375}})
            lab.send(None, "GET", "/healthz")
    finally:
        root.handlers[:], root.level = handlers, level
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    (line,) = [line for line in lines if line["request_id"] == "mine"]
    assert line["problem_id"] == path[-54:]
    assert (line["batch"], line["operation"], line["status"], line["method"]) == (3, "solve", 200, "POST")
    assert line["route"] == "/v1/problems/{problem_id}/solve"
    assert line["key_id"].startswith("k_")
    assert line["solve_s"] > 0
    assert line["queue_s"] >= 0
    assert line["seconds"] >= line["solve_s"]
    assert next(line["route"] for line in lines if line["logger"] == "convexlayer_server.access") == "/v1/problems"
    assert all(line["route"] != "/healthz" for line in lines if "route" in line)
    for secret in (*lab.tokens, "123.4375", "sum_squares"):
        assert secret not in written.getvalue()


def test_metrics_have_bounded_labels() -> None:
    with keyed_client() as lab:
        for number in range(5):
            lab.send(0, f"ODD{number}", "/v1/problems")
            lab.send(0, "GET", f"/v1/path{number}")
            lab.send(0, "GET", f"/v1/problems/p_{number}")
        text = lab.send(0, "GET", "/metrics").text
        labels = [line for line in text.splitlines() if line.startswith("convexlayer_request_seconds_count")]
        assert len(labels) == 3, labels
        assert "convexlayer_workers" in text


def test_telemetry() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from convexlayer_server.observability import tracing

    app = create_app(Settings(**IN_PROCESS))
    exporter = InMemorySpanExporter()
    tracing.export_traces(app, SimpleSpanProcessor(exporter))
    client = AppClient(app)
    client.get("/v1/problems")
    client.get("/healthz")
    client.close()
    names = [span.name for span in exporter.get_finished_spans() if span.parent is None]
    assert len(names) == 1
    assert "/v1/problems" in names[0]
