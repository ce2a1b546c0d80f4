"""Calls of the client to a real server, and the errors of every status."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from convexlayer_client import (
    ApiError,
    Client,
    ClientError,
    InvalidError,
    NotFoundError,
    Options,
    ProtocolError,
    TransportError,
    errors,
    safetensors,
)
from convexlayer_client.arrays import decode, encode
from tests.client.conftest import CLIENT
from tests.client.example import DOCUMENT, THETA, expected

README = CLIENT.parent / "README.md"


def test_a_problem_is_registered_once_listed_and_deleted(client: Client) -> None:
    problem = client.register(DOCUMENT)
    assert client.register(DOCUMENT) == problem
    assert problem.id.startswith("p_")
    assert problem.parameters == {"a": (3,), "radius": ()}
    assert problem.variables == {"x": (3,)}
    assert problem.duals == {"c0": (), "c1": ()}
    assert problem.id in [listed.id for listed in client.problems()]
    assert client.get(problem.id).details["kind"] == "expression"
    client.delete(problem.id)
    with pytest.raises(NotFoundError) as caught:
        client.get(problem.id)
    assert caught.value.status == 404
    assert caught.value.request_id


def test_solve_returns_arrays(client: Client) -> None:
    problem = client.register(DOCUMENT)
    result = client.solve(problem.id, THETA, duals=True, options=Options(tol=1e-9))
    np.testing.assert_allclose(result.variables["x"], [expected(a) for a in THETA["a"]], atol=1e-7)
    assert result.duals["c0"].shape == (2,)
    assert result.status == ("optimal", "optimal")
    distance = ((result.variables["x"] - THETA["a"]) ** 2).sum(1)
    np.testing.assert_allclose(result.objective, distance, rtol=1e-6)
    assert max(result.residuals.primal.max(), result.residuals.natural.max()) < 1e-6
    assert result.meta["batch"] == 2
    single = client.solve(problem.id, {"a": THETA["a"][1], "radius": 1})
    assert single.variables["x"].shape == (3,)
    assert single.duals == {}


def test_vjp_is_the_transpose_of_jvp(client: Client) -> None:
    problem = client.register(DOCUMENT)
    rng = np.random.default_rng(0)
    tangents: dict[str, Any] = {"a": rng.standard_normal((2, 3)), "radius": rng.standard_normal()}
    cotangents = {"x": rng.standard_normal((2, 3)), "c1": rng.standard_normal(2), "objective": rng.standard_normal(2)}
    forward = client.jvp(problem.id, tangents, THETA, duals=True)
    backward = client.vjp(problem.id, cotangents, THETA)
    outputs = {**forward.tangents, "objective": forward.objective}
    left = sum(float((cotangents[name] * outputs[name]).sum()) for name in cotangents)
    right = sum(float((tangents[name] * backward.gradients[name]).sum()) for name in tangents)
    assert abs(left) > 1e-2
    np.testing.assert_allclose(left, right, rtol=1e-9)
    assert backward.gradients["a"].shape == (2, 3)
    assert backward.gradients["radius"].shape == ()
    assert backward.report.status == forward.report.status == ("ok", "ok")
    assert client.vjp(problem.id, cotangents, THETA, wrt=["radius"]).gradients.keys() == {"radius"}


def test_an_infeasible_element_is_a_status_not_an_error(client: Client) -> None:
    problem = client.register(DOCUMENT)
    result = client.solve(problem.id, {"a": THETA["a"], "radius": np.array([0.1, 1.0])})
    assert result.status == ("infeasible", "optimal")
    assert np.isnan(result.variables["x"][0]).all()
    assert np.isfinite(result.variables["x"][1]).all()
    assert np.isnan(result.objective[0])


def test_an_invalid_document_has_pointers(client: Client) -> None:
    with pytest.raises(InvalidError) as caught:
        client.register(DOCUMENT | {"subject_to": ["x >= 0", "x <= nothing"]})
    assert caught.value.errors[0].pointer == "/subject_to/1"
    assert "column" in str(caught.value)
    assert caught.value.type == "urn:convexlayer:problem:invalid-problem"


def test_health(client: Client) -> None:
    assert client.health()["status"] == "ok"


def test_the_readme_runs(url: str) -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    scope: dict[str, Any] = {}
    for example in examples[:4]:  # the last one uses names that the README does not define
        exec(example.replace("http://127.0.0.1:8000", url), scope)
    assert scope["status"].done == 128
    np.testing.assert_allclose(scope["result"].variables["x"].sum(1), np.ones(128))


def mock_client(respond: Callable[[httpx.Request], httpx.Response], **keywords: Any) -> Client:
    return Client("http://server", transport=httpx.MockTransport(respond), retry_s=0, **keywords)


@pytest.mark.parametrize(("status", "kind"), [*errors.API_ERRORS.items(), (418, ApiError), (502, ApiError)])
def test_every_status_has_its_error_class(status: int, kind: type[ApiError]) -> None:
    document = {
        "type": "urn:convexlayer:problem:some",
        "title": "Some title",
        "status": status,
        "detail": "what happened",
        "errors": [{"pointer": "/parameters/a", "detail": "out of range"}],
        "request_id": "r-1",
    }

    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json=document, headers={"Retry-After": "7"})

    with mock_client(respond) as client, pytest.raises(ApiError) as caught:
        client.problems()
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, ClientError)
    assert (error.status, error.type, error.title) == (status, "urn:convexlayer:problem:some", "Some title")
    assert (error.request_id, error.retry_after_s) == ("r-1", 7.0)
    assert [(place.pointer, place.detail) for place in error.errors] == [("/parameters/a", "out of range")]
    for part in (str(status), "Some title", "what happened", "r-1", "/parameters/a", "out of range"):
        assert part in str(error)


def test_an_error_response_without_problem_details_is_an_api_error() -> None:
    headers = {"X-Request-Id": "r-2", "Retry-After": "Sun, 22 Nov 2026 08:00:00 GMT"}
    with (
        mock_client(lambda request: httpx.Response(503, text="<html>proxy</html>", headers=headers)) as client,
        pytest.raises(errors.UnavailableError, match="proxy") as caught,
    ):
        client.health()
    assert caught.value.request_id == "r-2"
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize("details", [{"detail": [{"loc": ["body"]}]}, {"detail": None}, {"errors": 3}, {"title": {}}])
def test_an_error_response_of_another_server_is_an_api_error(details: dict[str, Any]) -> None:
    with (
        mock_client(lambda request: httpx.Response(422, json=details)) as client,
        pytest.raises(errors.InvalidError) as caught,
    ):
        client.health()
    assert isinstance(caught.value.detail, str)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"problems": [{"id": 3}]}'])
def test_an_unexpected_response_is_a_protocol_error(content: bytes) -> None:
    with (
        mock_client(lambda request: httpx.Response(200, content=content)) as client,
        pytest.raises(ProtocolError),
    ):
        client.problems()


def test_a_failed_connection_is_a_transport_error() -> None:
    with (
        Client("http://127.0.0.1:1", retry_s=0) as client,
        pytest.raises(TransportError, match=r"127\.0\.0\.1:1") as caught,
    ):
        client.health()
    assert isinstance(caught.value.__cause__, httpx.RequestError)


def unreachable(request: httpx.Request) -> httpx.Response:
    raise AssertionError("unexpected request")


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_a_document_that_is_not_json_is_not_sent(value: Any) -> None:
    with mock_client(unreachable) as client, pytest.raises(errors.EncodingError, match="is not plain JSON"):
        client.register({"a": value})


@pytest.mark.parametrize("value", ["abc", [[1.0], [2.0, 3.0]], {1, 2}])
def test_a_value_that_is_not_an_array_is_not_sent(value: Any) -> None:
    with (
        mock_client(unreachable) as client,
        pytest.raises(errors.EncodingError, match="x: expected a number or"),
    ):
        client.solve("p", {"x": value})


def test_a_closed_client_is_a_transport_error() -> None:
    client = mock_client(unreachable)
    client.close()
    with pytest.raises(TransportError, match="closed"):
        client.health()


def test_the_key_is_sent_as_a_bearer_token() -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(401, json={})

    with mock_client(respond, api_key="secret") as client, pytest.raises(errors.UnauthenticatedError) as caught:
        client.solve("p/../x", {"a": [1.0, 2.0]}, options=Options(max_iter=5))
    assert seen[0].headers["Authorization"] == "Bearer secret"
    assert "secret" not in str(caught.value)
    assert seen[0].url.raw_path == b"/v1/problems/p%2F..%2Fx/solve"
    assert "secret" not in repr(vars(client))


def test_key_and_url_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"status": "ok"})

    monkeypatch.delenv("CONVEXLAYER_URL", raising=False)
    with pytest.raises(ValueError, match="CONVEXLAYER_URL"):
        Client()
    monkeypatch.setenv("CONVEXLAYER_URL", "http://elsewhere/below")
    monkeypatch.setenv("CONVEXLAYER_API_KEY", "of the environment")
    for key in (None, "given"):
        with Client(api_key=key, transport=httpx.MockTransport(respond)) as client:
            client.health()
    assert [request.headers["Authorization"] for request in seen] == ["Bearer of the environment", "Bearer given"]
    assert str(seen[0].url) == "http://elsewhere/below/healthz"
    copied = pickle.loads(pickle.dumps(client))  # the key is not pickled but read from the environment
    assert b"given" not in pickle.dumps(client)
    assert copied._connection.endpoint.url == client._connection.endpoint.url


def test_a_415_response_switches_from_safetensors_to_json() -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.headers["Content-Type"] != "application/json":
            return httpx.Response(415, json={"status": 415})
        return httpx.Response(401, json={})

    with mock_client(respond) as client:
        for _ in range(2):
            with pytest.raises(errors.UnauthenticatedError):
                client.solve("p", {"a": [1.0, 2.0]}, options=Options(max_iter=5))
    assert [request.headers["Content-Type"] for request in seen] == [
        safetensors.MEDIA_TYPE,
        "application/json",
        "application/json",
    ]
    tree, plain = safetensors.read(bytearray(seen[0].content)), json.loads(seen[1].content)
    assert tree["options"] == plain["options"] == {"solver": "auto", "max_iter": 5}
    assert plain["encoding"] == "base64"
    for values in (tree["parameters"]["a"], decode(plain["parameters"]["a"])):
        np.testing.assert_array_equal(values, [1.0, 2.0])


def test_both_encodings_give_the_same_results(client: Client, url: str) -> None:
    problem = client.register(DOCUMENT)
    with Client(url) as plain:
        plain._connection.endpoint.known.form = "json"
        solutions = [each.solve(problem.id, THETA, duals=True) for each in (client, plain)]
        pulled = [each.vjp(problem.id, {"x": np.ones((2, 3))}, THETA) for each in (client, plain)]
        assert solutions[0].status == solutions[1].status
        assert pulled[0].status == pulled[1].status
        for left, right in ([found.variables for found in solutions], [found.gradients for found in pulled]):
            for name in right:
                np.testing.assert_allclose(left[name], right[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 4)])
def test_safetensors_round_trip_is_exact(shape: tuple[int, ...]) -> None:
    values = np.array(np.random.default_rng(0).standard_normal(shape), order="F")
    values.flat[:1] = np.nan
    body = bytearray(safetensors.write({"parameters": {"a/b": values, "n": 1}, "objective": values, "wrt": ["a/b"]}))
    tree = safetensors.read(body)
    assert tree["wrt"] == ["a/b"]
    assert tree["parameters"]["n"] == 1
    for array in (tree["parameters"]["a/b"], tree["objective"]):
        np.testing.assert_array_equal(array, values)
        assert array.shape == values.shape
        assert array.flags.writeable
        assert array.size == 0 or np.shares_memory(array, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("length", [0, 4, 20, 200])
def test_a_truncated_safetensors_body_is_a_protocol_error(length: int) -> None:
    body = bytearray(safetensors.write({"variables": {"x": np.arange(30.0)}}))
    with pytest.raises(ProtocolError):
        safetensors.read(body[:length])


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 4)])
def test_json_round_trip_is_exact(shape: tuple[int, ...]) -> None:
    values = np.asfortranarray(np.random.default_rng(0).standard_normal(shape))
    values.flat[:1] = np.nan
    np.testing.assert_array_equal(decode(json.loads(json.dumps(encode(values)))), values)


def test_null_in_lists_is_nan() -> None:
    np.testing.assert_array_equal(decode([1.5, None]), [1.5, np.nan])


@pytest.mark.parametrize(
    "value", [{"b64": "AAAA"}, {"dtype": "<f8", "shape": [2], "b64": "AAAAAAAAAAA="}, ["x"], [[1], 2]]
)
def test_a_malformed_array_is_a_protocol_error(value: Any) -> None:
    with pytest.raises(ProtocolError):
        decode(value)
