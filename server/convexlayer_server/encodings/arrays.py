"""Arrays in JSON: nested lists, or ``{"dtype", "shape", "b64"}`` with little-endian bytes.

Arrays of binary bodies, and of large JSON bodies, arrive here as NumPy arrays already. Every size is checked against
the expected shape and the limits before memory of that size is allocated. Input may be double or single precision;
output is double precision.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidError, abbreviate
from ..settings import Settings
from .json_arrays import DTYPES, numbers, outer_shape

__all__ = ["Array", "Encoding", "decode", "decode_batch", "encode"]

Array = NDArray[np.float64]
Encoding = Literal["list", "base64"]

_FIELDS = {"dtype", "shape", "b64"}


def encode(array: Array, encoding: Encoding) -> Any:
    """Encode an array for JSON. NaN stays NaN; the JSON writer turns it into null in lists."""
    if encoding == "list":
        return array.tolist()
    data = np.ascontiguousarray(array, dtype="<f8").tobytes()
    return {"dtype": "<f8", "shape": list(array.shape), "b64": base64.b64encode(data).decode("ascii")}


def decode(value: Any, where: str, settings: Settings, *, finite: bool = True) -> Array:
    """Decode an array of any shape.

    Args:
        value: a number, nested lists of numbers, the base64 form, or an array.
        where: JSON pointer of the value, for errors.
        settings: ``max_dimensions`` (plus one for a batch) and ``max_array_size`` limit the array.
        finite: whether to reject NaN and infinity.

    Raises:
        InvalidError: the value is not an array, is ragged, contains other types than numbers, or is too large.
    """
    match value:
        case np.ndarray():
            _check_size(value.shape, where, settings)
            array = np.require(value, np.float64, ["C", "ALIGNED"])  # a view of the body if possible
        case dict():
            array = _from_base64(value, where, settings)
        case _:
            array = _from_lists(value, where, settings)
    if finite and not np.isfinite(array).all():
        position = tuple(int(axis) for axis in np.argwhere(~np.isfinite(array))[0])
        raise InvalidError.at(where, f"contains a value that is not finite, {array[position]} at {list(position)}")
    return array


def decode_batch(
    value: Any,
    shape: tuple[int, ...],
    where: str,
    settings: Settings,
    *,
    finite: bool = True,
    elements_may_fail: bool = False,
) -> tuple[Array, bool]:
    """Decode an array of a known shape, or a batch of them.

    Args:
        value: see ``decode``.
        shape: shape of one element.
        where: JSON pointer of the value, for errors.
        settings: ``max_batch`` and ``max_array_size`` limit the array.
        finite: whether to reject NaN and infinity.
        elements_may_fail: accept them in a batch, where they fail single elements.

    Returns:
        The array, of shape ``shape`` or (batch, *shape), and whether it is a batch.

    Raises:
        InvalidError: see ``decode``; or the shape is neither of the two.
    """
    given = _shape(value, where)
    batched = len(given) == len(shape) + 1
    if given[batched:] != shape or len(given) > len(shape) + 1:
        raise InvalidError.at(
            where,
            f"expected shape {list(shape)}, or [batch, {str(list(shape))[1:]} for a batch; "
            f"got {abbreviate(list(given))}",
        )
    if batched and not 0 < given[0] <= settings.max_batch:
        raise InvalidError.at(where, f"a batch has 1 to {settings.max_batch} elements, got {given[0]}")
    return decode(value, where, settings, finite=finite and not (batched and elements_may_fail)), batched


def _from_base64(value: dict[str, Any], where: str, settings: Settings) -> Array:
    shape = _declared_shape(value, where)
    size = _check_size(shape, where, settings)
    dtype = np.dtype(DTYPES[value["dtype"]])
    text = value["b64"]
    expected = size * dtype.itemsize
    if len(text) != 4 * ((expected + 2) // 3):
        raise InvalidError.at(
            where,
            f"shape {abbreviate(list(shape))} of {dtype.name} takes {expected} bytes in base64, "
            f"got {len(text)} characters",
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidError.at(f"{where}/b64", f"is not base64: {error}") from error
    if len(data) != expected:
        raise InvalidError.at(where, f"expected {expected} bytes, got {len(data)}")
    return np.frombuffer(data, dtype=dtype).reshape(shape).astype(np.float64)


def _declared_shape(value: dict[str, Any], where: str) -> tuple[int, ...]:
    if set(value) != _FIELDS:
        fields = abbreviate(sorted(value))
        raise InvalidError.at(where, f"an array object has the fields dtype, shape and b64, got {fields}")
    if not isinstance(value["dtype"], str) or value["dtype"] not in DTYPES:
        raise InvalidError.at(f"{where}/dtype", f"expected one of {sorted(DTYPES)}")
    if not isinstance(value["b64"], str):
        raise InvalidError.at(f"{where}/b64", "expected a string")
    shape = value["shape"]
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise InvalidError.at(f"{where}/shape", "expected a list of non-negative integers")
    return tuple(shape)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, np.ndarray):
        return value.shape
    return _declared_shape(value, where) if isinstance(value, dict) else outer_shape(value)


def _from_lists(value: Any, where: str, settings: Settings) -> Array:
    shape = outer_shape(value)
    _check_size(shape, where, settings)
    try:
        return np.array(numbers(value, shape), dtype=np.float64).reshape(shape)
    except OverflowError as error:
        raise InvalidError.at(where, "contains an integer too large for double precision") from error
    except ValueError as error:
        raise InvalidError.at(where, str(error)) from error


def _check_size(shape: tuple[int, ...], where: str, settings: Settings) -> int:
    """Check the dimensions and entries of a shape; return its number of entries."""
    if len(shape) > settings.max_dimensions + 1:
        raise InvalidError.at(where, f"has {len(shape)} dimensions; the limit is {settings.max_dimensions + 1}")
    size = math.prod(shape)
    if size > settings.max_array_size:
        raise InvalidError.at(where, f"has {size} entries; the limit is {settings.max_array_size}")
    return size
