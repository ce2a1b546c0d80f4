"""Bodies as safetensors, compared with the library of that name, and invalid bodies."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from convexlayer_server.encodings.safetensors import MEDIA_TYPE, read, write
from convexlayer_server.errors import MalformedError

from .conftest import DOCUMENT, VALUES, AppClient
from .test_json_arrays import plain

TREE: dict[str, Any] = {
    "variables": {"x": np.arange(6.0).reshape(2, 3), "a/b~c": np.array(2.5)},
    "objective": np.array([1.0, np.nan]),
    "state": {"digest": "d", "x": np.zeros((2, 0))},
    "status": ["optimal", "infeasible"],
    "duals": {},
}


def joined(tree: dict[str, Any]) -> bytearray:
    return bytearray(b"".join(write(tree)))


def body(header: Any, data: bytes = b"") -> bytearray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + data)


def tensor(begin: int, end: int, shape: list[Any], dtype: Any = "F64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def assert_same(left: Any, right: Any) -> None:
    if isinstance(right, dict):
        assert set(left) == set(right)
        for name, value in right.items():
            assert_same(left[name], value)
    elif isinstance(right, np.ndarray):
        np.testing.assert_array_equal(left, right)
        assert left.shape == right.shape
    else:
        assert left == right


def test_round_trip() -> None:
    assert_same(read(joined(TREE)), TREE)


def test_arrays_are_not_copied() -> None:
    x = np.arange(1000.0)
    pieces = write({"variables": {"x": x}})
    assert np.shares_memory(np.frombuffer(pieces[1]), x)
    received = bytearray(b"".join(pieces))
    array = read(received)["variables"]["x"]
    assert np.shares_memory(array, np.frombuffer(received, dtype=np.uint8))
    assert array.flags.aligned


def test_the_library_reads_our_bodies() -> None:
    arrays = safetensors.numpy.load(bytes(joined(TREE)))
    assert set(arrays) == {"variables/x", "variables/a/b~c", "objective", "state/x"}
    np.testing.assert_array_equal(arrays["variables/x"], TREE["variables"]["x"])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_we_read_bodies_of_the_library(dtype: Any) -> None:
    arrays = {"parameters/A": np.arange(6, dtype=dtype).reshape(2, 3), "parameters/lam": np.array(2, dtype=dtype)}
    text = safetensors.numpy.save(arrays, metadata={"body": json.dumps({"return": ["duals"]})})
    tree = read(text)
    assert tree["return"] == ["duals"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(tree["parameters"][name.partition("/")[2]], array)
    assert read(safetensors.numpy.save({"b": np.zeros(2)}))["b"].shape == (2,)


EIGHT = b"\0" * 8


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (b"", "truncated"),
        (b"\1\0\0", "truncated"),
        (body({"a": tensor(0, 8, [1])}, EIGHT)[:-1], "7 follow"),
        (body({"a": tensor(0, 8, [1])}, EIGHT)[:20], "truncated"),
        ((2**63).to_bytes(8, "little") + b"{}", "truncated"),
        ((2**21).to_bytes(8, "little") + b" " * 2**21, "the limit is 1048576"),
        (body(b"{"), "at byte 1"),
        (body(b"[" * 5000), "nested too deep"),
        (body(b"\xff\xfe{}"), "at byte 0"),
        (body([]), "not an object"),
        (body({"__metadata__": []}), "not an object of strings"),
        (body({"__metadata__": {"body": 3}}), "not an object of strings"),
        (body({"__metadata__": {"body": "[]"}}), "not the text of an object"),
        (body({"__metadata__": {"body": "{"}}), "at byte 1"),
        (body({"a": tensor(0, 8, [1])}, EIGHT * 2), "take 8 bytes, but 16 follow"),
        (body({"a": tensor(0, 8, [1]), "b": tensor(0, 8, [1])}, EIGHT), "begins at byte 0"),
        (body({"a": tensor(0, 16, [2]), "b": tensor(8, 24, [2])}, EIGHT * 3), "begins at byte 8"),
        (body({"a": tensor(0, 8, [1]), "b": tensor(16, 24, [1])}, EIGHT * 3), "begins at byte 16"),
        (body({"a": tensor(8, 0, [1])}, EIGHT), "does not fit the bytes"),
        (body({"a": tensor(0, 8, [2])}, EIGHT), "does not fit the bytes"),
        (body({"a": tensor(0, 8, [10**9, 10**9])}, EIGHT), "does not fit the bytes"),
        (body({"a": tensor(0, 8, [2**40])}, EIGHT), "non-negative integers"),
        (body({"a": tensor(0, 8, [2**31 - 1] * 5_000)}, EIGHT), "has 5000 dimensions; the limit is 32"),
        (body({"a": tensor(0, 8, [-1, -1])}, EIGHT), "non-negative integers"),
        (body({"a": tensor(0, 8, [True])}, EIGHT), "non-negative integers"),
        (body({"a": tensor(0, 8, [1.0])}, EIGHT), "non-negative integers"),
        (body({"a": tensor(-8, 0, [1])}, EIGHT), "non-negative integers"),
        (body({"a": tensor(0, 8, [1], "I64")}, EIGHT), "the supported dtypes"),
        (body({"a": tensor(0, 8, [1], ["F64"])}, EIGHT), "the supported dtypes"),
        (body({"a": 3}, EIGHT), "expected the fields"),
        (body({"a": tensor(0, 8, [1]) | {"more": 1}}, EIGHT), "expected the fields"),
        (body({"a": tensor(0, 8, [1]), "a/b": tensor(8, 16, [1])}, EIGHT * 2), "the name of another value"),
        (body({"__metadata__": {"body": '{"a": 1}'}, "a": tensor(0, 8, [1])}, EIGHT), "the name of another value"),
        (body({"__metadata__": {"body": '{"a": [1]}'}, "a/b": tensor(0, 8, [1])}, EIGHT), "the name of another value"),
    ],
)
def test_refusals(received: bytes | bytearray, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        read(received)


GOOD = bytes(joined({"parameters": {"A": np.arange(6.0).reshape(2, 3), "b": np.arange(2.0)}, "wrt": ["A"]}))


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=4))
def test_changed_bytes(position: int, put: bytes) -> None:
    """A body with changed bytes is refused, or gives the arrays that the library reads."""
    changed = bytearray(GOOD)
    changed[position : position + len(put)] = put
    try:
        tree = read(changed)
    except MalformedError:
        return
    parts = [(part, inside) for part, inside in tree.items() if isinstance(inside, dict)]
    found = {f"{part}/{name}": array for part, inside in parts for name, array in inside.items()}
    expected = safetensors.numpy.load(bytes(changed))
    assert set(found) == set(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


def sent(client: AppClient, path: str, content: bytes, accept: str = MEDIA_TYPE) -> Any:
    headers = {"Content-Type": MEDIA_TYPE, "Accept": accept}
    return client.request("POST", path, content=content, headers=headers)


def request_body(fields: dict[str, Any], **parts: dict[str, Any]) -> bytes:
    return bytes(joined({**{part: arrays(values) for part, values in parts.items()}, **fields}))


def arrays(values: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, dtype=float) for name, value in values.items()}


def test_binary_responses_equal_json_responses(client: AppClient, path: str) -> None:
    values = VALUES | {"lam": [0.1, 0.5, 2.0]}
    cotangents, tangents = {"x": np.eye(3), "objective": [1.0, 2.0, 3.0]}, {"b": np.ones((3, 4))}
    calls: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "solve": ({"return": ["variables", "duals"]}, {}),
        "vjp": ({"wrt": ["b", "lam"]}, {"cotangents": cotangents}),
        "jvp": ({}, {"tangents": tangents}),
    }
    for operation, (fields, directions) in calls.items():
        response = sent(client, f"{path}/{operation}", request_body(fields, parameters=values, **directions))
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == MEDIA_TYPE
        assert int(response.headers["Content-Length"]) == len(response.content)
        listed = {part: plain(arrays(given)) for part, given in directions.items()}
        expected = client.post(f"{path}/{operation}", {"parameters": values, **fields, **listed}).json()
        tree = read(response.content)
        assert set(tree) == set(expected)
        for part in set(tree) - {"meta"}:
            left, right = tree[part], expected[part]
            pairs = [(left[name], right[name]) for name in right] if isinstance(right, dict) else [(left, right)]
            for ours, theirs in pairs:
                if isinstance(ours, np.ndarray):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
                else:
                    assert ours == theirs


@pytest.mark.parametrize(
    ("accept", "binary"),
    [
        ("*/*", False),
        ("", False),
        ("application/json", False),
        (MEDIA_TYPE, True),
        (f"{MEDIA_TYPE}, application/json;q=0.5", True),
        (f"{MEDIA_TYPE};q=0.5, application/json", False),
        (f"application/json;q=0.2, {MEDIA_TYPE.upper()} ; q=0.2", True),
        (f"{MEDIA_TYPE};q=0", False),
        (f"{MEDIA_TYPE};q=x", False),
    ],
)
def test_accept_selects_the_encoding(client: AppClient, path: str, accept: str, binary: bool) -> None:
    response = sent(client, f"{path}/solve", request_body({}, parameters=VALUES), accept)
    assert response.headers["Content-Type"] == (MEDIA_TYPE if binary else "application/json")


def test_failed_elements_are_nan(client: AppClient) -> None:
    document = {"kind": "expression", "parameters": {"u": {}}, "variables": {"x": {}}, "minimize": "x"}
    path = client.register(document | {"subject_to": ["x >= 0", "x <= u"]})
    tree = read(sent(client, f"{path}/solve", request_body({}, parameters={"u": [1.0, -1.0]})).content)
    assert tree["status"] == ["optimal", "infeasible"]
    np.testing.assert_array_equal(np.isnan(tree["variables"]["x"]), [False, True])
    np.testing.assert_array_equal(np.isnan(tree["objective"]), [False, True])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # sums of extreme numbers
def test_invalid_bodies_are_problem_details(client: AppClient, path: str) -> None:
    good = request_body({}, parameters=VALUES)
    rng = random.Random(0)
    cases = [(good[:-8], 400, "/"), (good[:100], 400, "/"), (b"", 400, "/"), (b"\xff" * 64, 400, "/")]
    cases += [(request_body({}, parameters=VALUES | {"b": np.zeros((5, 3))}), 422, "/parameters/b")]
    cases += [(request_body({}, parameters=VALUES | {"b": [np.nan] * 4}), 422, "/parameters/b")]
    cases += [(request_body({}, parameters=VALUES, objective={"x": 1.0}), 422, "/objective")]
    cases += [(request_body({"encoding": "zip"}, parameters=VALUES), 422, "/encoding")]
    for content, status, where in cases:
        response = sent(client, f"{path}/solve", content)
        assert response.status_code == status, response.text
        assert response.headers["Content-Type"] == "application/problem+json"
        assert [error["pointer"] for error in response.json()["errors"]] == ([where] if status == 422 else [])
    for _ in range(300):
        changed = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        assert sent(client, f"{path}/solve", bytes(changed)).status_code in (200, 400, 422)


def test_registration_accepts_json_only(client: AppClient) -> None:
    response = sent(client, "/v1/problems", json.dumps(DOCUMENT).encode())
    assert response.status_code == 415
    assert response.json()["detail"].startswith("expected application/json, got")


def test_openapi_describes_both_media_types(client: AppClient) -> None:
    schema = client.get("/openapi.json").json()
    for operation in ("solve", "vjp", "jvp"):
        described = schema["paths"][f"/v1/problems/{{problem_id}}/{operation}"]["post"]
        assert set(described["requestBody"]["content"]) == {"application/json", MEDIA_TYPE}
        assert {"application/json", MEDIA_TYPE} <= set(described["responses"]["200"]["content"])
    assert set(schema["paths"]["/v1/problems"]["post"]["requestBody"]["content"]) == {"application/json"}
    assert "$defs" not in json.dumps(schema)
    named = {reference.removeprefix("#/components/schemas/") for reference in _references(schema)}
    assert named <= set(schema["components"]["schemas"])


def _references(value: Any) -> Any:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        for entry in value.values():
            yield from _references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _references(entry)
