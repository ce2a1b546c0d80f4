"""Arrays on the wire: nested JSON lists, or ``{"dtype", "shape", "b64"}`` with little-endian bytes.

Every size is compared with what is expected before anything of that size is allocated. Only double and single
precision are read; what is sent is double precision always.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidError, brief
from .settings import Settings

__all__ = ["Array", "Encoding", "decode", "decode_batch", "encode"]

Array = NDArray[np.float64]
Encoding = Literal["list", "base64"]

_DTYPES = {"<f8": "<f8", "float64": "<f8", "<f4": "<f4", "float32": "<f4"}
_FIELDS = {"dtype", "shape", "b64"}


def encode(array: Array, encoding: Encoding) -> Any:
    """An array for a JSON answer; NaN stays NaN (the JSON writer turns it into null in lists, bytes keep it)."""
    if encoding == "list":
        return array.tolist()
    data = np.ascontiguousarray(array, dtype="<f8").tobytes()
    return {"dtype": "<f8", "shape": list(array.shape), "b64": base64.b64encode(data).decode("ascii")}


def decode(value: Any, where: str, settings: Settings, *, finite: bool = True) -> Array:
    """Read an array of any shape.

    Args:
        value: a number, nested lists of numbers, or the base64 form.
        where: JSON pointer of the value, for errors.
        settings: ``max_dimensions`` (one more for a batch) and ``max_array_size`` bound what is read.
        finite: refuse NaN and infinity.

    Raises:
        InvalidError: the value is no array, is ragged, holds other things than numbers, or is too large.
    """
    array = _from_bytes(value, where, settings) if isinstance(value, dict) else _from_lists(value, where, settings)
    if finite and not np.isfinite(array).all():
        position = tuple(int(axis) for axis in np.argwhere(~np.isfinite(array))[0])
        raise InvalidError.at(where, f"holds a value that is not finite, {array[position]} at {list(position)}")
    return array


def decode_batch(
    value: Any, shape: tuple[int, ...], where: str, settings: Settings, *, finite: bool = True
) -> tuple[Array, bool]:
    """Read an array of a known shape, or a batch of them.

    Args:
        value: as for ``decode``.
        shape: shape of one element.
        where: JSON pointer of the value, for errors.
        settings: ``max_batch`` and ``max_array_size`` bound what is read.
        finite: refuse NaN and infinity.

    Returns:
        the array, of shape ``shape`` or (batch, *shape), and whether it is a batch.

    Raises:
        InvalidError: as for ``decode``, or the shape is neither of the two.
    """
    given = _declared_shape(value, where) if isinstance(value, dict) else _outer_shape(value)
    batched = len(given) == len(shape) + 1
    if given[batched:] != shape or len(given) > len(shape) + 1:
        raise InvalidError.at(
            where,
            f"expected shape {list(shape)}, or [batch, {str(list(shape))[1:]} for a batch; got {brief(list(given))}",
        )
    if batched and not 0 < given[0] <= settings.max_batch:
        raise InvalidError.at(where, f"a batch has 1 to {settings.max_batch} elements, got {given[0]}")
    return decode(value, where, settings, finite=finite), batched


def _from_bytes(value: dict[str, Any], where: str, settings: Settings) -> Array:
    shape = _declared_shape(value, where)
    size = _checked_size(shape, where, settings)
    dtype = np.dtype(_DTYPES[value["dtype"]])
    text = value["b64"]
    expected = size * dtype.itemsize
    if len(text) != 4 * ((expected + 2) // 3):
        raise InvalidError.at(
            where,
            f"shape {brief(list(shape))} of {dtype.name} takes {expected} bytes in base64, got {len(text)} characters",
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
        raise InvalidError.at(where, f"an array object has the fields dtype, shape and b64, got {brief(sorted(value))}")
    if not isinstance(value["dtype"], str) or value["dtype"] not in _DTYPES:
        raise InvalidError.at(f"{where}/dtype", f"expected one of {sorted(_DTYPES)}")
    if not isinstance(value["b64"], str):
        raise InvalidError.at(f"{where}/b64", "expected a string")
    shape = value["shape"]
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise InvalidError.at(f"{where}/shape", "expected a list of non-negative integers")
    return tuple(shape)


def _outer_shape(value: Any) -> tuple[int, ...]:
    """Lengths along the first element of each level: the shape, unless the lists are ragged."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _from_lists(value: Any, where: str, settings: Settings) -> Array:
    shape = _outer_shape(value)
    _checked_size(shape, where, settings)
    level: Sequence[Any] = [value]
    for axis, length in enumerate(shape):
        if not all(isinstance(item, list) and len(item) == length for item in level):
            raise InvalidError.at(where, f"the lists are ragged: not all have {length} entries at depth {axis}")
        level = list(chain.from_iterable(level))
    kinds = set(map(type, level))
    if not kinds <= {int, float}:
        names = sorted("null" if kind is type(None) else kind.__name__ for kind in kinds - {int, float})
        raise InvalidError.at(where, f"expected numbers, or lists of them of one shape; got {', '.join(names)}")
    try:
        return np.array(level, dtype=np.float64).reshape(shape)
    except OverflowError as error:
        raise InvalidError.at(where, "holds an integer too large for double precision") from error


def _checked_size(shape: tuple[int, ...], where: str, settings: Settings) -> int:
    if len(shape) > settings.max_dimensions + 1:
        raise InvalidError.at(where, f"has {len(shape)} dimensions, at most {settings.max_dimensions + 1} are read")
    size = math.prod(shape)
    if size > settings.max_array_size:
        raise InvalidError.at(where, f"has {size} entries, at most {settings.max_array_size} are read")
    return size
