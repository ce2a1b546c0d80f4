"""JSON with lists of numbers as arrays, in this process and in parser processes."""

from __future__ import annotations

import base64
import json
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexlayer
from convexlayer_server.encodings.json_arrays import pack, parse_json
from convexlayer_server.errors import MalformedError

from .conftest import AppClient

LARGE = np.random.default_rng(0).standard_normal((200, 100))


def packed(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.astype("<f8").tobytes()).decode()
    return {"dtype": "<f8", "shape": list(array.shape), "b64": data}


def nested(value: Any, depth: int) -> Any:
    return [nested(value, depth - 1)] if depth else value


def plain(value: Any) -> Any:
    """A packed value, with its arrays as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "value",
    [
        LARGE.tolist(),
        list(range(100)),
        [[1, 2.5]] * 50,
        [list(range(i)) for i in range(20)],
        [[1.0, None]] * 50,
        [True] * 100,
        [10**400] * 100,
        [[]] * 100,
        nested([1.0] * 100, 9),
        ["a"] * 100,
        {"dtype": "<f8", "shape": [2], "b64": "!"},
        {"dtype": "<f8", "shape": ["2"], "b64": "AAAA"},
        {"dtype": ["<f8"], "shape": [2], "b64": "AAAA"},
    ],
)
def test_packing_keeps_values(value: Any) -> None:
    tree = {"parameters": {"a": value}, "n": [1, "x", None]}
    assert plain(pack(tree)) == tree


def test_arrays_are_packed() -> None:
    tree = pack({"a": LARGE.tolist(), "b": list(range(100)), "c": packed(LARGE), "d": [1.0] * 7})
    np.testing.assert_array_equal(tree["a"], LARGE)
    assert tree["b"].dtype == np.float64
    np.testing.assert_array_equal(tree["c"], LARGE)
    assert tree["d"] == [1.0] * 7


@pytest.mark.parametrize("value", [["a"] * 65_535, [[1.0] * 7, "a"] * 7000, [[[1.0] * 7, list(range(8))]] * 3120])
def test_too_many_values_outside_arrays_are_refused(value: list[Any]) -> None:
    assert plain(pack([value])) == [value]
    with pytest.raises(MalformedError, match="more than 65536 values"):
        pack([value, value])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": }', "at byte 6"),
        ('{"\u00e4": }'.encode(), "at byte 7"),
        (b"[" * 100_000, "nested too deep"),
        (b"\xff\xfe{}", "at byte 0"),
        (b"9" * 5000, "digits"),
    ],
)
def test_invalid_json(text: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        parse_json(text)


@pytest.mark.parametrize("text", ['{"\\ud800": 1}', "[NaN, Infinity, 1e400]", "1" * 4000, "[" * 500 + "]" * 500])
def test_json_that_only_the_standard_library_accepts(text: str) -> None:
    assert str(parse_json(text.encode())) == str(json.loads(text))


DOCUMENT: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"a": {"shape": [20]}},
    "variables": {"x": {"shape": [20]}},
    "minimize": "sum_squares(x - a)",
    "subject_to": ["x >= 0"],
}


def test_large_bodies_give_the_same_results(client: AppClient) -> None:
    path = client.register(DOCUMENT)
    values = np.random.default_rng(1).standard_normal((500, 20))
    for value in (values.tolist(), packed(values)):
        response = client.post(f"{path}/solve", {"parameters": {"a": value}})
        np.testing.assert_allclose(response.json()["variables"]["x"], np.maximum(values, 0), atol=1e-8)
    ragged = values.tolist()
    ragged[7] = ragged[7][:-1]
    refused = client.post(f"{path}/solve", {"parameters": {"a": ragged}})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/parameters/a"
    assert "ragged" in refused.json()["detail"]


TEXTS: list[Any] = [
    DOCUMENT,
    DOCUMENT | {"constants": {"c": np.arange(20.0).tolist(), "C": np.arange(400.0).reshape(20, 20).tolist()}},
    {"kind": "cone_program", "program": {"n": list(range(100)), "mixed": [1, 2.5] * 50, "z": [0.1] * 100}},
    DOCUMENT | {"constants": {"C": [[1.0], [2.0, 3.0]]}},
    DOCUMENT | {"parameters": {str(number): 0 for number in range(50)}},
    DOCUMENT | {"unknown": 1},
    {"kind": "cone_program", "program": {"n": float("nan")}},
    {"minimize": "x"},
    [1],
]


@pytest.mark.parametrize("document", TEXTS)
def test_a_document_has_one_identity_whatever_its_size(client: AppClient, document: Any) -> None:
    """Two texts of one document: this process parses one, and a parser process the longer one."""
    headers = {"Content-Type": "application/json", "X-Request-Id": "same"}
    text = json.dumps(document)
    small, large = (
        client.request("POST", "/v1/problems?validate_only=true", content=content, headers=headers)
        for content in (text, text + " " * 2**18)
    )
    assert small.json() == large.json()
    assert small.headers.get("Location") == large.headers.get("Location")
    assert small.status_code == large.status_code


def test_syntax_errors_have_a_position_whatever_the_size(client: AppClient) -> None:
    for text in (b'{"kind": }', b'{"kind": }' + b" " * 2**18, b" " * 2**18 + b"["):
        headers = {"Content-Type": "application/json"}
        refused = client.request("POST", "/v1/problems", content=text, headers=headers)
        assert refused.status_code == 400
        assert refused.json()["type"] == "urn:convexlayer:problem:malformed"
        assert "at byte" in refused.json()["detail"]


def test_a_large_cone_program_is_registered(client: AppClient) -> None:
    x, p = cp.Variable(2000, name="x"), cp.Parameter(2000, name="p")
    program = convexlayer.canonicalize(cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [x >= 0]), [p], [x])
    document = {"kind": "cone_program", "program": program.to_document()}
    assert len(json.dumps(document)) > 2**17
    path = client.register(document)
    assert client.get(path).json()["document"] == document
