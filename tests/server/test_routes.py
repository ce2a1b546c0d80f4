"""The wire format: responses and errors."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from convexlayer.runtime import kernel_cache
from convexlayer_server import Settings, create_app

from .conftest import DOCUMENT, VALUES, AppClient, problem_details


def test_registration(client: AppClient) -> None:
    document = DOCUMENT | {"constants": {"unused": [1.0]}}
    first = client.post("/v1/problems", document)
    again = client.post("/v1/problems", document)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    summary = first.json()
    assert first.headers["Location"] == f"/v1/problems/{summary['id']}"
    assert summary["kind"] == "expression"
    assert summary["parameters"]["A"] == {"shape": [4, 3], "attributes": []}
    assert summary["parameters"]["lam"] == {"shape": [], "attributes": ["nonneg"]}
    assert summary["variables"] == {"x": {"shape": [3]}}
    assert summary["duals"] == {"c0": {"shape": [3]}, "c1": {"shape": []}}
    assert summary["curvature"] == "CONVEX"
    assert summary["cones"]["nonnegative"] >= 3
    assert summary["sizes"]["n"] >= 3
    assert summary["solver"]["name"]


def test_list_get_delete(client: AppClient) -> None:
    document = DOCUMENT | {"constants": {"marker": 1.0}}
    path = client.register(document)
    identity = path.rpartition("/")[2]
    assert identity in [entry["id"] for entry in client.get("/v1/problems").json()["problems"]]
    detail = client.get(path).json()
    assert detail["id"] == identity
    assert client.post("/v1/problems", detail["document"]).json()["id"] == identity
    assert client.request("DELETE", path).status_code == 204
    problem_details(client.get(path), 404, "not-found")
    problem_details(client.request("DELETE", path), 404, "not-found")
    problem_details(client.post(f"{path}/solve", {"parameters": VALUES}), 404, "not-found")
    assert client.post("/v1/problems", document).status_code == 201


def test_problems_are_listed_page_by_page() -> None:
    client = AppClient(create_app(Settings(workers=0)))

    def page(query: str = "") -> tuple[list[str], str | None]:
        body = client.get(f"/v1/problems?limit=2{query}").json()
        return [entry["id"] for entry in body["problems"]], body["next"]

    try:
        paths = [client.register(DOCUMENT | {"constants": {"page": float(number)}}) for number in range(5)]
        ids = [path.rpartition("/")[2] for path in paths]
        first, second = page()
        assert first == ids[:2]
        client.request("DELETE", paths[1])  # the last of the first page, and one of the next
        client.request("DELETE", paths[2])
        more = client.register(DOCUMENT | {"constants": {"page": 5.0}}).rpartition("/")[2]
        assert page(f"&after={second}")[0] == ids[3:5]
        client.request("DELETE", f"/v1/problems/{more}")
        again = client.register(DOCUMENT | {"constants": {"page": 6.0}}).rpartition("/")[2]
        _, third = page(f"&after={second}")
        assert page(f"&after={third}") == ([again], None)
        everything = client.get("/v1/problems").json()
        assert everything["next"] is None
        assert everything["problems"][0] == client.post("/v1/problems", DOCUMENT | {"constants": {"page": 0.0}}).json()
        cursors = [base64.urlsafe_b64encode(f"problem {n}".encode()).decode() for n in ("-1", "01", "1e3", "9" * 30)]
        wrong = [("limit", "0"), ("limit", "1001"), ("limit", "x"), *(("after", each) for each in ["x", *cursors])]
        for name, value in [*wrong, ("after", f"{second}x"), ("after", "é")]:
            body = problem_details(client.get(f"/v1/problems?{name}={value}"), 422, "invalid-request")
            assert body["detail"].startswith(f"query parameter {name}: ")
    finally:
        client.close()


def test_validate_only_stores_nothing(client: AppClient) -> None:
    document = DOCUMENT | {"constants": {"trial": 1.0}}
    response = client.post("/v1/problems?validate_only=true", document)
    assert response.status_code == 200
    problem_details(client.get(response.headers["Location"]), 404, "not-found")
    problem_details(
        client.post("/v1/problems?validate_only=true", document | {"minimize": "x"}), 422, "invalid-problem"
    )


def test_concurrent_registrations_agree(client: AppClient) -> None:
    document = DOCUMENT | {"constants": {"together": 1.0}}
    responses = client.together(*[("POST", "/v1/problems", document)] * 6)
    assert sorted(response.status_code for response in responses) == [200] * 5 + [201]
    assert len({response.json()["id"] for response in responses}) == 1


def test_health_and_page(client: AppClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ready"
    page = client.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    for path in client.get("/openapi.json").json()["paths"]:
        assert re.sub(r"{\w+}", "{id}", path) in page.text


def test_readiness_ends_with_the_backend() -> None:
    app = create_app(Settings(workers=0))
    client = AppClient(app)
    client._runner.run(app.state.service.compute.close())
    response = client.get("/readyz")
    client.close()
    assert response.status_code == 503


@pytest.mark.parametrize("path", ["compiled", "portable"])
def test_readiness_reports_kernels(monkeypatch: pytest.MonkeyPatch, path: Any) -> None:
    monkeypatch.setattr(kernel_cache, "_decision", [kernel_cache.Kernels(path, "x86-64-v3", "because")])
    client = AppClient(create_app(Settings(workers=0)))
    for place in ("/readyz", "/v1/capabilities"):
        shown = client.get(place).json()
        assert (shown["kernels"], shown["kernels_reason"]) == (path, "because")
    assert f"convexlayer_kernels_portable {float(path == 'portable')}" in client.get("/metrics").text
    client.close()


def test_openapi_describes_every_field(client: AppClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    common = {"parameters", "options", "encoding"}
    assert set(schemas["SolveRequest"]["properties"]) == {*common, "return"}
    assert set(schemas["VjpRequest"]["properties"]) == {*common, "cotangents", "wrt", "state"}
    assert {"ExpressionDocument", "ConeProgramDocument", "ProblemDetails"} <= set(schemas)
    assert "HTTPValidationError" not in schemas
    assert client.get("/openapi.json").json()["security"] == [{"key": []}, {}]
    assert schemas["SolveRequest"]["additionalProperties"] is False


def test_openapi_describes_errors(client: AppClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    operations = [operation for path in paths.values() for operation in path.values()]
    assert len(operations) == 17
    reference = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    for operation in operations:
        for status in ("4XX", "5XX"):
            assert operation["responses"][status]["content"] == {"application/problem+json": reference}


@pytest.mark.parametrize("place", ["/healthz", "/readyz"])
def test_probes_accept_head(client: AppClient, place: str) -> None:
    assert client.request("HEAD", place).status_code == 200


def test_the_first_unknown_field_is_refused(client: AppClient, path: str) -> None:
    unknown = {f"{'k' * 100}{number}": 0 for number in range(1000)}
    for place, body in ((f"{path}/solve", {"parameters": VALUES}), ("/v1/problems", DOCUMENT)):
        answer = problem_details(client.post(place, body | unknown), 422, "invalid-request")
        (error,) = answer["errors"]
        assert error["pointer"] == "/" + "k" * 80
        assert "the fields are" in error["detail"]
        assert "parameters" in error["detail"]
    answer = problem_details(client.post(f"{path}/solve", {"return": ["nothing"] * 1000}), 422, "invalid-request")
    assert len(answer["errors"]) == 1


def test_request_ids(client: AppClient) -> None:
    def answered(given: str) -> str:
        return str(client.request("GET", "/healthz", headers={"X-Request-Id": given}).headers["X-Request-Id"])

    assert answered("my-request.1_a") == "my-request.1_a"
    assert answered("with space") != "with space"
    assert answered("x" * 65) != "x" * 65
    assert len({client.get("/healthz").headers["X-Request-Id"] for _ in range(3)}) == 3


def test_http_errors(client: AppClient, path: str) -> None:
    def send(content: bytes, media_type: str = "application/json") -> Any:
        return client.request("POST", "/v1/problems", content=content, headers={"Content-Type": media_type})

    problem_details(client.get("/v2"), 404, "not-found")
    problem_details(client.get("/v1/problems/none"), 404, "not-found")
    assert client.request("PUT", path, json={}).headers["Allow"]
    problem_details(client.request("PUT", path, json={}), 405, "method-not-allowed")
    assert problem_details(send(b'{"kind": }'), 400, "malformed")["detail"].startswith("invalid JSON at byte 9")
    problem_details(send(b"\xff\xfe{}"), 400, "malformed")
    problem_details(send(b"[" * 100_000), 400, "malformed")
    problem_details(send(b'{"minimize": ' + b"9" * 5000 + b"}"), 400, "malformed")
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/xml", "multipart/form-data"):
        problem_details(send(b"{}", media_type), 415, "media-type")
    problem_details(client.request("POST", f"{path}/solve", content=b"{}"), 415, "media-type")


def test_bodies_are_limited() -> None:
    client = AppClient(create_app(Settings(workers=0, max_body_bytes=1000)))

    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    try:
        problem_details(client.request("POST", "/v1/problems", content=b" " * 1001, headers=headers), 413, "too-large")
        problem_details(client.request("POST", "/v1/problems", content=chunks(), headers=headers), 413, "too-large")
        problem_details(client.request("POST", "/v1/problems", content=b" " * 1000, headers=headers), 400, "malformed")
    finally:
        client.close()


def test_unexpected_errors_are_problem_details(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(workers=0))
    client = AppClient(app)
    monkeypatch.setattr(app.state.service.store, "page", lambda *arguments: 1 / 0)
    body = problem_details(client.get("/v1/problems"), 500, "internal")
    client.close()
    assert "division" not in body["detail"]
