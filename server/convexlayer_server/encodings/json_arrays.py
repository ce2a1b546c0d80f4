"""JSON, with lists of numbers as NumPy arrays.

Parsing 16 MiB of numbers takes 0.5 s (measured), during which it holds the interpreter lock. So large bodies are parsed
in another process (``http.parser_pool``). NumPy arrays return from there at once; single values would not.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from ..errors import MalformedError

__all__ = ["DTYPES", "MAX_ARRAYS", "numbers", "outer_shape", "pack", "parse_json", "parse_json_arrays"]

DTYPES = {"<f8": "<f8", "float64": "<f8", "<f4": "<f4", "float32": "<f4"}
"""NumPy names of the dtypes that the base64 form accepts, by its names."""

_MAX_DIMENSIONS = 8
"""Dimensions of a packed array at most: more than any request needs, and less than NumPy's limit."""

_MIN_PACKED = 8
"""Entries from which a list becomes an array: shorter lists return faster as they are."""

_MAX_UNPACKED = 2**16
"""Limit of values outside arrays: that many take 20 ms (measured) to return from another process."""

_ARRAY_COST = 10
"""Values that take as long to return from another process as one array."""

MAX_ARRAYS = _MAX_UNPACKED // _ARRAY_COST
"""Arrays of one body at most."""

_MAX_MESSAGE = 200
"""Characters of the JSON parser's message, which may quote a number of thousands of digits."""


def parse_json_arrays(text: bytes | bytearray) -> Any:
    """Parse JSON, with lists of numbers as arrays; see ``pack``.

    Raises:
        MalformedError: the text is not JSON, or holds too many values outside arrays.
    """
    return pack(parse_json(text))


def parse_json(text: bytes | bytearray | memoryview) -> Any:
    """Parse JSON.

    Raises:
        MalformedError: the text is not JSON.
    """
    data = bytes(text)
    try:
        return from_json(data, cache_strings="keys")
    except ValueError:  # the standard library, four times slower, accepts a little more and reports the position
        pass
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        position = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        raise MalformedError(f"invalid JSON at byte {position}: {error.msg}") from error
    except RecursionError as error:
        raise MalformedError("the body is nested too deep") from error
    except ValueError as error:  # another text encoding, or an integer of thousands of digits
        raise MalformedError(str(error)[:_MAX_MESSAGE]) from error


def outer_shape(value: Any) -> tuple[int, ...]:
    """Return the lengths along the first element of each level: the shape, unless the lists are ragged.

    The rows of packed ragged lists are arrays.
    """
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return (*shape, *value.shape) if isinstance(value, np.ndarray) else tuple(shape)


def numbers(value: Any, shape: tuple[int, ...]) -> list[int | float]:
    """Return the entries of nested lists of numbers, in order.

    Args:
        value: a number, or nested lists.
        shape: its ``outer_shape``.

    Raises:
        ValueError: the lists are ragged, or contain other types than numbers.
    """
    level: Sequence[Any] = [value]
    for axis, length in enumerate(shape):
        if not all(isinstance(item, list) and len(item) == length for item in level):
            raise ValueError(f"the lists are ragged: not all have {length} entries at depth {axis}")
        level = list(chain.from_iterable(level))
    kinds = set(map(type, level))
    if not kinds <= {int, float}:
        names = sorted("null" if kind is type(None) else kind.__name__ for kind in kinds - {int, float})
        raise ValueError(f"expected numbers, or lists of numbers of equal length; got {', '.join(names)}")
    return list(level)


def pack(value: Any) -> Any:
    """Replace lists of numbers (but for short ones) and base64 objects in a JSON value by NumPy arrays.

    What is not a valid array (ragged lists, invalid base64) stays, so that ``decode`` reports its error.

    Raises:
        MalformedError: the value holds too many values outside arrays.
    """
    try:
        return _pack(value, [_MAX_UNPACKED])
    except RecursionError as error:
        raise MalformedError("the body is nested too deep") from error


def _pack(value: Any, budget: list[int]) -> Any:
    if isinstance(value, list | dict):
        array = _from_list(value) if isinstance(value, list) else _from_base64(value)
        budget[0] -= len(value) if array is None else _ARRAY_COST
        if budget[0] < 0:
            raise MalformedError(
                f"the body holds more than {_MAX_UNPACKED} values outside arrays of numbers; each array counts as "
                f"{_ARRAY_COST} values, and ragged lists are not arrays"
            )
        if array is not None:
            return array
    if isinstance(value, list):
        return [_pack(item, budget) for item in value]
    return {name: _pack(item, budget) for name, item in value.items()} if isinstance(value, dict) else value


def _from_list(value: list[Any]) -> NDArray[np.float64] | None:
    shape = outer_shape(value)
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) < _MIN_PACKED:
        return None
    try:
        return np.array(numbers(value, shape), dtype=np.float64).reshape(shape)
    except (ValueError, OverflowError):
        return None


def _from_base64(value: dict[str, Any]) -> NDArray[Any] | None:
    """Return the array of a base64 object; None if it is none, or invalid."""
    if len(value) != 3 or not isinstance(value.get("b64"), str):
        return None
    shape, dtype = value.get("shape"), value.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(shape, list):
        return None
    if not all(type(length) is int and length >= 0 for length in shape) or len(shape) > _MAX_DIMENSIONS:
        return None
    try:
        data = base64.b64decode(value["b64"], validate=True)
        return np.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)
    except (binascii.Error, ValueError):
        return None
