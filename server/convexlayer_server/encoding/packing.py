"""JSON whose large lists of numbers are arrays; and, run as a script, the process that makes it of large bodies.

Reading 16 MiB of numbers takes half a second during which no other thread of the process runs, so it happens in a
process of its own (``parser`` starts it). This file imports nothing of its package: the process then starts in a moment
and takes little memory.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import pickle
import socket
import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

__all__ = ["DTYPES", "PREFIX_BYTES", "MalformedError", "Mode", "load", "numbers", "outer_shape", "pack", "serve"]

Mode = Literal["values", "exact"]
"""What becomes of a list of numbers: an array of doubles; or, ``exact``, an array only where all are integers or all
are not, so that the array's ``tolist()`` is the list again."""

DTYPES = {"<f8": "<f8", "float64": "<f8", "<f4": "<f4", "float32": "<f4"}
"""Names of what base64 may hold, and NumPy's."""

PREFIX_BYTES = 8
"""Length of a message between the processes, little-endian, before the message itself."""

_MAX_DIMENSIONS = 8
_LEAST_PACKED = 64
_MAX_UNPACKED = 200_000
_MAX_MEMORY_BYTES = 2 * 2**30


class MalformedError(ValueError):
    """A body that is not JSON; or, in mode ``values``, holds too much beside arrays of numbers."""


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


def pack(value: Any, mode: Mode) -> Any:
    """A JSON value with its large arrays as NumPy's; in mode ``values`` those in base64, too.

    What would be no array for a reader of arrays (ragged lists, wrong base64) stays as it is, for it to refuse.

    Raises:
        MalformedError: in mode ``values``, there are more values beside arrays than a request has any use for.
    """
    try:
        return _pack(value, mode, [_MAX_UNPACKED])
    except RecursionError as error:
        raise MalformedError("it is nested too deep") from error


def _pack(value: Any, mode: Mode, room: list[int]) -> Any:
    if isinstance(value, list):
        array = _array(value, mode)
        if array is not None:
            return array
    elif isinstance(value, dict):
        if mode == "values" and len(value) == 3 and isinstance(value.get("b64"), str):
            return _decoded(value)
    else:
        return value
    room[0] -= len(value)
    if mode == "values" and room[0] < 0:
        raise MalformedError(
            f"it holds more than {_MAX_UNPACKED} values beside arrays of numbers (ragged lists are not arrays)"
        )
    if isinstance(value, list):
        return [_pack(item, mode, room) for item in value]
    return {name: _pack(item, mode, room) for name, item in value.items()}


def _array(value: list[Any], mode: Mode) -> NDArray[Any] | None:
    shape = outer_shape(value)
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) < _LEAST_PACKED:
        return None
    try:
        entries = numbers(value, shape)
        kinds = set(map(type, entries))
        if mode == "exact" and len(kinds) > 1:
            return None
        return np.array(entries, dtype=np.int64 if mode == "exact" and kinds == {int} else np.float64).reshape(shape)
    except (ValueError, OverflowError):
        return None


def _decoded(value: dict[str, Any]) -> Any:
    """The array of a base64 object, or the object where something is wrong with it."""
    shape, dtype = value.get("shape"), value.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(shape, list):
        return value
    if not all(type(length) is int and length >= 0 for length in shape) or len(shape) > _MAX_DIMENSIONS:
        return value
    try:
        data = base64.b64decode(value["b64"], validate=True)
        return np.frombuffer(data, dtype=DTYPES[dtype]).reshape(shape)
    except (binascii.Error, ValueError):
        return value


def serve(connection: socket.socket) -> None:
    """Answer requests until the other side closes: a mode's first letter and a JSON text, then the pickled outcome.

    The outcome is ``("packed", value)`` or ``("malformed", detail)``.
    """
    while (prefix := _received(connection, PREFIX_BYTES)) is not None:
        message = _received(connection, int.from_bytes(prefix, "little"))
        if message is None:
            return
        outcome = pickle.dumps(_outcome(message), protocol=pickle.HIGHEST_PROTOCOL)
        del message
        connection.sendall(len(outcome).to_bytes(PREFIX_BYTES, "little"))
        connection.sendall(outcome)


def _outcome(message: bytearray) -> tuple[str, Any]:
    try:
        return "packed", pack(load(memoryview(message)[1:]), "exact" if message[:1] == b"e" else "values")
    except MalformedError as error:
        return "malformed", str(error)
    except MemoryError:
        return "malformed", "reading it takes more memory than this server gives"


def _received(connection: socket.socket, size: int) -> bytearray | None:
    message = bytearray(size)
    view = memoryview(message)
    while view:
        count = connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return message


def _limit_memory() -> None:
    """Let a text that becomes gigabytes of empty lists fail here, not the machine."""
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))


if __name__ == "__main__":
    _limit_memory()
    serve(socket.socket(fileno=0))
