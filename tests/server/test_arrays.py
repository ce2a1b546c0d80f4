from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from convexlayer_server.encodings.arrays import decode, decode_batch, encode
from convexlayer_server.errors import InvalidError
from convexlayer_server.settings import Settings

SETTINGS = Settings(max_array_size=100, max_batch=8)


def packed(array: np.ndarray, dtype: str = "<f8") -> dict[str, Any]:
    data = array.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    return {"dtype": dtype, "shape": list(array.shape), "b64": base64.b64encode(data).decode()}


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,)])
@pytest.mark.parametrize("encoding", ["list", "base64"])
def test_round_trip(shape: tuple[int, ...], encoding: Any) -> None:
    array = np.random.default_rng(0).standard_normal(shape)
    read = decode(encode(array, encoding), "/a", SETTINGS)
    assert read.shape == shape
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("dtype", ["<f8", "float64", "<f4", "float32"])
def test_dtypes(dtype: str) -> None:
    array = np.array([[0.5, -2.0], [1.0, 4.0]])
    read = decode(packed(array, dtype), "/a", SETTINGS)
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, array)


def test_nan_survives_in_base64() -> None:
    array = np.array([1.0, np.nan])
    np.testing.assert_array_equal(decode(encode(array, "base64"), "/a", SETTINGS, finite=False), array)


def test_a_batch_has_one_more_axis() -> None:
    array, batched = decode_batch([[1, 2], [3, 4], [5, 6]], (2,), "/a", SETTINGS)
    assert batched
    assert array.shape == (3, 2)
    array, batched = decode_batch([1, 2], (2,), "/a", SETTINGS)
    assert not batched
    array, batched = decode_batch([1], (), "/a", SETTINGS)
    assert batched


TWO = packed(np.zeros(2))


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        ([1, 2, 3], (2,), "expected shape [2], or [batch, 2] for a batch; got [3]"),
        ([[1, 2, 3]], (2,), "got [1, 3]"),
        (1.0, (2,), "got []"),
        ([[[1, 2]]], (2,), "got [1, 1, 2]"),
        ([], (), "a batch has 1 to 8 elements, got 0"),
        ([1.0] * 9, (), "a batch has 1 to 8 elements, got 9"),
        ([[1, 2], [3]], (2,), "ragged"),
        ([[1, 2], 3], (2,), "ragged"),
        ([1, [2]], (2,), "got list"),
        ([1, None], (2,), "got null"),
        ([1, True], (2,), "got bool"),
        (["1", "2"], (2,), "got str"),
        ("12", (), "got str"),
        (None, (), "got null"),
        ([1, 10**400], (2,), "too large for double precision"),
        ([1, float("nan")], (2,), "not finite, nan at [1]"),
        ([float("inf"), 1], (2,), "not finite, inf at [0]"),
        (packed(np.array([1.0, np.nan])), (2,), "not finite, nan at [1]"),
        (packed(np.zeros(3)), (2,), "got [3]"),
        ({}, (2,), "has the fields dtype, shape and b64"),
        (TWO | {"more": 1}, (2,), "has the fields dtype, shape and b64"),
        ({"k" * 1000: 1}, (2,), "kkk..."),
        (TWO | {"shape": [1] * 1000}, (2,), "1, 1..."),
        (TWO | {"dtype": "<i8"}, (2,), "expected one of"),
        (TWO | {"dtype": ["<f8"]}, (2,), "expected one of"),
        (TWO | {"dtype": "object"}, (2,), "expected one of"),
        (TWO | {"shape": [2.0]}, (2,), "expected a list of non-negative integers"),
        (TWO | {"shape": [True, 2]}, (2,), "expected a list of non-negative integers"),
        (TWO | {"shape": "2"}, (2,), "expected a list of non-negative integers"),
        (TWO | {"b64": 3}, (2,), "expected a string"),
        (TWO | {"b64": "AAAA"}, (2,), "takes 16 bytes in base64, got 4 characters"),
        (TWO | {"b64": "!" * 24}, (2,), "is not base64"),
        (TWO | {"b64": "A" * 24}, (2,), "expected 16 bytes, got 18"),
        (TWO | {"b64": "é" * 24}, (2,), "is not base64"),
    ],
)
def test_refusals(value: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidError) as error:
        decode_batch(value, shape, "/parameters/a", SETTINGS)
    (field,) = error.value.errors
    assert field.pointer.startswith("/parameters/a")
    assert message in field.detail


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"dtype": "<f8", "shape": [10**9, 10**9], "b64": ""}, "the limit is 100"),
        ([[0.0] * 11] * 10, "has 110 entries; the limit is 100"),
        ([[[[[[1.0]]]]]], "has 6 dimensions; the limit is 5"),
    ],
)
def test_sizes_are_checked_first(value: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        decode(value, "/a", SETTINGS)
