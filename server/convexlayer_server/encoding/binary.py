"""Bodies in the form of safetensors: the arrays as they are, everything else as JSON in the metadata.

    8 bytes    N, little-endian
    N bytes    JSON: {"__metadata__": {"body": "{...}"}, "parameters/A": {"dtype", "shape", "data_offsets"}, ...}
    the rest   the arrays, little-endian, one after another, without a gap

The array ``parameters/A`` is what a JSON body has at ``body["parameters"]["A"]``, and ``objective`` what it has at
``body["objective"]``; ``body`` in the metadata holds what is no array. The safetensors library reads and writes such
bodies; but of bytes in memory it gives no metadata, and it copies every array. So the header is read and checked here,
and arrays are views of the body.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import MalformedError
from .packing import MAX_ARRAYS, load, pack

__all__ = ["MEDIA_TYPE", "Header", "header", "placed", "read", "split", "write"]

MEDIA_TYPE = "application/vnd.convexlayer+safetensors"

_MAX_HEADER_BYTES = 2**20
_DTYPES = {"F64": "<f8", "F32": "<f4"}
_METADATA = "__metadata__"


class _Tensor(NamedTuple):
    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """What the header of a body says.

    Attributes:
        fields: what is no array.
        tensors: where the arrays are, in order.
        start: where their bytes begin in the body.
    """

    fields: dict[str, Any]
    tensors: list[_Tensor]
    start: int


def read(body: bytes | bytearray) -> dict[str, Any]:
    """The body as a dictionary, whose arrays are views of it.

    Raises:
        MalformedError: it is none; the three steps below say when.
    """
    text, size = split(body)
    return placed(body, header(text, size))


def split(body: bytes | bytearray) -> tuple[memoryview, int]:
    """The text of the header, and the number of bytes that follow it.

    Raises:
        MalformedError: the body is cut off, or its header is unreasonable.
    """
    length = int.from_bytes(body[:8], "little")
    if len(body) < 8 or length > len(body) - 8:
        raise MalformedError(f"it is cut off: {len(body)} bytes, {8 + length} of them are said to be header")
    if length > _MAX_HEADER_BYTES:
        raise MalformedError(f"its header has {length} bytes, at most {_MAX_HEADER_BYTES} are read")
    return memoryview(body)[8 : 8 + length], len(body) - 8 - length


def header(text: bytes | bytearray | memoryview, size: int) -> Header:
    """Read a header.

    Args:
        text: the header.
        size: bytes that follow it.

    Raises:
        MalformedError: it is not JSON of its form, or has arrays that overlap, leave gaps, or do not have the size of
            their shape.
    """
    described = load(text)
    if not isinstance(described, dict):
        raise MalformedError("its header is not an object")
    if len(described) > MAX_ARRAYS:
        raise MalformedError(f"its header has {len(described)} entries, at most {MAX_ARRAYS} are read")
    fields = _fields(described.pop(_METADATA, {}))
    return Header(fields, _tensors(described, size), 8 + len(text))


def placed(body: bytes | bytearray, header: Header) -> dict[str, Any]:
    """The body as a dictionary, whose arrays are views of it.

    Raises:
        MalformedError: two things have one place.
    """
    tree = header.fields
    for tensor in header.tensors:
        array = np.frombuffer(body, tensor.dtype, math.prod(tensor.shape), header.start + tensor.begin)
        _place(tree, tensor.name, array.reshape(tensor.shape))
    return tree


def write(tree: Mapping[str, Any]) -> list[memoryview]:
    """A dictionary, with arrays as values or one level deeper, as the pieces of a body; arrays are not copied."""
    header: dict[str, Any] = {}
    arrays: list[NDArray[np.float64]] = []
    fields: dict[str, Any] = {}
    end = 0
    for name, array, place in _places(tree):
        if array is None:
            fields |= place
            continue
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "F64", "shape": list(array.shape), "data_offsets": [begin, end]}
        arrays.append(array)
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    text = json.dumps({_METADATA: {"body": body}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that arrays are aligned wherever the body is
    pieces = [memoryview(len(text).to_bytes(8, "little") + text)]
    return pieces + [array.reshape(-1).view(np.uint8).data for array in arrays if array.size]


def _places(tree: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float64] | None, dict[str, Any]]]:
    """Every array with its name; and what is none, as the dictionary that it makes."""
    for part, value in tree.items():
        if isinstance(value, np.ndarray):
            yield part, np.asarray(value, dtype="<f8", order="C"), {}
        elif isinstance(value, Mapping):
            arrays = {name: entry for name, entry in value.items() if isinstance(entry, np.ndarray)}
            for name, entry in arrays.items():
                yield f"{part}/{name}", np.asarray(entry, dtype="<f8", order="C"), {}
            if len(arrays) < len(value) or not value:
                yield part, None, {part: {name: entry for name, entry in value.items() if name not in arrays}}
        else:
            yield part, None, {part: value}


def _fields(metadata: Any) -> dict[str, Any]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError(f"{_METADATA} of its header is not an object of strings")
    fields = pack(load(metadata.get("body", "{}").encode("utf-8", "surrogatepass")))
    if not isinstance(fields, dict):
        raise MalformedError(f"body in {_METADATA} of its header is not the text of an object")
    return fields


def _tensors(header: Mapping[str, Any], size: int) -> list[_Tensor]:
    """The arrays of a header in the order of their bytes, which they fill."""
    tensors = sorted(_tensor(name, entry) for name, entry in header.items())
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            raise MalformedError(f"array {tensor.name[:80]!r} begins at byte {tensor.begin}, not where the last ended")
        end = tensor.end
    if end != size:
        raise MalformedError(f"its arrays take {end} bytes, but {size} follow the header")
    return tensors


def _tensor(name: str, entry: Any) -> _Tensor:
    where = f"array {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise MalformedError(f"{where}: expected the fields dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise MalformedError(f"{where}: the dtypes that are read are {', '.join(_DTYPES)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise MalformedError(f"{where}: shape and the two data_offsets are non-negative integers")
    size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if len(shape) > 32 or offsets[1] - offsets[0] != size:
        raise MalformedError(f"{where}: its shape does not take the bytes from {offsets[0]} to {offsets[1]}")
    return _Tensor(offsets[0], offsets[1], name, _DTYPES[dtype], tuple(shape))


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(count) is int and 0 <= count < 2**31 for count in value)


def _place(tree: dict[str, Any], name: str, array: NDArray[Any]) -> None:
    part, deeper, leaf = name.partition("/")
    inside = tree.setdefault(part, {}) if deeper else tree
    key = leaf if deeper else part
    if not isinstance(inside, dict) or key in inside:
        raise MalformedError(f"array {name[:80]!r} stands where there is something already")
    inside[key] = array
