"""Invalid documents, requests and directions are refused, with pointers to what is wrong."""

from __future__ import annotations

import json
from typing import Any

import cvxpy as cp
import pytest

import convexlayer
from convexlayer_server import Settings, create_app

from .conftest import DOCUMENT, VALUES, AppClient, problem_details


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
    body = problem_details(client.post("/v1/problems", DOCUMENT | change), 422, "invalid-request")
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
    body = problem_details(client.post("/v1/problems", DOCUMENT | change), 422, "invalid-problem")
    assert message in body["detail"]


def test_malformed_cone_programs(client: AppClient) -> None:
    for program in ({}, {"n": 1}, {"version": 1}, {"parameters": 3}):
        problem_details(
            client.post("/v1/problems", {"kind": "cone_program", "program": program}), 422, "invalid-problem"
        )
    huge = {"parameters": [{"shape": [10**9]}], "outputs": []}
    body = problem_details(
        client.post("/v1/problems", {"kind": "cone_program", "program": huge}), 422, "invalid-problem"
    )
    assert body["errors"][0]["pointer"] == "/program/parameters/0/shape"
    problem_details(client.post("/v1/problems", {"kind": "cone_program", "program": []}), 422, "invalid-request")


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
    (error,) = problem_details(response, 422, "invalid-problem")["errors"]
    assert error["pointer"] == pointer
    assert error["detail"]


def test_cone_programs_are_limited() -> None:
    client = AppClient(create_app(Settings(workers=0, max_canonical_size=1)))
    response = client.post("/v1/problems", {"kind": "cone_program", "program": cone_program()})
    client.close()
    (error,) = problem_details(response, 422, "invalid-problem")["errors"]
    assert error["pointer"] == "/program"


def test_cones_are_limited() -> None:
    """Each cone is an entry of the summary, however short the document."""
    client = AppClient(create_app(Settings(workers=0, max_cones=3)))
    document = {"kind": "expression", "minimize": "sum(norm2(X, axis=1))", "subject_to": ["X[0, 0] >= 1"]}
    try:
        client.register(document | {"variables": {"X": {"shape": [3, 2]}}})
        response = client.post("/v1/problems", document | {"variables": {"X": {"shape": [4, 2]}}})
        assert "has 4 cones; the limit is 3" in problem_details(response, 422, "invalid-problem")["detail"]
    finally:
        client.close()


def test_messages_quote_values_in_part(client: AppClient) -> None:
    body = problem_details(client.post("/v1/problems", {"kind": "k" * 1000}), 422, "invalid-request")
    assert len(body["detail"]) < 400


@pytest.mark.parametrize("document", [{"kind": "expression", "\ud800": 1}, {"kind": "\ud800"}])
def test_names_with_invalid_unicode(client: AppClient, document: dict[str, Any]) -> None:
    content, headers = json.dumps(document), {"Content-Type": "application/json"}
    problem_details(client.request("POST", "/v1/problems", content=content, headers=headers), 422, "invalid-request")


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
    assert [error["pointer"] for error in problem_details(response, 422, slug)["errors"]] == [pointer]


def test_nan_is_refused(client: AppClient, path: str) -> None:
    for literal in ("NaN", "Infinity", "-Infinity", "1e400"):
        content = f'{{"parameters": {{"A": {VALUES["A"]}, "b": [1, 2, {literal}, 4], "lam": 1}}}}'
        headers = {"Content-Type": "application/json"}
        body = problem_details(
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
    assert [error["pointer"] for error in problem_details(response, 422, "invalid-request")["errors"]] == [pointer]


def test_batches_too_large_for_the_problem() -> None:
    client = AppClient(create_app(Settings(workers=0, max_batch_size=200)))
    path = client.register(DOCUMENT)
    body = problem_details(
        client.post(f"{path}/solve", {"parameters": VALUES | {"lam": [1.0] * 50}}), 422, "invalid-request"
    )
    client.close()
    assert "send at most" in body["detail"]
