"""Bodies as safetensors: arrays in binary, everything else as JSON in the metadata.

    8 bytes    N, little-endian
    N bytes    JSON: {"__metadata__": {"body": "{...}"}, "parameters/A": {"dtype", "shape", "data_offsets"}, ...}
    the rest   the arrays, little-endian, one after another without gaps

The array ``parameters/A`` corresponds to ``body["parameters"]["A"]`` of a JSON body, and ``objective`` to
``body["objective"]``; ``body`` in the metadata holds the rest. The safetensors library can read and write this format,
but for bytes in memory it returns no metadata, and it copies every array. So the header is parsed and checked here, and
arrays are views of the body.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import MAX_QUOTED, MalformedError
from .json_arrays import MAX_ARRAYS, pack, parse_json

__all__ = ["MEDIA_TYPE", "Header", "assemble", "parse_header", "read", "split_header", "write"]

MEDIA_TYPE = "application/vnd.convexlayer+safetensors"

_LENGTH_BYTES = 8
"""Bytes of the header's length, by the format."""

_MAX_HEADER_BYTES = 2**20
"""Bytes of a header at most: enough for ``MAX_ARRAYS`` arrays."""

_MAX_DIMENSIONS = 32
"""Dimensions of an array at most, NumPy's limit before version 2."""

_DTYPES = {"F64": "<f8", "F32": "<f4"}
_METADATA = "__metadata__"


class _Tensor(NamedTuple):
    begin: int
    end: int
    name: str
    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """A parsed header.

    Attributes:
        fields: the JSON of the metadata.
        tensors: the arrays, in the order of their bytes.
        start: position of their first byte in the body.
    """

    fields: dict[str, Any]
    tensors: list[_Tensor]
    start: int


def read(body: bytes | bytearray) -> dict[str, Any]:
    """Parse a body; its arrays are views.

    Raises:
        MalformedError: see the three functions below.
    """
    text, size = split_header(body)
    return assemble(body, parse_header(text, size))


def split_header(body: bytes | bytearray) -> tuple[memoryview, int]:
    """Return the text of the header, and the number of bytes after it.

    Raises:
        MalformedError: the body is truncated, or its header is too large.
    """
    length = int.from_bytes(body[:_LENGTH_BYTES], "little")
    if len(body) < _LENGTH_BYTES or length > len(body) - _LENGTH_BYTES:
        raise MalformedError(f"the body is truncated: it has {len(body)} bytes, its header {_LENGTH_BYTES + length}")
    if length > _MAX_HEADER_BYTES:
        raise MalformedError(f"the header has {length} bytes; the limit is {_MAX_HEADER_BYTES}")
    return memoryview(body)[_LENGTH_BYTES : _LENGTH_BYTES + length], len(body) - _LENGTH_BYTES - length


def parse_header(text: bytes | bytearray | memoryview, size: int) -> Header:
    """Parse a header.

    Args:
        text: text of the header.
        size: number of bytes after it.

    Raises:
        MalformedError: the header is not JSON of its form, or its arrays overlap, leave gaps, or have another size than
            their shape.
    """
    entries = parse_json(text)
    if not isinstance(entries, dict):
        raise MalformedError("the header is not an object")
    if len(entries) > MAX_ARRAYS:
        raise MalformedError(f"the header has {len(entries)} entries; the limit is {MAX_ARRAYS}")
    fields = _fields(entries.pop(_METADATA, {}))
    return Header(fields, _tensors(entries, size), _LENGTH_BYTES + len(text))


def assemble(body: bytes | bytearray, header: Header) -> dict[str, Any]:
    """Return the body as a dictionary, whose arrays are views of it.

    Raises:
        MalformedError: two values have the same name.
    """
    tree = header.fields
    for tensor in header.tensors:
        array = np.frombuffer(body, tensor.dtype, math.prod(tensor.shape), header.start + tensor.begin)
        _insert(tree, tensor.name, array.reshape(tensor.shape))
    return tree


def write(tree: Mapping[str, Any]) -> list[memoryview]:
    """Serialise a dictionary with arrays as values or one level deeper, in parts; arrays are not copied."""
    header: dict[str, Any] = {}
    arrays: list[NDArray[np.float64]] = []
    fields: dict[str, Any] = {}
    end = 0
    for name, array, rest in _flatten(tree):
        if array is None:
            fields |= rest
            continue
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "F64", "shape": list(array.shape), "data_offsets": [begin, end]}
        arrays.append(array)
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False)
    text = json.dumps({_METADATA: {"body": body}, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # aligns the arrays to doubles
    parts = [memoryview(len(text).to_bytes(_LENGTH_BYTES, "little") + text)]
    return parts + [array.reshape(-1).view(np.uint8).data for array in arrays if array.size]


def _flatten(tree: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float64] | None, dict[str, Any]]]:
    """Yield every array with its name, and the other values as parts of a dictionary."""
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
        raise MalformedError(f"{_METADATA} of the header is not an object of strings")
    fields = pack(parse_json(metadata.get("body", "{}").encode("utf-8", "surrogatepass")))
    if not isinstance(fields, dict):
        raise MalformedError(f"body in {_METADATA} of the header is not the text of an object")
    return fields


def _tensors(entries: Mapping[str, Any], size: int) -> list[_Tensor]:
    """Return the arrays of a header in the order of their bytes; check that they fill the rest of the body."""
    tensors = sorted(_tensor(name, entry) for name, entry in entries.items())
    end = 0
    for tensor in tensors:
        if tensor.begin != end:
            name = tensor.name[:MAX_QUOTED]
            raise MalformedError(f"array {name!r} begins at byte {tensor.begin}; the one before ends at {end}")
        end = tensor.end
    if end != size:
        raise MalformedError(f"the arrays take {end} bytes, but {size} follow the header")
    return tensors


def _tensor(name: str, entry: Any) -> _Tensor:
    where = f"array {name[:MAX_QUOTED]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise MalformedError(f"{where}: expected the fields dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise MalformedError(f"{where}: the supported dtypes are {', '.join(_DTYPES)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise MalformedError(f"{where}: shape and the two data_offsets must be non-negative integers")
    if len(shape) > _MAX_DIMENSIONS:  # before the product, which would take seconds for thousands of lengths
        raise MalformedError(f"{where}: it has {len(shape)} dimensions; the limit is {_MAX_DIMENSIONS}")
    size = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if offsets[1] - offsets[0] != size:
        raise MalformedError(f"{where}: its shape does not fit the bytes from {offsets[0]} to {offsets[1]}")
    return _Tensor(offsets[0], offsets[1], name, _DTYPES[dtype], tuple(shape))


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(count) is int and 0 <= count < 2**31 for count in value)


def _insert(tree: dict[str, Any], name: str, array: NDArray[Any]) -> None:
    part, nested, leaf = name.partition("/")
    parent = tree.setdefault(part, {}) if nested else tree
    key = leaf if nested else part
    if not isinstance(parent, dict) or key in parent:
        raise MalformedError(f"array {name[:MAX_QUOTED]!r} has the name of another value")
    parent[key] = array
