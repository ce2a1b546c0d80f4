"""JSON with arrays packed, by this process and by the one that reads large bodies."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest

from convexlayer_server import Settings, create_app
from convexlayer_server.encoding import JsonParser, MalformedError
from convexlayer_server.encoding.packing import load, pack

from .conftest import AppClient

T = TypeVar("T")
LARGE = np.random.default_rng(0).standard_normal((200, 100))


def packed(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.astype("<f8").tobytes()).decode()
    return {"dtype": "<f8", "shape": list(array.shape), "b64": data}


def nested(value: Any, depth: int) -> Any:
    return [nested(value, depth - 1)] if depth else value


def plain(value: Any) -> Any:
    """A packed value with its arrays as lists."""
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
def test_packing_changes_no_value(value: Any) -> None:
    tree = {"parameters": {"a": value}, "n": [1, "x", None]}
    assert plain(pack(tree, "values")) == tree
    exact = plain(pack(tree, "exact"))
    assert json.dumps(exact) == json.dumps(tree)  # 1 stays 1, 1.0 stays 1.0


def test_arrays_are_packed() -> None:
    tree = pack({"a": LARGE.tolist(), "b": list(range(100)), "c": packed(LARGE)}, "values")
    np.testing.assert_array_equal(tree["a"], LARGE)
    assert tree["b"].dtype == np.float64
    np.testing.assert_array_equal(tree["c"], LARGE)
    assert pack({"b": list(range(100))}, "exact")["b"].dtype == np.int64
    assert isinstance(pack({"c": packed(LARGE)}, "exact")["c"], dict)


def test_too_much_beside_arrays_is_refused() -> None:
    with pytest.raises(MalformedError, match="more than 200000 values"):
        pack([["a"] * 150_000, ["b"] * 150_000], "values")
    assert len(pack([["a"] * 150_000, ["b"] * 150_000], "exact")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": }', "at byte 6"),
        (b"[" * 100_000, "nested too deep"),
        (b"\xff\xfe{}", "at byte 0"),
        (b"9" * 5000, "digits"),
    ],
)
def test_what_is_not_json(text: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        load(text)


@pytest.mark.parametrize("text", ['{"\\ud800": 1}', "[NaN, Infinity, 1e400]", "1" * 4000, "[" * 500 + "]" * 500])
def test_what_the_standard_library_takes(text: str) -> None:
    assert str(load(text.encode())) == str(json.loads(text))


def parsing(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def parse(parser: JsonParser, *texts: bytes) -> list[Any]:
    try:
        return await asyncio.gather(*(parser.parse(text, "values") for text in texts), return_exceptions=True)
    finally:
        parser.close()


def test_large_texts_are_read_by_another_process() -> None:
    text = json.dumps({"parameters": {"a": LARGE.tolist()}, "wrt": ["a"]}).encode()
    wrong = text[:-1]
    deep = b"[" * 200_000
    results = parsing(parse(JsonParser(), text, wrong, deep, b'{"small": [1, 2]}', text))
    for tree in (results[0], results[4]):
        np.testing.assert_array_equal(tree["parameters"]["a"], LARGE)
        assert tree["wrt"] == ["a"]
    assert isinstance(results[1], MalformedError)
    assert f"at byte {len(wrong)}" in str(results[1])
    assert "too deep" in str(results[2])
    assert results[3] == {"small": [1, 2]}


def test_a_process_that_ends_is_replaced() -> None:
    text = json.dumps(LARGE.tolist()).encode()

    async def run() -> list[Any]:
        parser = JsonParser()
        await parser.parse(text, "values")
        assert parser._process is not None
        parser._process._process.kill()
        parser._process._process.wait()
        return await parse_twice(parser)

    async def parse_twice(parser: JsonParser) -> list[Any]:
        first = (await asyncio.gather(parser.parse(text, "values"), return_exceptions=True))[0]
        return [first, *await parse(parser, text)]

    failed, again = parsing(run())
    assert getattr(failed, "status_code", None) == 503
    np.testing.assert_array_equal(again, LARGE)


def test_a_caller_who_leaves_does_not_mix_up_the_next() -> None:
    text = json.dumps(LARGE.tolist()).encode()

    async def run() -> Any:
        parser = JsonParser()
        leaving = asyncio.create_task(parser.parse(json.dumps(list(range(100_000))).encode(), "values"))
        await asyncio.sleep(0.01)
        leaving.cancel()
        (result,) = await parse(parser, text)
        return result

    np.testing.assert_array_equal(parsing(run()), LARGE)


DOCUMENT: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"a": {"shape": [20]}},
    "variables": {"x": {"shape": [20]}},
    "minimize": "sum_squares(x - a)",
    "subject_to": ["x >= 0"],
}


def test_large_bodies_mean_what_small_ones_do() -> None:
    client = AppClient(create_app(Settings()))
    try:
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
    finally:
        client.close()


def test_a_document_has_one_id_whatever_its_size() -> None:
    """Two texts of one document: one is read here, and one, with spaces, by the other process."""
    client = AppClient(create_app(Settings()))
    try:
        constants = {"c": np.arange(20.0).tolist(), "C": np.arange(400.0).reshape(20, 20).tolist()}
        document = DOCUMENT | {"constants": constants, "minimize": "sum_squares(x - a - c)"}
        headers = {"Content-Type": "application/json"}
        texts = [json.dumps(document), json.dumps(document) + " " * 2**18]
        ids = [client.request("POST", "/v1/problems", content=text, headers=headers).json()["id"] for text in texts]
        assert ids[0] == ids[1]
    finally:
        client.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_others_are_served_while_a_large_body_is_read() -> None:
    """For as long as it takes: the process that reads it is stopped meanwhile."""
    text = json.dumps({"parameters": {"a": np.random.default_rng(2).standard_normal((1000, 400)).tolist()}})
    app = create_app(Settings())

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        http = httpx.AsyncClient(transport=transport, base_url="http://server")
        async with app.router.lifespan_context(app), http as client:

            async def read() -> int:
                headers = {"Content-Type": "application/json"}
                path = "/v1/problems/p_unknown/solve"
                return (await client.post(path, content=text, headers=headers)).status_code

            assert await read() == 404  # which starts the process
            process = app.state.service.json._process._process
            process.send_signal(signal.SIGSTOP)
            reading = asyncio.create_task(read())
            try:
                for _ in range(20):
                    assert (await client.get("/healthz")).is_success
                assert not reading.done()
            finally:
                process.send_signal(signal.SIGCONT)
            assert await reading == 404

    parsing(run())
