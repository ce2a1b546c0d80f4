"""JSON whose lists of numbers are arrays.

Reading 16 MiB of numbers takes half a second during which no other thread of the process runs, so it happens in another
process (``readers``); arrays come back from there at once, values one by one do not.
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

__all__ = ["DTYPES", "MAX_ARRAYS", "load", "numbers", "outer_shape", "pack", "packed"]

DTYPES = {"<f8": "<f8", "float64": "<f8", "<f4": "<f4", "float32": "<f4"}
"""Names of what base64 may hold, and NumPy's."""

_MAX_DIMENSIONS = 8
_LEAST_PACKED = 8
_MAX_UNPACKED = 2**16
"""Values and arrays that come back from another process, which takes 20 ms: enough for 6,000 arrays, or lists shorter
than an array is."""

_ARRAY_COST = 10
"""An array takes as long to come back as so many values."""

MAX_ARRAYS = _MAX_UNPACKED // _ARRAY_COST
"""Arrays of one body."""


def packed(text: bytes | bytearray) -> Any:
    """The value of a JSON text, as ``pack`` makes it.

    Raises:
        MalformedError: the text is not JSON, or holds too much beside arrays.
    """
    return pack(load(text))


def load(text: bytes | bytearray | memoryview) -> Any:
    """The value of a JSON text.

    Raises:
        MalformedError: the text is not JSON.
    """
    data = bytes(text)
    try:
        return from_json(data, cache_strings="keys")
    except ValueError:  # the standard library, four times slower, takes a little more and says where it stopped
        pass
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise MalformedError(f"at byte {error.pos}: {error.msg}") from error
    except RecursionError as error:
        raise MalformedError("it is nested too deep") from error
    except ValueError as error:  # of another encoding, or an integer of thousands of digits
        raise MalformedError(str(error)[:200]) from error


def outer_shape(value: Any) -> tuple[int, ...]:
    """Lengths along the first element of each level: the shape, unless the lists are ragged.

    Of ragged lists that were packed, rows are arrays.
    """
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return (*shape, *value.shape) if isinstance(value, np.ndarray) else tuple(shape)


def numbers(value: Any, shape: tuple[int, ...]) -> list[int | float]:
    """The entries of nested lists of numbers, in order.

    Args:
        value: a number, or nested lists.
        shape: their ``outer_shape``.

    Raises:
        ValueError: the lists are ragged, or hold other things than numbers.
    """
    level: Sequence[Any] = [value]
    for axis, length in enumerate(shape):
        if not all(isinstance(item, list) and len(item) == length for item in level):
            raise ValueError(f"the lists are ragged: not all have {length} entries at depth {axis}")
        level = list(chain.from_iterable(level))
    kinds = set(map(type, level))
    if not kinds <= {int, float}:
        names = sorted("null" if kind is type(None) else kind.__name__ for kind in kinds - {int, float})
        raise ValueError(f"expected numbers, or lists of them of one shape; got {', '.join(names)}")
    return list(level)


def pack(value: Any) -> Any:
    """A JSON value with its lists of numbers, but for short ones, and what is in base64 as NumPy's arrays of doubles.

    What would be no array for a reader of arrays (ragged lists, wrong base64) stays as it is, for it to refuse.

    Raises:
        MalformedError: there are more values beside arrays than a request has any use for.
    """
    try:
        return _pack(value, [_MAX_UNPACKED])
    except RecursionError as error:
        raise MalformedError("it is nested too deep") from error


def _pack(value: Any, room: list[int]) -> Any:
    if isinstance(value, list | dict):
        array = _array(value) if isinstance(value, list) else _decoded(value)
        room[0] -= len(value) if array is None else _ARRAY_COST
        if room[0] < 0:
            raise MalformedError(
                f"it holds more than {_MAX_UNPACKED} values beside arrays of numbers, of which each counts as "
                f"{_ARRAY_COST} (ragged lists are not arrays)"
            )
        if array is not None:
            return array
    if isinstance(value, list):
        return [_pack(item, room) for item in value]
    return {name: _pack(item, room) for name, item in value.items()} if isinstance(value, dict) else value


def _array(value: list[Any]) -> NDArray[np.float64] | None:
    shape = outer_shape(value)
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) < _LEAST_PACKED:
        return None
    try:
        return np.array(numbers(value, shape), dtype=np.float64).reshape(shape)
    except (ValueError, OverflowError):
        return None


def _decoded(value: dict[str, Any]) -> NDArray[Any] | None:
    """The array of a base64 object; None where it is none, or something is wrong with it."""
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
