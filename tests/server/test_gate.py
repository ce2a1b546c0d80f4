"""Keys, limits, ownership and the log, over HTTP."""

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

from convexlayer_server import Settings, create_app, logs
from convexlayer_server.errors import StoreError
from convexlayer_server.keys import new_key, new_token
from convexlayer_server.store import Store

from .conftest import DOCUMENT, VALUES, AppClient

IN_PROCESS = {"workers": 0}


class Lab:
    """A server with two keys."""

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
def lab(**settings: Any) -> Iterator[Lab]:
    made = Lab(**settings)
    try:
        yield made
    finally:
        made.client.close()


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["X-Request-Id"]
    return dict(response.json())


def test_a_key_is_asked_for_where_there_are_any() -> None:
    with lab() as made:
        for path in ("/v1/problems", "/v1/usage", "/v1/capabilities", "/v1/jobs", "/metrics", "/v1/nothing"):
            refused = made.send(None, "GET", path)
            assert problem(refused, 401)["type"] == "urn:convexlayer:problem:unauthenticated"
            assert refused.headers["WWW-Authenticate"] == "Bearer"
            assert made.send(0, "GET", path).status_code == (404 if path == "/v1/nothing" else 200)
        for path in ("/", "/healthz", "/readyz", "/openapi.json"):
            assert made.send(None, "GET", path).status_code == 200
        wrong = made.send(None, "GET", "/v1/problems", Authorization=f"Bearer {made.tokens[0]}x")
        assert made.tokens[0] not in wrong.text
        problem(wrong, 401)


def test_what_is_anothers_looks_like_404() -> None:
    with lab() as made:
        path = made.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
        unknown = path[:-3] + "aaa"
        solve = {"parameters": VALUES, "return": ["state"]}
        for method, below, body in (("GET", "", None), ("DELETE", "", None), ("POST", "/solve", solve)):
            theirs = problem(made.send(1, method, path + below, body), 404)
            nobodys = problem(made.send(1, method, unknown + below, body), 404)
            assert theirs["detail"].replace(path[-20:], "") == nobodys["detail"].replace(unknown[-20:], "")
        assert made.send(1, "GET", "/v1/problems").json() == {"problems": [], "next": None}
        state = made.send(0, "POST", f"{path}/solve", solve).json()["state"]
        assert made.send(1, "POST", "/v1/problems", DOCUMENT).status_code == 201
        assert made.send(0, "POST", "/v1/problems", DOCUMENT).status_code == 200
        vjp = {"cotangents": {"x": [1.0, 0.0, 0.0]}, "state": state}
        assert made.send(0, "POST", f"{path}/vjp", vjp).status_code == 200
        assert made.send(1, "POST", f"{path}/vjp", vjp).status_code == 410
        assert made.send(0, "DELETE", path).status_code == 204
        assert made.send(0, "GET", path).status_code == 404
        assert made.send(1, "POST", f"{path}/solve", {"parameters": VALUES}).status_code == 200


def test_jobs_are_their_owners() -> None:
    with lab() as made:
        path = made.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
        accepted = made.send(0, "POST", f"{path}/solve", {"parameters": VALUES}, Prefer="respond-async")
        assert accepted.status_code == 202
        job = accepted.headers["Location"]
        assert made.send(0, "GET", job).status_code == 200
        for method, below in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
            problem(made.send(1, method, job + below), 404)


def test_a_restart_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with lab(path=path) as before:
        tokens = before.tokens
        place = before.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
        answer = before.send(0, "POST", f"{place}/solve", {"parameters": VALUES}).json()
    with lab(path=path) as after:
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


def test_problems_of_other_versions_are_compiled_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite"
    with lab(path=path) as before:
        place = before.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
        before.store._connection.execute("""UPDATE problem SET versions = 'old', summary = '{"id": "old"}'""")
        tokens = before.tokens
    with lab(path=path) as after:
        after.tokens = tokens
        assert after.send(0, "GET", place).json()["variables"] == {"x": {"shape": [3]}}
        (listed,) = after.send(0, "GET", "/v1/problems").json()["problems"]
        assert listed["id"] == place[-54:]


def test_keys_made_and_revoked_meanwhile_are_learned_of(tmp_path: Path) -> None:
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


def test_limits_are_answered_with_retry_after() -> None:
    with lab(requests_per_minute=2) as made:
        for _ in range(2):
            assert made.send(0, "GET", "/v1/problems").status_code == 200
        refused = made.send(0, "GET", "/v1/problems")
        assert problem(refused, 429)["type"] == "urn:convexlayer:problem:too-many"
        assert 1 <= int(refused.headers["Retry-After"]) <= 30
        assert made.send(1, "GET", "/v1/problems").status_code == 200
        text = made.send(1, "GET", "/metrics").text
        assert 'convexlayer_refused_total{reason="too-many"} 1.0' in text


def test_quotas_are_answered_with_403() -> None:
    with lab(max_problems_per_key=1) as made:
        assert made.send(0, "POST", "/v1/problems", DOCUMENT).status_code == 201
        refused = made.send(0, "POST", "/v1/problems", DOCUMENT | {"constants": {"c": 1.0}})
        assert "1 problems" in problem(refused, 403)["detail"]


def test_a_key_that_fills_the_store_leaves_others_their_share() -> None:
    with lab(max_store_bytes=4000) as made:

        def register(who: int, number: int) -> httpx.Response:
            return made.send(who, "POST", "/v1/problems", DOCUMENT | {"constants": {"c": [number / 7] * 4}})

        answers = [register(0, number) for number in range(20)]
        refused = [answer.status_code for answer in answers].index(403)
        assert refused > 4
        detail = problem(answers[refused], 403)["detail"]
        assert "its share of the 4000 that this server keeps is 1000" in detail
        assert "delete problems that are no longer needed" in detail
        assert register(1, 100).status_code == 201
        assert made.send(0, "DELETE", answers[0].headers["Location"]).status_code == 204
        assert register(0, 101).status_code == 201


def test_the_first_key_takes_over_what_was_registered_without_one() -> None:
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


def test_a_body_is_not_read_where_there_is_no_room() -> None:
    with lab(max_waiting=1) as made:
        engine = made.app.state.service.engine
        read: list[bytes] = []

        async def body() -> Any:
            read.append(b"{")
            yield b"{"

        blocked = asyncio.Event()

        async def run() -> httpx.Response:
            async def work(begun: Any) -> None:
                await blocked.wait()

            key = made.store.all_keys()[0].id
            task = asyncio.create_task(engine._in_place(key, "solve", work, patient=True))
            await asyncio.sleep(0)
            headers = {"Authorization": f"Bearer {made.tokens[0]}", "Content-Type": "application/json"}
            response = await made.client._http.post("/v1/problems", content=body(), headers=headers)
            blocked.set()
            await task
            return response

        refused = made.client._runner.run(run())
        assert problem(refused, 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert read == []


def test_a_store_that_fails_is_a_503(monkeypatch: pytest.MonkeyPatch) -> None:
    with lab() as made:

        def fail(*arguments: Any) -> Any:
            raise StoreError("the disk is full")

        monkeypatch.setattr(made.store, "put", fail)
        refused = made.send(0, "POST", "/v1/problems", DOCUMENT)
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
def test_behind_a_proxy_that_strips_the_root_path_or_not(below: str) -> None:
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


def test_the_root_path_does_not_open_the_gate() -> None:
    with lab(root_path="/lab") as made:
        for path in ("/lab/v1/problems", "/v1/problems", "/lab/metrics", "/metrics"):
            problem(made.send(None, "GET", path), 401)
            assert made.send(0, "GET", path).status_code == 200
        for path in ("/lab/lab/v1/problems", "//v1/problems", "/lab//v1/problems", "/v1"):
            assert made.send(None, "GET", path).status_code in (401, 404)


def test_logs_tell_all_but_tensors_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with lab() as made:
            logs.configure(Settings())
            path = made.send(0, "POST", "/v1/problems", DOCUMENT).headers["Location"]
            body = {"parameters": VALUES | {"lam": [0.5, 0.625, 123.4375]}}
            assert made.send(0, "POST", f"{path}/solve", body, **{"X-Request-Id": "mine"}).status_code == 200
            made.send(0, "POST", f"{path}/solve", {"parameters": {"A": 123.4375}})
            made.send(None, "GET", "/healthz")
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
    for secret in (*made.tokens, "123.4375", "sum_squares"):
        assert secret not in written.getvalue()


def test_metrics_have_no_labels_without_bound() -> None:
    with lab() as made:
        for number in range(5):
            made.send(0, f"ODD{number}", "/v1/problems")
            made.send(0, "GET", f"/v1/path{number}")
            made.send(0, "GET", f"/v1/problems/p_{number}")
        text = made.send(0, "GET", "/metrics").text
        labels = [line for line in text.splitlines() if line.startswith("convexlayer_request_seconds_count")]
        assert len(labels) == 3, labels
        assert "convexlayer_workers" in text


def test_telemetry() -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from convexlayer_server import telemetry

    app = create_app(Settings(**IN_PROCESS))
    exporter = InMemorySpanExporter()
    telemetry.install(app, SimpleSpanProcessor(exporter))
    client = AppClient(app)
    client.get("/v1/problems")
    client.get("/healthz")
    client.close()
    names = [span.name for span in exporter.get_finished_spans() if span.parent is None]
    assert len(names) == 1
    assert "/v1/problems" in names[0]
