"""Responses sent in parts equal those serialised at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from convexlayer_server.encodings.arrays import decode, encode
from convexlayer_server.encodings.safetensors import MEDIA_TYPE, read
from convexlayer_server.http.responses import ArrayResponse
from convexlayer_server.settings import Settings

SHAPES = [(), (3,), (0, 3), (2, 0), (100_000,), (3, 20_000), (40_000, 2), (2, 3, 7_000)]


def sent(answer: ArrayResponse, accept: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(answer), base_url="http://server") as client:
            return await client.get("/", headers={"Accept": accept})

    return asyncio.run(ask())


def tree(shape: tuple[int, ...]) -> dict[str, Any]:
    array = np.random.default_rng(0).standard_normal(shape)
    array.flat[:1] = np.nan
    return {"variables": {"x": array, 'quoted "name"': array}, "objective": array, "status": ["optimal"], "duals": {}}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("encoding", ["list", "base64"])
def test_json(shape: tuple[int, ...], encoding: Any) -> None:
    given = tree(shape)
    answer = ArrayResponse(given, encoding)
    for _ in range(2):  # the result of a job may be requested repeatedly
        found = json.loads(sent(answer, "application/json").content)
        assert found["status"] == ["optimal"]
        assert found["duals"] == {}
        assert found["objective"] == json.loads(json.dumps(encode(given["objective"], "list")).replace("NaN", "null"))
        for name, array in given["variables"].items():
            if encoding == "base64":
                read_back = decode(found["variables"][name], "", Settings(max_array_size=10**6), finite=False)
                np.testing.assert_array_equal(read_back, array)
                assert found["variables"][name] == encode(array, "base64")
            else:
                assert found["variables"][name] == found["objective"]


@pytest.mark.parametrize("shape", SHAPES)
def test_safetensors(shape: tuple[int, ...]) -> None:
    given = tree(shape)
    response = sent(ArrayResponse(given, "list"), MEDIA_TYPE)
    assert int(response.headers["Content-Length"]) == len(response.content)
    found = read(response.content)
    assert found["duals"] == {}
    np.testing.assert_array_equal(found["objective"], given["objective"])
    np.testing.assert_array_equal(found["variables"]["x"], given["variables"]["x"])
