"""The wire format: responses and errors."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import cvxpy as cp
import pytest

import convexlayer
from convexlayer.runtime import kernel_cache
from convexlayer_server import Settings, create_app

from .conftest import DOCUMENT, VALUES, AppClient


def problem(response: Any, status: int, slug: str) -> dict[str, Any]:
    """Check the form of problem details, and return them."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "errors", "request_id"}
    assert body["type"] == f"urn:convexlayer:problem:{slug}"
    assert body["status"] == status
    assert body["request_id"] == response.headers["X-Request-Id"]
    return body


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
    problem(client.get(path), 404, "not-found")
    problem(client.request("DELETE", path), 404, "not-found")
    problem(client.post(f"{path}/solve", {"parameters": VALUES}), 404, "not-found")
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
            body = problem(client.get(f"/v1/problems?{name}={value}"), 422, "invalid-request")
            assert body["detail"].startswith(f"query parameter {name}: ")
    finally:
        client.close()


def test_validate_only_stores_nothing(client: AppClient) -> None:
    document = DOCUMENT | {"constants": {"trial": 1.0}}
    response = client.post("/v1/problems?validate_only=true", document)
    assert response.status_code == 200
    problem(client.get(response.headers["Location"]), 404, "not-found")
    problem(client.post("/v1/problems?validate_only=true", document | {"minimize": "x"}), 422, "invalid-problem")


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
        answer = problem(client.post(place, body | unknown), 422, "invalid-request")
        (error,) = answer["errors"]
        assert error["pointer"] == "/" + "k" * 80
        assert "the fields are" in error["detail"]
        assert "parameters" in error["detail"]
    answer = problem(client.post(f"{path}/solve", {"return": ["nothing"] * 1000}), 422, "invalid-request")
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

    problem(client.get("/v2"), 404, "not-found")
    problem(client.get("/v1/problems/none"), 404, "not-found")
    assert client.request("PUT", path, json={}).headers["Allow"]
    problem(client.request("PUT", path, json={}), 405, "method-not-allowed")
    assert problem(send(b'{"kind": }'), 400, "malformed")["detail"].startswith("invalid JSON at byte 9")
    problem(send(b"\xff\xfe{}"), 400, "malformed")
    problem(send(b"[" * 100_000), 400, "malformed")
    problem(send(b'{"minimize": ' + b"9" * 5000 + b"}"), 400, "malformed")
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "application/xml", "multipart/form-data"):
        problem(send(b"{}", media_type), 415, "media-type")
    problem(client.request("POST", f"{path}/solve", content=b"{}"), 415, "media-type")


def test_bodies_are_limited() -> None:
    client = AppClient(create_app(Settings(workers=0, max_body_bytes=1000)))

    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100

    headers = {"Content-Type": "application/json"}
    try:
        problem(client.request("POST", "/v1/problems", content=b" " * 1001, headers=headers), 413, "too-large")
        problem(client.request("POST", "/v1/problems", content=chunks(), headers=headers), 413, "too-large")
        problem(client.request("POST", "/v1/problems", content=b" " * 1000, headers=headers), 400, "malformed")
    finally:
        client.close()


def test_unexpected_errors_are_problem_details(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(workers=0))
    client = AppClient(app)
    monkeypatch.setattr(app.state.service.store, "page", lambda *arguments: 1 / 0)
    body = problem(client.get("/v1/problems"), 500, "internal")
    client.close()
    assert "division" not in body["detail"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"kind": "other"}, "/kind"),
        ({"minimise": "x"}, "/minimise"),
        ({"minimize": 1}, "/minimize"),
        ({"subject_to": "x >= 0"}, "/subject_to"),
        ({"subject_to": ["x >= 0", None]}, "/subject_to/1"),
        ({"variables": {"x": {"shape": [3], "boolean": True}}}, "/variables/x/boolean"),
        ({"variables": {"x": {"shape": [0]}}}, "/variables/x/shape/0"),
        ({"variables": {"x": {"shape": [3.5]}}}, "/variables/x/shape/0"),
        ({"variables": {"x": {"shape": [10**30]}}}, "/variables/x/shape/0"),
        ({"parameters": {"a b": {}}}, "/parameters/a b"),
        ({"parameters": {"a/b": {}}}, "/parameters/a~1b"),
        ({"parameters": {"a": {"nonneg": 1}}}, "/parameters/a/nonneg"),
        ({"parameters": {f"{number} ": {} for number in range(10_001)}}, "/parameters"),
        ({"gp": "yes"}, "/gp"),
    ],
)
def test_malformed_documents(client: AppClient, change: dict[str, Any], pointer: str) -> None:
    body = problem(client.post("/v1/problems", DOCUMENT | change), 422, "invalid-request")
    assert pointer in [error["pointer"] for error in body["errors"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minimize": "sum_squares(x", "let": {}}, "/minimize: line 1, column 14"),
        ({"minimize": "sin(x)"}, "unknown function 'sin'"),
        ({"minimize": "sum(sqrt(x))"}, "/minimize: is not convex"),
        ({"minimize": "lam * lam * sum_squares(x)"}, "DPP"),
        ({"subject_to": ["x >= 0", "x == square(x)"]}, "/subject_to/1: is not convex"),
        ({"subject_to": ["soc(norm1(x), x)"]}, "/subject_to/0: is not convex"),
        ({"constants": {"C": [[1.0], [2.0, 3.0]]}}, "ragged"),
        ({"variables": {"x": {"shape": [3]}, "y": {}}}, "/variables/y"),
        ({"variables": {}, "minimize": "lam", "let": {}, "subject_to": []}, "at least one variable"),
        ({"minimize": "sum(x) + log(-1)", "let": {}, "parameters": {}}, ""),
        ({"minimize": "sum(x)", "let": {"C": "inv_pos(0) * x"}, "subject_to": ["C >= 0"]}, ""),
    ],
)
def test_invalid_documents(client: AppClient, change: dict[str, Any], message: str) -> None:
    body = problem(client.post("/v1/problems", DOCUMENT | change), 422, "invalid-problem")
    assert message in body["detail"]


def test_malformed_cone_programs(client: AppClient) -> None:
    for program in ({}, {"n": 1}, {"version": 1}, {"parameters": 3}):
        problem(client.post("/v1/problems", {"kind": "cone_program", "program": program}), 422, "invalid-problem")
    huge = {"parameters": [{"shape": [10**9]}], "outputs": []}
    body = problem(client.post("/v1/problems", {"kind": "cone_program", "program": huge}), 422, "invalid-problem")
    assert body["errors"][0]["pointer"] == "/program/parameters/0/shape"
    problem(client.post("/v1/problems", {"kind": "cone_program", "program": []}), 422, "invalid-request")


def cone_program() -> dict[str, Any]:
    """Minimise (x - p)^2."""
    x, p = cp.Variable(name="x"), cp.Parameter(name="p")
    problem = cp.Problem(cp.Minimize(cp.square(x - p)))
    document: dict[str, Any] = convexlayer.canonicalize(problem, [p], [x]).to_document()
    return document


@pytest.mark.parametrize(
    ("path", "value", "pointer"),
    [
        (("outputs", 0, "name"), "objective", "/program/outputs/0/name"),
        (("outputs", 0, "name"), "x" * 65, "/program/outputs/0/name"),
        (("outputs", 0, "name"), "\ud800", "/program/outputs/0/name"),
        (("parameters", 0, "name"), "p\n", "/program/parameters/0/name"),
        (("parameters", 0, "name"), "", "/program/parameters/0/name"),
        (("data", "constant"), [], "/program/data/constant"),
        (("unknown",), 1, "/program"),
    ],
)
def test_invalid_fields_of_cone_programs(
    client: AppClient, path: tuple[str | int, ...], value: Any, pointer: str
) -> None:
    program = cone_program()
    place: Any = program
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    content = json.dumps({"kind": "cone_program", "program": program})  # httpx cannot encode a lone surrogate
    response = client.request("POST", "/v1/problems", content=content, headers={"Content-Type": "application/json"})
    (error,) = problem(response, 422, "invalid-problem")["errors"]
    assert error["pointer"] == pointer
    assert error["detail"]


def test_cone_programs_are_limited() -> None:
    client = AppClient(create_app(Settings(workers=0, max_canonical_size=1)))
    response = client.post("/v1/problems", {"kind": "cone_program", "program": cone_program()})
    client.close()
    (error,) = problem(response, 422, "invalid-problem")["errors"]
    assert error["pointer"] == "/program"


def test_cones_are_limited() -> None:
    """Each cone is an entry of the summary, however short the document."""
    client = AppClient(create_app(Settings(workers=0, max_cones=3)))
    document = {"kind": "expression", "minimize": "sum(norm2(X, axis=1))", "subject_to": ["X[0, 0] >= 1"]}
    try:
        client.register(document | {"variables": {"X": {"shape": [3, 2]}}})
        response = client.post("/v1/problems", document | {"variables": {"X": {"shape": [4, 2]}}})
        assert "has 4 cones; the limit is 3" in problem(response, 422, "invalid-problem")["detail"]
    finally:
        client.close()


def test_messages_quote_values_in_part(client: AppClient) -> None:
    body = problem(client.post("/v1/problems", {"kind": "k" * 1000}), 422, "invalid-request")
    assert len(body["detail"]) < 400


@pytest.mark.parametrize("document", [{"kind": "expression", "\ud800": 1}, {"kind": "\ud800"}])
def test_names_with_invalid_unicode(client: AppClient, document: dict[str, Any]) -> None:
    content, headers = json.dumps(document), {"Content-Type": "application/json"}
    problem(client.request("POST", "/v1/problems", content=content, headers=headers), 422, "invalid-request")


def test_parameters_may_be_called_objective(client: AppClient) -> None:
    program = cone_program()
    program["parameters"][0]["name"] = "objective"
    path = client.register({"kind": "cone_program", "program": program})
    body = {"parameters": {"objective": 2.0}, "cotangents": {"x": 1.0}}
    assert client.post(f"{path}/vjp", body).json()["gradients"]["objective"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"parameters": {}}, "/parameters/A"),
        ({"parameters": VALUES | {"B": 1.0}}, "/parameters/B"),
        ({"parameters": VALUES | {"lam": [[1.0]]}}, "/parameters/lam"),
        ({"parameters": VALUES | {"b": [1.0, 2.0]}}, "/parameters/b"),
        ({"parameters": VALUES | {"b": [1.0, 2.0, None, 4.0]}}, "/parameters/b"),
        ({"parameters": VALUES | {"b": "zero"}}, "/parameters/b"),
        ({"parameters": VALUES | {"lam": -1.0}}, "/parameters"),
        ({"parameters": VALUES | {"lam": [1.0, 2.0], "b": [VALUES["b"]] * 3}}, "/parameters/lam"),
        ({"parameters": VALUES | {"lam": []}}, "/parameters/lam"),
        ({"parameters": [1.0]}, "/parameters"),
        ({"options": {"solver": "nobody"}}, "/options/solver"),
        ({"options": {"solver": "gurobi"}}, "/options/solver"),
        ({"options": {"solver": "../../etc"}}, "/options/solver"),
        ({"options": {"tol": 0}}, "/options/tol"),
        ({"options": {"tol": "tight"}}, "/options/tol"),
        ({"options": {"max_iter": 10**9}}, "/options/max_iter"),
        ({"options": {"max_iter": 5.0}}, "/options/max_iter"),
        ({"options": {"max_iter": True}}, "/options/max_iter"),
        ({"options": {"tol": "1e-6"}}, "/options/tol"),
        ({"options": {"time_limit_s": 1e9}}, "/options/time_limit_s"),
        ({"options": {"verbose": True}}, "/options/verbose"),
        ({"return": ["variables", "all"]}, "/return/1"),
        ({"return": ["primal"]}, "/return/0"),
        ({"encoding": "pickle"}, "/encoding"),
        ({"extra": 1}, "/extra"),
    ],
)
def test_invalid_solve_requests(client: AppClient, path: str, change: dict[str, Any], pointer: str) -> None:
    response = client.post(f"{path}/solve", {"parameters": VALUES} | change)
    slug = "solver" if pointer == "/options/solver" and "." not in change["options"]["solver"] else "invalid-request"
    assert [error["pointer"] for error in problem(response, 422, slug)["errors"]] == [pointer]


def test_nan_is_refused(client: AppClient, path: str) -> None:
    for literal in ("NaN", "Infinity", "-Infinity", "1e400"):
        content = f'{{"parameters": {{"A": {VALUES["A"]}, "b": [1, 2, {literal}, 4], "lam": 1}}}}'
        headers = {"Content-Type": "application/json"}
        body = problem(
            client.request("POST", f"{path}/solve", content=content, headers=headers), 422, "invalid-request"
        )
        assert body["errors"][0]["pointer"] == "/parameters/b"
        assert "at [2]" in body["detail"]


@pytest.mark.parametrize(
    ("operation", "change", "pointer"),
    [
        ("vjp", {}, "/cotangents"),
        ("vjp", {"cotangents": {"z": 1.0}}, "/cotangents/z"),
        ("vjp", {"cotangents": {"x": 1.0}}, "/cotangents/x"),
        ("vjp", {"cotangents": {"x": [1, 0, float("nan")]}}, "/cotangents/x"),
        ("vjp", {"cotangents": {"x": [1, 0, 0]}, "wrt": ["lam", "x"]}, "/wrt/1"),
        ("vjp", {"cotangents": {"x": [[1, 0, 0]] * 2, "objective": [1.0] * 3}}, "/cotangents/objective"),
        ("vjp", {"cotangents": {"x": [1, 0, 0]}, "return": ["variables"]}, "/return"),
        ("jvp", {"tangents": {"x": [1.0, 0.0, 0.0]}}, "/tangents/x"),
        ("jvp", {"tangents": {"lam": float("inf")}}, "/tangents/lam"),
        ("jvp", {"tangents": {"lam": 1.0}, "return": ["state"]}, "/return/0"),
        ("jvp", {"tangents": 1}, "/tangents"),
    ],
)
def test_invalid_directions(client: AppClient, path: str, operation: str, change: dict[str, Any], pointer: str) -> None:
    content = json.dumps({"parameters": VALUES} | change)
    headers = {"Content-Type": "application/json"}
    response = client.request("POST", f"{path}/{operation}", content=content, headers=headers)
    assert [error["pointer"] for error in problem(response, 422, "invalid-request")["errors"]] == [pointer]


def test_batches_too_large_for_the_problem() -> None:
    client = AppClient(create_app(Settings(workers=0, max_batch_size=200)))
    path = client.register(DOCUMENT)
    body = problem(client.post(f"{path}/solve", {"parameters": VALUES | {"lam": [1.0] * 50}}), 422, "invalid-request")
    client.close()
    assert "send at most" in body["detail"]
